import io

from rich.console import Console

from grokfast import Experiment, train
from grokfast.display.curve import sparkline
from grokfast.display.run import Display

TINY = Experiment.preset("quick").override({"task.p": 13, "model.width": 32, "schedule.steps": 200})


def test_without_a_terminal_it_prints_lines_at_turning_points():
    console = Console(file=io.StringIO(), width=60)
    train(TINY, observers=[Display(console)])
    lines = console.file.getvalue().splitlines()
    assert "up to 200 steps" in lines[0]
    assert any("plateau" in line for line in lines[1:])


def test_it_says_what_augmentation_covers():
    console = Console(file=io.StringIO())
    task = TINY.task.build(seed=0)
    train(TINY.override({"schedule.steps": 1}), observers=[Display(console)])
    assert f"{len(task.train):,} training and {len(task.test):,} test rows, " in console.file.getvalue()
    experiment = TINY.override({"schedule.steps": 1, "task.augment": "swap"})
    data = experiment.task.build(seed=0)
    train(experiment, observers=[Display(console)])
    expected = f"{len(data.test):,} test rows (coverage {len(data.train) / 169:.1%} by augmentation), "
    assert expected in console.file.getvalue()


def test_on_a_terminal_it_shows_losses_speed_and_stage():
    console = Console(file=io.StringIO(), force_terminal=True, width=100)
    display = Display(console)
    train(TINY, observers=[display])
    console.print(display._render())
    shown = console.file.getvalue()
    for word in ("loss", "accuracy", "train", "test", "steps/s", "left", "200/200"):
        assert word in shown


def test_a_long_run_is_announced_with_its_expected_time(monkeypatch):
    monkeypatch.setattr("grokfast.display.run.ESTIMATE_AFTER", 0.0)
    monkeypatch.setattr("grokfast.display.run.LONG", 0.0)
    console = Console(file=io.StringIO())
    train(TINY, observers=[Display(console)])
    assert "all 200 steps take about" in console.file.getvalue()


def test_it_says_when_the_extension_is_missing(monkeypatch):
    monkeypatch.setenv("GROKFAST_BACKEND", "reference")
    console = Console(file=io.StringIO())
    train(TINY, observers=[Display(console)])
    assert "On plain PyTorch, about half as fast on a CPU: GROKFAST_BACKEND=reference" in console.file.getvalue()


def test_sparkline():
    assert sparkline([0.0, 0.5, 1.0, float("nan")], 10) == "▁▅█ "
    assert sparkline([0.0] * 50 + [1.0] * 50, 4) == "▁▁██"
