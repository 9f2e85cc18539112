import io

import pytest
from rich.console import Console

from grokfast import Experiment
from grokfast.display.sweep import SweepDisplay
from grokfast.sweeps import Event, InProcess, Progress, plan

TINY = Experiment.preset("quick").override({"task.p": 13, "model.width": 16, "schedule.steps": 40, "device": "cpu"})


def test_progress_counts_runs_and_steps():
    progress = Progress(dict.fromkeys("abcd", 100), dict.fromkeys("abcd", "pending"))
    assert progress.seconds_left() is None
    for event in (
        Event(run_id="a", status="running"),
        Event(run_id="a", status="running", steps=40, stage="plateau"),
        Event(run_id="a", status="finished", steps=50, phase="grokking"),
        Event(run_id="b", status="running", steps=30),
        Event(run_id="b", status="running", steps=40, stage="plateau"),
        Event(run_id="b", status="running", steps=30),  # again, from its checkpoint
        Event(run_id="c", status="failed", error="died"),
    ):
        progress.take(event)
    assert progress.counts() == {"finished": 1, "running": 1, "failed": 1, "pending": 1}
    assert progress.grokked == 1
    assert progress.steps == 50 + 10
    assert progress.errors == {"c": "died"}
    progress.begun -= 1000.0
    assert progress.seconds_left() == pytest.approx(1000, rel=1e-3)  # 60 steps done; b to 50, d all of 50


def test_on_a_terminal_it_shows_counts_speed_and_the_time_left(tmp_path):
    console = Console(file=io.StringIO(), force_terminal=True, width=120)
    display = SweepDisplay(console)
    plan(TINY, {"seed": [0, 1]}, store=tmp_path, runner=InProcess()).train([display])
    console.print(display._render())
    for word in ("2/2 done", "0 running", "grokked", "model-steps/s", "left"):
        assert word in console.file.getvalue()


def test_without_a_terminal_it_prints_lines_and_failures(tmp_path, monkeypatch):
    monkeypatch.setattr("grokfast.display.sweep.LINE_EVERY", 0.0)
    console = Console(file=io.StringIO())
    display = SweepDisplay(console)
    assert display.line() == " · starting"
    plan(TINY, {"seed": [0, 1]}, store=tmp_path, runner=InProcess()).train([display])
    display.happened(Event(run_id="x", status="failed", error="died"), display.progress)
    said = console.file.getvalue()
    assert "1/2 done, 1 running" in said
    assert "x failed: died" in said


def test_what_a_worker_says_is_shown_as_text(tmp_path):
    console = Console(file=io.StringIO(), force_terminal=True, color_system=None)
    display = SweepDisplay(console)
    display.planned(plan(TINY, {"seed": [0]}, store=tmp_path, runner=InProcess()))
    progress = Progress({"[/red]\x1b[2J": 100}, {})
    display.happened(Event(run_id="[/red]\x1b[2J", status="running"), progress)
    console.print(display._render())
    display.happened(Event(run_id="[/red]\x1b[2J", status="failed", error="[/bold]\n  two\x1b[31m :smile:"), progress)
    display.stop()
    said = console.file.getvalue()
    assert r"[/red]\x1b[2J failed: [/bold] two\x1b[31m :smile:" in said
    assert "\x1b[2J" not in said
