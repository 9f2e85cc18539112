"""One run of the loop: its evaluations, what became of it, and what the store has of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor

from grokfast.store import RunStore
from grokfast.store.records import Record
from grokfast.training.experiment import Experiment
from grokfast.training.outcome import Outcome
from grokfast.training.result import RunResult, result_of


@dataclass
class Begin:
    """The state that a run goes on from, where it is not the beginning, in CPU memory."""

    steps: int
    tensors: dict[str, Tensor]
    diverged_at: int


@dataclass
class Run:
    """What the loop knows of one run. `store` and `run_id` are both there, or both None: nothing is stored then."""

    number: int
    experiment: Experiment
    store: RunStore | None = None
    run_id: str | None = None
    outcome: Outcome = field(init=False)
    records: list[Record] = field(default_factory=list)
    stored: int = 0  # so many records are in the store
    seconds_before: float = 0.0
    result: RunResult | None = None
    row: int = 0  # in the ensemble
    begin: Begin | None = None
    is_announced: bool = False

    def __post_init__(self) -> None:
        self.outcome = Outcome(self.experiment.criteria)

    def record(self, record: Record) -> None:
        """Take in an evaluation."""
        self.records.append(record)
        self.outcome.update(record)

    def is_over(self, steps: int) -> bool:
        """Whether its schedule ends at `steps`."""
        schedule, t_generalize = self.experiment.schedule, self.outcome.t_generalize
        early = schedule.stop_after is not None and t_generalize is not None
        return steps >= schedule.steps or (early and steps >= t_generalize + schedule.stop_after)  # type: ignore[operator]

    def restart(self) -> None:
        """Go on from the beginning."""
        self.begin, self.records, self.outcome, self.stored = None, [], Outcome(self.experiment.criteria), 0
        if self.store is not None and self.run_id is not None:
            self.store.truncate(self.run_id, -1)

    def set_status(self, status: str) -> None:
        """Tell the store."""
        if self.store is not None and self.run_id is not None:
            self.store.update(self.run_id, status=status)

    def flush(self) -> None:
        """Write the records that the store does not have."""
        if self.store is not None and self.run_id is not None and self.stored < len(self.records):
            self.store.append(self.run_id, self.records[self.stored :])
            self.stored = len(self.records)

    def save(self, steps: int, tensors: Mapping[str, Tensor], seconds: float) -> None:
        """Curves first, then the checkpoint: on resuming, the store never lacks what came before it."""
        self.flush()
        if self.store is not None and self.run_id is not None:
            self.store.save_checkpoint(self.run_id, tensors, {"steps": steps, "seconds": seconds})

    def end(
        self, weights: dict[str, Tensor], diverged_at: int | None, seconds: float, *, keep_weights: bool
    ) -> RunResult:
        """Make the result, and store it."""
        store = self.store
        directory = None if store is None or self.run_id is None else store.directory(self.run_id)
        self.result = result_of(
            self.experiment, self.outcome, self.records, diverged_at=diverged_at, seconds=seconds, weights=weights,
            run_id=self.run_id, directory=directory,
        )  # fmt: skip
        if store is not None and self.run_id is not None:
            self.flush()
            if keep_weights:
                store.save_weights(self.run_id, weights)
            store.update(self.run_id, status=self.result.status, result=self.result.summary())
        return self.result
