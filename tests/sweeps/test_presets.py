"""Published sweeps."""

import json

import pytest

from grokfast.cli import main
from grokfast.sweeps.presets import ABOUT, SWEEPS


def test_the_twelve_tasks_are_twelve_and_of_one_layout():
    assert ABOUT.keys() == SWEEPS.keys()
    tasks = SWEEPS["powerset"].grid["task"]
    assert len(set(tasks)) == 12
    assert [task.n_pairs for task in tasks] == [97**2, 97**2, 97 * 96, *[97**2] * 6, *[120**2] * 3]
    assert {task.seq_len for task in tasks} == {4}


@pytest.mark.parametrize("name", SWEEPS)
def test_every_sweep_is_one_command(name, tmp_path, capsys):
    small = ["--model.d-model=8", "--model.d-mlp=8", "--model.n-layers=1", "--schedule.batch-size=8"]
    command = [
        "sweep",
        name,
        "--steps",
        "1",
        *small,
        "--processes",
        "1",
        "--no-weights",
        "--out",
        str(tmp_path),
        "--json",
    ]
    assert main(command) == 0
    cells = json.loads(capsys.readouterr().out.splitlines()[-1])["cells"]
    assert [cell["n"] for cell in cells] == [1] * len(SWEEPS[name].grid["task"])
