"""Where a sweep's groups of runs are trained: what a runner is given, what it must do, and what it reports."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

RETRIES = 3  # a group whose worker dies is begun again, from its checkpoints, this many times


@dataclass(frozen=True, kw_only=True)
class Group:
    """Runs that train together, in one worker, as an ensemble; it pickles and is a dict of JSON values (`to_dict`).

    runs are ids in the store, which holds their configurations; device is "cpu" (one thread) or "cuda" (one GPU);
    backend is that of whoever planned the sweep; checkpoint_every in seconds; keep_weights says whether the final
    weights are stored.
    """

    runs: tuple[str, ...]
    device: str = "cpu"
    backend: str = "auto"
    checkpoint_every: float = 10.0
    keep_weights: bool = True

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Group:
        return cls(**{**values, "runs": tuple(values["runs"])})


@dataclass(frozen=True, kw_only=True)
class Event:
    """News of one run: a change of its status or stage, or how far it is (about once a second).

    status is one of the store's; stage is `Outcome.stage`; error says why a run failed.
    """

    run_id: str
    status: str
    steps: int = 0
    stage: str | None = None
    phase: str | None = None
    t_memorize: int | None = None
    t_generalize: int | None = None
    error: str | None = None

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Event:
        return cls(**values)


Report = Callable[[Event], None]


class Runner(Protocol):
    """Trains groups. Every worker calls `worker.train_group`, which writes into the one store at `root`."""

    @property
    def workers(self) -> int:
        """How many groups train at the same time, as far as is known before the start."""

    def where(self) -> str:
        """In words, for the line that says where the sweep runs: "2 processes", "Ray at ..."."""

    def run(self, groups: Sequence[Group], root: Path, report: Report) -> None:
        """Train every group to its end, whatever happens to workers, and return.

        `report` is called in the thread that called `run`. A worker that dies is replaced and its group begun again, up
        to RETRIES times; then `worker.give_up` marks its runs as failed and the others go on. On KeyboardInterrupt
        the workers save what they have, and it is raised again. Raises StoreError where the store fails (a full disk),
        ChildProcessError where no worker can be started.
        """
