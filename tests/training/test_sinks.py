from __future__ import annotations

import sys
from pathlib import Path

import pytest

from grokfast.store import Record
from grokfast.store.records import STANDARD
from grokfast.training.sinks import TensorBoardSink, WandbSink

TAGS = ["accuracy/test", "accuracy/train", "loss/test", "loss/train", "norm/weights"]


def record(step: int, offset: float = 0.0) -> Record:
    return Record(step, dict(zip(STANDARD, (0.25 + offset, 0.5 + offset, 0.75, 1.0, float("nan")))))


def read_events(directory: Path) -> tuple[dict[str, list[tuple[int, float]]], list[str]]:
    """The points of each curve, and the tags of texts, as TensorBoard shows them."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(directory))
    events.Reload()
    tags = events.Tags()
    return {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in tags["scalars"]}, tags["tensors"]


def test_tensorboard_shows_every_record_and_the_result(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    sink = TensorBoardSink(tmp_path / "events")
    for step in (0, 100, 200):
        sink.record(record(step))
    sink.close({"t_memorize": 100, "t_generalize": None})
    curves, texts = read_events(tmp_path / "events")
    assert sorted(curves) == TAGS
    assert curves["loss/train"] == [(0, 0.25), (100, 0.25), (200, 0.25)]
    assert curves["loss/test"] == [(0, 0.5), (100, 0.5), (200, 0.5)]
    assert curves["accuracy/train"][-1] == (200, 0.75)
    assert curves["accuracy/test"][-1] == (200, 1.0)
    assert [step for step, _ in curves["norm/weights"]] == [0, 100, 200]
    assert texts == ["result/text_summary"]


def test_a_resumed_run_replaces_the_steps_it_repeats_in_tensorboard(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    first = TensorBoardSink(tmp_path)
    for step in (0, 100, 200):
        first.record(record(step))
    first.close({})
    second = TensorBoardSink(tmp_path, purge_step=101)
    for step in (200, 300):
        second.record(record(step, offset=1.0))
    second.close({})
    curves, _ = read_events(tmp_path)
    assert curves["loss/train"] == [(0, 0.25), (100, 0.25), (200, 1.25), (300, 1.25)]


def test_wandb_offline_keeps_runs_apart_and_can_be_resumed(tmp_path: Path, monkeypatch) -> None:
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    ids = ["quick-00aa11", "quick-00aa22"]
    sinks = [WandbSink("grokking", run_id, {"lr": 1e-3, "seed": 0}, tmp_path / run_id) for run_id in ids]
    for sink in sinks:
        sink.record(record(0))
        sink.record(record(100))
    for sink in sinks:
        sink.close({"t_memorize": 100, "t_generalize": None})
    again = WandbSink("grokking", ids[0], {"lr": 1e-3, "seed": 0}, tmp_path / ids[0])
    again.record(record(200))
    again.close({})
    files = {run_id: sorted((tmp_path / run_id).glob(f"wandb/offline-run-*-{run_id}/*.wandb")) for run_id in ids}
    assert all(files.values())
    for run_id, paths in files.items():
        content = b"".join(path.read_bytes() for path in paths)
        assert all(name.encode() in content for name in (run_id, "grokking", "t_memorize", *TAGS))


def test_wandb_without_an_account_says_what_works(tmp_path: Path, monkeypatch) -> None:
    wandb = pytest.importorskip("wandb")

    def refuse(**_):
        raise wandb.errors.UsageError("No API key configured.")

    monkeypatch.setattr(wandb, "init", refuse)
    with pytest.raises(ConnectionError, match=r"Weights & Biases: No API key configured. \(WANDB_MODE=offline"):
        WandbSink("p", "r", {}, tmp_path)


@pytest.mark.parametrize(
    ("module", "message", "build"),
    [
        ("tensorboard", r"TensorBoard .*pip install 'grokfast\[tensorboard\]'", lambda path: TensorBoardSink(path)),
        ("wandb", r"Weights & Biases .*pip install 'grokfast\[wandb\]'", lambda path: WandbSink("p", "r", {}, path)),
    ],
)
def test_a_missing_package_is_answered_with_how_to_install_it(
    tmp_path: Path, monkeypatch, module: str, message: str, build
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ImportError, match=message):
        build(tmp_path / "run")
    assert list(tmp_path.iterdir()) == []
