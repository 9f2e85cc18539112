"""One run of the loop: its evaluations, what became of it, and what the store has of it."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from torch import Tensor

from grokfast.store import RunStore
from grokfast.store.records import Record, records_of
from grokfast.training.ensemble import Ensemble
from grokfast.training.experiment import Experiment, origin_of
from grokfast.training.forks import Fork, fitted, fork_of, history
from grokfast.training.outcome import Outcome
from grokfast.training.result import RunResult, result_of
from grokfast.training.state import State


def stored_state(store: RunStore, run_id: str) -> State | None:
    """That of a run's checkpoint, or a `Fork`, where it has none and is to begin as one; None: there is neither.

    Raises CheckpointError where it is damaged, StoreError where the other run is not there.
    """
    if store.has_checkpoint(run_id):
        return State.of(*store.load_checkpoint(run_id), f"the checkpoint of {run_id}")
    origin = store.get(run_id).config.get("origin")
    return None if origin is None else fork_of(store, origin)


@dataclass(eq=False)
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
    kept: State | None = None  # where there is no store to keep it
    is_announced: bool = False

    def __post_init__(self) -> None:
        self.outcome = Outcome(self.experiment.criteria)

    def record(self, record: Record) -> None:
        """Take in an evaluation."""
        self.records.append(record)
        self.outcome.update(record)

    def is_over(self, steps: int) -> bool:
        """Whether its schedule ends at `steps`."""
        schedule, outcome = self.experiment.schedule, self.outcome
        begun, patience = outcome.t_generalize, schedule.stop_after
        if begun is None:
            begun, patience = outcome.t_memorize, schedule.patience
        return steps >= schedule.steps or (None not in (begun, patience) and steps >= begun + patience)  # type: ignore[operator]

    def take_up(self, ensemble: Ensemble) -> State | None:
        """The state to go on from, the one saved last; None: the beginning. Evaluations after it are forgotten, and a
        fork that begins has those of the other run.

        Raises as `stored_state` and `fitted` do.
        """
        state, records = self.kept, self.records
        if self.store is not None and self.run_id is not None:
            state = stored_state(self.store, self.run_id)
            records = records_of(self.store.curves(self.run_id))
        is_begun = True
        if isinstance(state, Fork) and self.store is not None:
            is_begun, records = False, history(self.store, state, ensemble.columns)
            state = fitted(state, ensemble)
        elif state is None:
            records = []
        else:
            records = [record for record in records if self._is_to_have(record.step, state.steps)]
        self.records, self.outcome = [], Outcome(self.experiment.criteria)
        self.stored = len(records) if is_begun else 0
        for record in records:
            self.record(record)
        if self.store is not None and self.run_id is not None:
            self.store.truncate(self.run_id, records[-1].step if records and is_begun else -1)
        if state is not None:  # what came after it took its time, too
            self.seconds_before = max(self.seconds_before, state.seconds)
        return state

    def _is_to_have(self, step: int, steps: int) -> bool:
        """Whether an evaluation at `step` is of a run that has taken `steps`: the last one of a shorter run is not."""
        schedule, origin = self.experiment.schedule, self.experiment.origin
        if origin is not None and step <= origin_of(origin)[1]:
            return True
        return step <= steps and (step % schedule.eval_every == 0 or step == schedule.steps)

    def set_status(self, status: str) -> None:
        """Tell the store."""
        if self.store is not None and self.run_id is not None:
            self.store.update(self.run_id, status=status)

    def flush(self) -> None:
        """Write the records that the store does not have."""
        if self.store is not None and self.run_id is not None and self.stored < len(self.records):
            self.store.append(self.run_id, self.records[self.stored :])
            self.stored = len(self.records)

    def save(self, state: State) -> None:
        """Be able to go on from a state: the store's checkpoint, or without a store a copy in CPU memory.

        Curves first, then the checkpoint: on resuming, the store never lacks what came before it.
        """
        if self.store is None or self.run_id is None:
            self.kept = replace(state, tensors={name: t.cpu().clone() for name, t in state.tensors.items()})
            return
        self.flush()
        self.store.save_checkpoint(self.run_id, state.tensors, state.meta)

    def keep_snapshot(self, weights: dict[str, Tensor], state: State) -> None:
        """Keep the weights of a state in the store, and the state if snapshots are to be full. Curves first."""
        if self.store is not None and self.run_id is not None:
            self.flush()
            full = state.tensors if self.experiment.schedule.full_snapshots else None
            self.store.snapshots.save(self.run_id, state.steps, weights, state.meta, full)

    def end(
        self,
        weights: dict[str, Tensor],
        diverged_at: int | None,
        seconds: float,
        *,
        keep_weights: bool,
        state: State | None,
    ) -> RunResult:
        """Make the result, and store it, with the state from which the run can go on further, if there is one.

        A state that is beyond the run's end is stored after the result: a run that was not yet over must not get it.
        """
        store = self.store
        directory = None if store is None or self.run_id is None else store.directory(self.run_id)
        self.result = result_of(
            self.experiment, self.outcome, self.records, diverged_at=diverged_at, seconds=seconds, weights=weights,
            run_id=self.run_id, directory=directory,
        )  # fmt: skip
        if store is not None and self.run_id is not None:
            self.flush()
            is_beyond = state is not None and state.steps > self.result.steps
            if state is not None and not is_beyond:
                self.save(state)
            if keep_weights:
                store.save_weights(self.run_id, weights)
            store.update(self.run_id, status=self.result.status, result=self.result.summary())
            if state is None:
                store.drop_checkpoint(self.run_id)
            elif is_beyond:
                self.save(state)
        return self.result
