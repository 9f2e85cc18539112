import json

import pytest

from grokfast.cli import main
from grokfast.store import RunStore

QUICK = ["quick", "--task.p", "13", "--model.width", "16", "--schedule.stop-after", "None", "--device", "cpu"]


@pytest.fixture
def finished(tmp_path, capsys):
    """A store with a run of 60 steps, and the run's id."""
    assert main(["run", *QUICK, "--steps", "60", "--json", "--out", str(tmp_path)]) == 0
    return tmp_path, json.loads(capsys.readouterr().out.splitlines()[-1])["run_id"]


def test_a_finished_run_takes_more_steps(finished, capsys):
    out, run_id = finished
    assert main(["run", "--resume", run_id, "--steps", "200", "--json", "--out", str(out)]) == 0
    said = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (said["run_id"], said["steps"], said["status"]) == (run_id, 200, "finished")
    assert main(["run", *QUICK, "--steps", "200", "--json", "--out", str(out)]) == 0
    whole = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert said["final"] == whole["final"]
    with RunStore(out, create=False) as store:
        assert store.get(run_id).config["schedule"]["steps"] == 200


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "there is nothing to resume, unless it is to take more steps (steps, --steps)"),
        (["--steps", "60"], "steps must be more than the 60 that run"),
        (
            ["--seed", "1"],
            "no preset, and no option of the experiment but --steps",
        ),
        (["--schedule.steps", "99"], "--resume takes the run as it was begun"),
    ],
)
def test_what_may_not_change_is_said(finished, capsys, options, message):
    out, run_id = finished
    assert main(["run", "--resume", run_id, *options, "--out", str(out)]) == 2
    assert message in capsys.readouterr().err
