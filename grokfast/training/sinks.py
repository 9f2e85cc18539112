"""Where the records of a run go besides the store: TensorBoard and Weights & Biases, each an optional package."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from grokfast.store.records import Record


class Sink(Protocol):
    """Takes the records of one run in the order of their steps, then, once, its result."""

    def record(self, record: Record) -> None: ...

    def close(self, result: dict[str, Any]) -> None: ...


class SafeSink:
    """Passes everything on to `sink`, called `name`, until that raises, as its disk is full or its connection lost.

    Then it says so, once, as a warning, and passes on no more records. It raises nothing itself.
    """

    def __init__(self, sink: Sink, name: str) -> None:
        self.sink, self.name, self.is_lost = sink, name, False

    def record(self, record: Record) -> None:
        if not self.is_lost:
            self._try(self.sink.record, record)

    def close(self, result: dict[str, Any]) -> None:
        """Close the sink, one that was lost, too."""
        self._try(self.sink.close, result)

    def _try(self, take: Callable[[Any], None], what: Any) -> None:
        try:
            take(what)
        except Exception as error:
            if not self.is_lost:
                warnings.warn(f"{self.name} takes no more: {type(error).__name__}: {error}", stacklevel=3)
            self.is_lost = True


class TensorBoardSink:
    """Event files in `directory`, where TensorBoard finds them.

    A resumed run gives the first step that it does again as `purge_step`: TensorBoard forgets what it was told of that
    step and later ones.

    Raises ImportError if TensorBoard is not installed.
    """

    def __init__(self, directory: str | Path, *, purge_step: int | None = None) -> None:
        try:
            import tensorboard  # noqa: F401  (torch's own message does not say what to install)
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise _not_installed("TensorBoard", "tensorboard") from error
        self._writer = SummaryWriter(str(directory), purge_step=purge_step, flush_secs=10)

    def record(self, record: Record) -> None:
        """Add a point to each of the run's curves."""
        for tag, value in _scalars(record).items():
            self._writer.add_scalar(tag, value, record.step)

    def close(self, result: dict[str, Any]) -> None:
        """Add the result as text, and finish the files."""
        self._writer.add_text("result", f"```\n{json.dumps(result, indent=2)}\n```")
        self._writer.close()


class WandbSink:
    """The Weights & Biases run `run_id` of `project`, continued if it exists, with its local files in `directory`.

    The mode is the user's (WANDB_MODE=offline works). Several runs may be open in one process.

    Raises ImportError if wandb is not installed, ConnectionError if it is not logged in or cannot be reached.
    """

    def __init__(self, project: str, run_id: str, config: dict[str, Any], directory: str | Path) -> None:
        try:
            import wandb
        except ImportError as error:
            raise _not_installed("Weights & Biases", "wandb") from error
        Path(directory).mkdir(parents=True, exist_ok=True)
        try:
            self._run = wandb.init(
                project=project,
                id=run_id,
                name=run_id,
                resume="allow",
                reinit="create_new",
                config=config,
                dir=str(directory),
                settings=wandb.Settings(console="off"),
            )
        except wandb.errors.Error as error:
            raise ConnectionError(f"Weights & Biases: {error} (WANDB_MODE=offline needs no account)") from error

    def record(self, record: Record) -> None:
        """Log a point of each of the run's curves. Steps that a resumed run repeats wandb ignores: it has them."""
        self._run.log(_scalars(record), step=record.step)

    def close(self, result: dict[str, Any]) -> None:
        """Put the result into the run's summary, and finish the run."""
        self._run.summary.update(result)
        self._run.finish()


def _scalars(record: Record) -> dict[str, float]:
    return {_tag(name): value for name, value in record.values.items()}


def _tag(column: str) -> str:
    """As in "loss/train", "accuracy/test": those of one kind are drawn together. What probes measure keeps its name."""
    if column == "weight_norm":
        return "norm/weights"
    split, _, kind = column.rpartition("_")
    return f"{kind}/{split}" if split and kind in ("loss", "accuracy") else column


def _not_installed(name: str, extra: str) -> ImportError:
    return ImportError(f"{name} is not installed: pip install 'grokfast[{extra}]'")
