"""A reproduction from its sweeps to its verdict, on a small one."""

import json

import pytest

from grokfast import Experiment
from grokfast.cli import main
from grokfast.reproductions import NAMES, Arm, Published, Reproduction, Trial, Version, last_verdict, named, reproduce
from grokfast.reproductions.verdicts import mean_within

SMALL = Experiment.preset("quick").override(
    {"task.p": 7, "model.width": 16, "schedule.steps": 20, "schedule.eval_every": 10, "device": "cpu"}
)


def compare(runs):
    losses = [run.final["train_loss"] for run in runs["one"]]
    return [
        mean_within(losses, 0, 5, claim="from 0 to 5", what="loss", quantity="loss", unit="number",
                    published=Published(value=1.0, source="table 1"))
    ]  # fmt: skip


VERSION = Version(expectation="it falls", arms={"one": Arm(experiment=SMALL, seeds=3)}, compare=compare)
OURS = Reproduction(name="ours", paper="Us 2026", title="A small network", full=VERSION, quick=VERSION)


@pytest.fixture
def ours(monkeypatch):
    for module in ("trial", "names"):
        monkeypatch.setattr(f"grokfast.reproductions.{module}.named", lambda name: OURS)
    monkeypatch.setattr("grokfast.cli.reproduce.named", lambda name: OURS)
    monkeypatch.setattr("grokfast.cli.reproduce.NAMES", ("ours",))


def test_runs_are_stored_sweeps_that_are_not_trained_twice(ours, tmp_path):
    outcome = reproduce("ours", store=tmp_path, seeds=2)
    assert outcome.summary.verdict == "reproduced"
    record = json.loads(outcome.path.read_text())
    assert record["command"] == "grokfast reproduce ours --seeds 2"
    assert record["arms"]["one"]["seeds"] == [0, 1]
    assert record["arms"]["one"]["differs"]["schedule.steps"] == 20
    assert {"date", "device", "torch", "grokfast"} <= {*record["machine"]}
    assert str(tmp_path) not in outcome.path.read_text()
    assert outcome.picture.read_bytes().startswith(b"\x89PNG")
    ((_, planned),) = Trial(reproduction=OURS, root=tmp_path, seeds=2).plans()
    assert planned.todo == 0
    ((_, more),) = Trial(reproduction=OURS, root=tmp_path).plans()
    assert more.todo == 1
    assert last_verdict("ours", tmp_path).startswith("reproduced: of 1 claim 1 reproduced, 20")


def test_an_arm_may_have_axes(tmp_path):
    arm = Arm(experiment=SMALL, seeds=1, axes={"optimizer.weight_decay": (0.0, 1.0)})
    version = Version(expectation="", arms={"one": arm}, compare=compare).with_seeds(2)
    trial = Trial(
        reproduction=Reproduction(name="ours", paper="", title="", full=version, quick=version), root=tmp_path
    )
    ((_, planned),) = trial.plans()
    outcome = trial.conclude({"one": planned.train()})
    assert len(outcome.findings[0].values) == 4
    assert outcome.record["arms"]["one"]["axes"] == {"optimizer.weight_decay": [0.0, 1.0]}
    assert outcome.record["arms"]["one"]["seeds"] == [0, 1]


def test_the_command_says_what_was_found_and_lists_it(ours, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    assert main(["reproduce", "ours", "--quick", "--out", str(tmp_path), "--processes", "1", "--json"]) == 0
    said = capsys.readouterr().out
    assert "Expected of the quick version: it falls." in said
    assert "ours: reproduced: of 1 claim 1 reproduced" in said
    assert json.loads(said.splitlines()[-1])["quick"] is True
    assert main(["reproduce", "--out", str(tmp_path)]) == 0
    (line,) = (line for line in capsys.readouterr().out.splitlines() if line.startswith("ours"))
    assert "reproduced: of 1 claim 1 reproduced (quick)" in line


def test_bad_input_is_told(tmp_path, capsys):
    assert main(["reproduce", "swaroop", "--out", str(tmp_path)]) == 2
    assert "name must be one of" in capsys.readouterr().err
    assert main(["reproduce", "--quick"]) == 2
    assert "reproduce needs the name of a paper" in capsys.readouterr().err
    with pytest.raises(ValueError, match="seeds must be at least 2"):
        Trial(reproduction=OURS, root=tmp_path, seeds=1)


@pytest.mark.parametrize("name", NAMES)
def test_every_paper_names_its_sources_and_arms(name):
    found = named(name)
    assert found.name == name
    for version in (found.full, found.quick):
        assert version.expectation
        for arm in version.arms.values():
            assert arm.seeds >= 2
            Arm(experiment=arm.experiment, seeds=2).differences()  # its preset is there
