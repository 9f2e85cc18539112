import signal
import sys

import numpy as np
import pytest
import torch

import grokfast
from grokfast.store import RunStore
from grokfast.store.records import STANDARD
from grokfast.sweeps import InProcess, SweepInterrupted, SweepObserver, plan, sweep
from grokfast.sweeps.on_ray import OnRay, driver, parcels
from grokfast.sweeps.runner import RETRIES
from grokfast.training.version import version

pytest.importorskip("ray", reason="needs ray: pip install 'grokfast[ray]'")

EXPERIMENT = grokfast.Experiment.preset("quick").override(
    {"task.p": 17, "model.width": 64, "schedule.steps": 8000, "schedule.eval_every": 50, "schedule.stop_after": None}
)
GRID = {"optimizer.weight_decay": [0.1, 0.3, 1.0, 3.0]}


@pytest.fixture(scope="module")
def cluster():
    """Two nodes of one CPU each, that share nothing but this machine."""
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    yield cluster
    cluster.shutdown()


@pytest.fixture
def warm(cluster):
    """Connected, with a worker process on each of two nodes that has imported everything; yields the second node."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    node = cluster.add_node(num_cpus=1)
    ray.init(cluster.address, log_to_driver=False, logging_level="ERROR")
    places = [NodeAffinitySchedulingStrategy(found["NodeID"], soft=False) for found in ray.nodes() if found["Alive"]]
    assert len(places) == 2
    ray.get([ray.remote(version).options(scheduling_strategy=place).remote() for place in places])
    yield node
    ray.shutdown()


@pytest.fixture
def prompt(monkeypatch):
    """News travels at once, so that what a test does when it hears of a run happens while that run trains."""
    monkeypatch.setattr(driver, "SEND_EVERY", 0.05)
    monkeypatch.setattr(driver, "LOOK_EVERY", 0.05)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    return sweep(EXPERIMENT, GRID, store=tmp_path_factory.mktemp("undisturbed"), runner=InProcess())


def assert_same(one, other):
    """Equal bit for bit, but for wall-clock times."""
    first, second = one.table(), other.table()
    assert set(first) == set(second)
    for name in set(first) - {"seconds"}:
        np.testing.assert_array_equal(first[name], second[name], err_msg=name)
    for name, column in one.curves().items():
        np.testing.assert_array_equal(column, other.curves()[name], err_msg=name)
    for run, twin in zip(one.runs, other.runs):
        assert set(run.weights) == set(twin.weights)
        assert all(np.array_equal(run.weights[name].numpy(), twin.weights[name].numpy()) for name in run.weights)
    with RunStore(one.root) as store, RunStore(other.root) as twins:
        for run in one.runs:  # they may go on further
            (tensors, meta), (expected, _) = (of.load_checkpoint(run.run_id) for of in (store, twins))
            assert meta["steps"] == run.steps
            assert all(tensors[name].equal(tensor) for name, tensor in expected.items())


def test_a_sweep_survives_the_loss_of_a_node(tmp_path, monkeypatch, prompt, cluster, warm, undisturbed):
    lost, begun = [], []
    lose, start = driver.Driver._lost, driver.Driver._start

    def start_and_note(self, task):
        begun.append((task.group.runs, [self.store.has_checkpoint(run) for run in task.group.runs]))
        start(self, task)

    def note_and_lose(self, task, error):
        lost.append(task.group.runs)
        lose(self, task, error)

    monkeypatch.setattr(driver.Driver, "_start", start_and_note)
    monkeypatch.setattr(driver.Driver, "_lost", note_and_lose)

    class KillOneNode(SweepObserver):
        def happened(self, event, progress):
            if event.status == "running" and event.steps > 0 and cluster.worker_nodes:
                with RunStore(tmp_path, create=False) as store:
                    if sum(map(store.has_checkpoint, store.sweeps.statuses(self.sweep_id))) == 2:  # one on each node
                        cluster.remove_node(warm, allow_graceful=False)

        def planned(self, plan):
            self.sweep_id = plan.sweep_id

    observers = [KillOneNode()]
    swept = sweep(
        EXPERIMENT, GRID, store=tmp_path, runner=OnRay(cluster.address), observers=observers, checkpoint_every=0.1
    )
    assert not cluster.worker_nodes
    assert lost
    assert (lost[0], [True]) in begun[1:]  # it went on from a checkpoint
    assert swept.errors == {}
    assert_same(swept, undisturbed)


def test_a_sweep_that_is_interrupted_saves_what_the_workers_have(tmp_path, prompt, cluster, undisturbed):
    interrupted = []

    class Interrupt(SweepObserver):
        def happened(self, event, progress):
            if event.status == "running" and event.steps > 0 and not interrupted:
                interrupted.append(event)
                signal.raise_signal(signal.SIGINT)

    with pytest.raises(SweepInterrupted):
        sweep(
            EXPERIMENT,
            GRID,
            store=tmp_path,
            runner=OnRay(cluster.address),
            observers=[Interrupt()],
            checkpoint_every=1e6,
        )
    with RunStore(tmp_path, create=False) as store:
        begun = [run for run in store.list() if run.status == "interrupted"]
        saved = [run for run in begun if store.has_checkpoint(run.run_id)]
        assert "running" not in {run.status for run in store.list()}
        assert saved
        assert all(store.load_checkpoint(run.run_id)[1]["steps"] > 0 for run in saved)
    assert_same(sweep(EXPERIMENT, GRID, store=tmp_path, runner=InProcess()), undisturbed)


def test_runs_of_a_worker_that_is_always_lost_are_given_up(tmp_path, monkeypatch, cluster):
    pack = parcels.pack

    def damage(store, run_id):
        packed = pack(store, run_id)
        if packed.new.config["seed"] == 1:
            packed.run_id = "no-such-run"
        return packed

    monkeypatch.setattr(driver, "pack", damage)
    short = EXPERIMENT.override({"schedule.steps": 50})
    swept = sweep(short, {"seed": [0, 1]}, store=tmp_path, runner=OnRay(cluster.address))
    table = swept.table()
    assert table["status"].tolist() == ["finished", "failed"]
    assert list(swept.errors) == [table["run_id"][1]]
    assert f"its worker on Ray was lost {RETRIES + 1} times" in swept.errors[table["run_id"][1]]
    assert "no-such-run" in swept.errors[table["run_id"][1]]


def test_a_node_with_other_versions_is_said(tmp_path, monkeypatch, cluster):
    monkeypatch.setattr(driver, "version", lambda: "grokfast 9.9")
    short = EXPERIMENT.override({"schedule.steps": 50})
    swept = sweep(short, {"seed": [0]}, store=tmp_path, runner=OnRay(cluster.address))
    (error,) = swept.errors.values()
    assert "this node has grokfast" in error
    assert "the sweep is one of grokfast 9.9" in error


def test_a_run_that_another_process_trains_is_waited_for(tmp_path, cluster):
    short = EXPERIMENT.override({"schedule.steps": 50})
    planned = plan(short, {"seed": [0, 1]}, store=tmp_path, runner=OnRay(cluster.address))
    other = RunStore(tmp_path)
    (taken,) = other.sweeps.claim(list(planned.runs)[:1])
    finished = []

    class Release(SweepObserver):
        def happened(self, event, progress):
            if event.status == "finished":
                finished.append(event.run_id)
                other.close()

    swept = planned.train([Release()])
    assert finished == [*list(planned.runs)[1:], taken]
    assert swept.table()["status"].tolist() == ["finished"] * 2


def test_a_run_travels_with_its_checkpoint_and_its_curve_up_to_there(tmp_path):
    class Stop(SweepObserver):
        def happened(self, event, progress):
            if event.steps >= 500:
                signal.raise_signal(signal.SIGINT)

    with pytest.raises(SweepInterrupted):
        sweep(EXPERIMENT, {"seed": [0]}, store=tmp_path / "one", runner=InProcess(), observers=[Stop()])
    with RunStore(tmp_path / "one") as store:
        (run,) = store.list()
        tensors, meta = store.load_checkpoint(run.run_id)
        store.append(run.run_id, [grokfast.store.Record(meta["steps"] + 7, dict.fromkeys(STANDARD, 1.0))])
        parcels.unpack(tmp_path / "two", [parcels.pack(store, run.run_id)])
        with RunStore(tmp_path / "two", create=False) as copy:
            (twin,) = copy.list()
            assert (twin.run_id, twin.config, twin.version) == (run.run_id, run.config, run.version)
            again, its_meta = copy.load_checkpoint(run.run_id)
            assert its_meta == meta
            assert all(again[name].equal(tensor) for name, tensor in tensors.items())
            steps = copy.curves(run.run_id)["step"]
            assert steps.max() == meta["steps"] // 50 * 50
            assert np.array_equal(steps, store.curves(run.run_id)["step"])


def test_without_ray_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ImportError, match=r"ray is not installed: pip install 'grokfast\[ray\]'"):
        OnRay()


@pytest.mark.parametrize("address", ["", None, 6379])
def test_an_address_is_text(address):
    with pytest.raises(TypeError, match="address must be 'local', 'auto' or that of a Ray cluster"):
        OnRay(address)


def test_where_nobody_answers_is_said(tmp_path):
    with pytest.raises(ConnectionError, match=r"no Ray cluster answers at 127\.0\.0\.1:1: "):
        sweep(EXPERIMENT, {"seed": [0]}, store=tmp_path, runner=OnRay("127.0.0.1:1"))


def test_where_it_runs_in_words():
    assert OnRay().where() == "Ray on this machine"
    assert OnRay("head:6379").where() == "Ray at head:6379"


def test_forks_travel_with_what_they_begin_with_and_snapshots_come_back(tmp_path, prompt, cluster, set_threads):
    set_threads(1)
    kept = EXPERIMENT.override(
        {"schedule.steps": 400, "schedule.snapshots": "every:130", "schedule.full_snapshots": True}
    )
    with RunStore(tmp_path) as store:
        run = grokfast.train(kept, store=store)
    grid = {"optimizer.weight_decay": [0.1, kept.optimizer.weight_decay], "filter": ["none", "ema"]}
    there = grokfast.branch(run, 130, grid=grid, runner=OnRay(cluster.address))
    with RunStore(tmp_path) as store:
        for arm in there.runs:
            assert store.snapshots.of(arm.run_id) == {130: True, 260: True, 390: True}
            here = grokfast.train(arm.experiment, store=store)
            assert_same_run(arm, here)
            for step in (260, 390):
                assert all(torch.equal(arm.at(step).weights[name], w) for name, w in here.at(step).weights.items())
    assert_same_run(there.runs[2], run)


def assert_same_run(one, other):
    assert all(torch.equal(one.weights[name], w) for name, w in other.weights.items())
    for name, column in other.curves.items():
        np.testing.assert_array_equal(one.curves[name], column, err_msg=name)


def test_tensors_travel_with_their_runs(tmp_path, prompt, cluster, monkeypatch):
    x = torch.cartesian_prod(torch.arange(11), torch.arange(11))
    task = grokfast.tasks.Tensors(x, x.sum(1) % 11, train_fraction=0.5)
    short = EXPERIMENT.override({"task": task, "schedule.steps": 100})
    grid = {"seed": [0, 1]}
    there = sweep(short, grid, store=tmp_path / "there", runner=OnRay(cluster.address))
    assert_same(there, sweep(short, grid, store=tmp_path / "here", runner=InProcess()))
