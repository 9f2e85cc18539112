"""Ctrl-C, kill -9 of a worker and of everything: what is resumed ends with the bits of an undisturbed sweep."""

import os
import signal
import subprocess
import sys

import pytest

from grokfast import RunStore, sweep
from grokfast.sweeps import InProcess, Processes, SweepInterrupted, plan_stored, processes
from tests.sweeps.common import GRID, LONG, TINY, Watch, bits, workers

SEEDS = {"seed": [0, 1]}
linux = pytest.mark.skipif(sys.platform != "linux", reason="finds processes in /proc")


def far(event):
    return event.status == "running" and event.steps > 0


def interrupt():
    os.kill(os.getpid(), signal.SIGINT)


def kill():
    (pid,) = workers()
    os.kill(pid, signal.SIGKILL)


def test_ctrl_c_saves_and_the_sweep_goes_on(tmp_path, undisturbed):
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    with pytest.raises(SweepInterrupted) as stopped:
        sweep(LONG, SEEDS, store=tmp_path, runner=InProcess(), observers=[Watch(far, interrupt)])
    sweep_id = stopped.value.sweep_id
    with RunStore(tmp_path, create=False) as store:
        assert list(store.sweeps.statuses(sweep_id).values()) == ["interrupted", "pending"]
    assert bits(plan_stored(sweep_id, store=tmp_path, runner=InProcess()).train()) == undisturbed
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == handlers


@linux
def test_ctrl_c_has_the_workers_save(tmp_path, undisturbed):
    with pytest.raises(SweepInterrupted) as stopped:
        sweep(LONG, SEEDS, store=tmp_path, runner=Processes(1), observers=[Watch(far, interrupt)])
    assert workers() == []
    with RunStore(tmp_path, create=False) as store:
        first, second = store.sweeps.statuses(stopped.value.sweep_id).items()
        assert (first[1], second[1]) == ("interrupted", "pending")
        assert store.load_checkpoint(first[0])[1]["steps"] > 0
    assert bits(sweep(LONG, SEEDS, store=tmp_path, runner=InProcess())) == undisturbed


@linux
def test_a_killed_worker_is_replaced_and_its_run_goes_on(tmp_path, undisturbed):
    watch = Watch(far, kill)
    options = {"store": tmp_path, "runner": Processes(1), "observers": [watch], "checkpoint_every": 0.02}
    assert bits(sweep(LONG, SEEDS, **options)) == undisturbed
    assert watch.when is None
    first, again, _ = watch.begun()
    assert first[0] == again[0]
    assert 0 == first[1] < again[1]  # from its checkpoint
    assert watch.progress.counts() == {"finished": 2}


@pytest.mark.slow
@linux
def test_a_group_that_kills_every_worker_is_given_up_and_the_rest_goes_on(tmp_path, monkeypatch):
    monkeypatch.setattr(processes, "RETRIES", 1)

    class Killer(Watch):
        def happened(self, event, progress):
            super().happened(event, progress)
            if event.run_id == self.events[0].run_id and event.status == "running" and not event.stage:
                kill()

    killer = Killer()
    result = sweep(LONG, SEEDS, store=tmp_path, runner=Processes(1), observers=[killer])
    assert sorted(result.table()["status"]) == ["failed", "finished"]
    assert len(killer.begun()) == 3
    assert list(result.errors.values()) == ["its worker died 2 times: signal 9"]


KILLED = """
import sys
from grokfast import Experiment, sweep
from grokfast.sweeps import Processes, SweepObserver
class Tell(SweepObserver):
    def happened(self, event, progress):
        if progress.steps > 0:
            print("now", flush=True)
sweep(Experiment.from_dict(eval(sys.argv[2])), {"seed": [0, 1]}, store=sys.argv[1], runner=Processes(2),
      observers=[Tell()], checkpoint_every=0.02)
"""


@pytest.mark.slow
def test_kill_9_of_everything_and_resume_is_undisturbed(tmp_path, undisturbed):
    command = [sys.executable, "-c", KILLED, str(tmp_path), repr(LONG.to_dict())]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "now\n"
        process.kill()
    with RunStore(tmp_path, create=False) as store:
        (stored,) = store.sweeps.list()
    assert stored.counts.get("running", 0) >= 1
    watch = Watch()
    planned = plan_stored(stored.sweep_id, store=tmp_path, runner=InProcess())
    assert bits(planned.train([watch])) == undisturbed
    assert max(steps for _, steps in watch.begun()) > 0  # from a checkpoint


def test_a_damaged_checkpoint_is_the_beginning_again(tmp_path):
    with pytest.raises(SweepInterrupted):
        sweep(LONG, {"seed": [0]}, store=tmp_path, runner=InProcess(), observers=[Watch(far, interrupt)])
    (path,) = tmp_path.glob("*/checkpoint.safetensors")
    data = bytearray(path.read_bytes())
    data[-9] ^= 1
    path.write_bytes(data)
    watch = Watch()
    with pytest.warns(UserWarning, match=r"begins again: .* is damaged"):
        result = sweep(LONG, {"seed": [0]}, store=tmp_path, runner=InProcess(), observers=[watch])
    assert watch.begun() == [(result.runs[0].run_id, 0)]
    assert result.runs[0].curves["step"].tolist() == list(range(0, 1501, 20))


@pytest.mark.parametrize(("executable", "why"), [("/bin/false", "exit status 1"), ("/none", "No such file")])
def test_workers_that_cannot_start_are_an_error(tmp_path, monkeypatch, executable, why):
    monkeypatch.setattr(sys, "executable", executable)
    with pytest.raises(ChildProcessError, match=f"a worker process did not start 4 times: .*{why}"):
        sweep(TINY, GRID, store=tmp_path, runner=Processes(2))
    with RunStore(tmp_path, create=False) as store:
        assert {run.status for run in store.list()} == {"pending"}


def killed_at_birth(monkeypatch, which):
    """Workers are killed before they are ready, where `which` says so of their number; returns all."""
    born = []

    class Child(processes._Child):
        def __init__(self, root, environment):
            super().__init__(root, environment)
            born.append(self)
            if which(len(born)):
                self.process.kill()

    monkeypatch.setattr(processes, "_Child", Child)
    return born


@pytest.mark.slow
def test_workers_that_are_killed_before_they_are_ready_are_replaced(tmp_path, monkeypatch, undisturbed):
    born = killed_at_birth(monkeypatch, lambda number: number in (1, 2, 4))
    watch = Watch()
    assert bits(sweep(LONG, SEEDS, store=tmp_path, runner=Processes(2), observers=[watch])) == undisturbed
    assert len(born) >= 4
    assert watch.progress.counts() == {"finished": 2}


@pytest.mark.slow
def test_a_place_where_no_worker_lives_leaves_its_work_to_the_others(tmp_path, monkeypatch, undisturbed):
    environments = [{**processes.ONE_THREAD, "HERE": str(number)} for number in range(2)]
    monkeypatch.setattr(Processes, "_environments", lambda self, groups: environments)

    class Child(processes._Child):
        def __init__(self, root, environment):
            super().__init__(root, environment)
            if environment["HERE"] == "0":
                self.process.kill()

    monkeypatch.setattr(processes, "_Child", Child)
    assert bits(sweep(LONG, SEEDS, store=tmp_path, runner=Processes(2))) == undisturbed
