import os
import signal
import subprocess
import sys
import textwrap

import numpy as np
import pytest

import grokfast
from grokfast.store import RunStore
from grokfast.training.sweep import sweep
from grokfast.training.sweep.in_process import InProcess
from grokfast.training.sweep.on_ray import OnRay, _Driver, _pack, _unpack
from grokfast.training.sweep.runner import RETRIES, Group

pytest.importorskip("ray", reason="needs ray: pip install 'grokfast[ray]'")

EXPERIMENT = grokfast.Experiment.preset("quick").override(
    {"task.p": 17, "model.width": 64, "schedule.steps": 6000, "schedule.eval_every": 50, "schedule.stop_after": None}
)
GRID = {"optimizer.weight_decay": [0.3, 1.0], "seed": [0, 1]}


@pytest.fixture(scope="module")
def cluster():
    """Two nodes of one CPU each, that share nothing but this machine."""
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    yield cluster
    cluster.shutdown()


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


def test_a_sweep_survives_the_loss_of_a_node(tmp_path, monkeypatch, cluster, undisturbed):
    node = cluster.add_node(num_cpus=1)
    lost, begun = [], []
    kill, start = _Driver._lost, _Driver._start

    def start_and_note(driver, task):
        begun.append((task.group.runs, [driver.store.has_checkpoint(run) for run in task.group.runs]))
        start(driver, task)

    def note_and_lose(driver, task, error):
        lost.append(task.group.runs)
        kill(driver, task, error)

    monkeypatch.setattr(_Driver, "_start", start_and_note)
    monkeypatch.setattr(_Driver, "_lost", note_and_lose)
    seen = set()

    class KillOneNode(grokfast.training.sweep.SweepObserver):
        def happened(self, event, progress):
            if event.status == "running" and event.steps > 0:
                seen.add(event.run_id)
            if len(seen) == 2 and len(cluster.worker_nodes) == 1:
                with RunStore(tmp_path, create=False) as store:
                    if all(store.has_checkpoint(run_id) for run_id in seen):
                        cluster.remove_node(node, allow_graceful=False)

    observers = [KillOneNode()]
    swept = sweep(
        EXPERIMENT, GRID, store=tmp_path, runner=OnRay(cluster.address), observers=observers, checkpoint_every=0.1
    )
    assert not cluster.worker_nodes
    assert lost
    assert (lost[0], [True]) in begun[1:]  # it went on from a checkpoint
    assert swept.errors == {}
    assert_same(swept, undisturbed)
