"""The command that repeats a run makes the very experiment when it is read."""

import shlex

import pytest
import torch

from grokfast import Experiment
from grokfast.cli import _parsed
from grokfast.report.repeat import repeated
from grokfast.tasks import Tensors
from grokfast.training import PRESETS


def read(line):
    """The experiment that a command would train."""
    program, *words = shlex.split(line)
    assert program == "grokfast"
    return _parsed(words).args[0]


def test_a_preset_is_its_name():
    assert repeated(PRESETS["nanda"], "nanda-1") == "grokfast run nanda"


@pytest.mark.parametrize(
    ("preset", "changes", "said"),
    [
        ("quick", {"task.p": 31, "seed": 3, "name": "mine"}, "--name mine --task.p 31 --seed 3"),
        ("quick", {"task.stratified": True, "model.bias": False}, "--task.stratified --model.no-bias"),
        ("quick", {"optimizer.betas": (0.9, 0.95), "schedule.stop_after": None}, "--optimizer.betas 0.9 0.95"),
        ("quick", {"filter": "ema(alpha=0.9)", "loss": "mse"}, "--loss mse --filter 'ema(alpha=0.9)'"),
        ("quick", {"filter": "ema(alpha=0.9)+ma(lamb=1.0)"}, "--filter 'ema(alpha=0.9)+ma(lamb=1.0)'"),
        ("quick", {"optimizer": "lion", "optimizer.lr": 1e-4}, "--optimizer 'lion(lr=0.0001"),
        ("quick", {"probes": "norms,spectra(threshold=5.0)"}, "--probes 'norms,spectra(threshold=5.0)'"),
        ("quick", {"task": "group(group='S4')", "model.width": 64}, """--task 'group(group="S4")' --model.width 64"""),
        ("quick", {"model": "token_mlp(embed=8)", "schedule.snapshots": "every:100"}, "--schedule.snapshots every:100"),
        ("quick", {"origin": "quick-1@100", "schedule.full_snapshots": True}, "--origin quick-1@100"),
        ("grokfast", {"filter": None, "optimizer.weight_decay": 0.0}, "--filter none"),
        ("grokfast", {"filter.lamb": 3.0, "device": "cpu"}, "--filter.lamb 3.0"),
        ("nanda", {"model.norm": "pre", "schedule.batch_size": 64}, "--schedule.batch-size 64"),
    ],
)
def test_what_differs_is_an_option(preset, changes, said):
    experiment = Experiment.preset(preset).override(changes)
    line = repeated(experiment, "x")
    assert said in line
    assert read(line) == experiment


def test_data_that_were_read_come_from_the_store():
    x = torch.arange(4)[:, None]
    experiment = Experiment(name="own", task=Tensors(x, x[:, 0], x, x[:, 0]), model="token_mlp")
    program, option, code = shlex.split(repeated(experiment, "own-1"))
    assert (program, option) == ("python", "-c")
    compile(code, "said", "exec")
    assert "store.get('own-1')" in code
