"""Many steps at a time with nothing on the host between evaluations: CUDA graphs of whole stretches of training.

On other devices the same functions are simply called, so that all of it but the capture is tested without a GPU.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Hashable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor

from grokfast.store.records import STANDARD, Record
from grokfast.training.batches import Batches
from grokfast.training.ensemble import Ensemble
from grokfast.training.moments import Moments
from grokfast.training.outcome import Outcome
from grokfast.training.snapshots import Times
from grokfast.training.watch import Watch

LONGEST = 200  # steps in a graph
MOST_PATTERNS = 8  # of batch sizes between two evaluations, each of which is a graph; beyond, each step is one


class Report(NamedTuple):
    """An evaluation of one run; diverged_at and ended_at are steps, None: it has not."""

    record: Record
    diverged_at: int | None
    ended_at: int | None


class Window:
    """A stretch of training up to and with an evaluation, under way on the device."""

    def __init__(self, steps: int, rows: Tensor, event: torch.cuda.Event | None) -> None:
        self.steps, self._rows, self._event = steps, rows, event

    def wait(self) -> None:
        """Until it is at its end."""
        if self._event is not None:
            self._event.synchronize()

    def read(self) -> list[Report]:
        """Wait for its end; a report for each model, finished ones included. Before the next but one is launched."""
        self.wait()
        found = []
        for step, *measured, diverged_at, ended_at in self._rows.tolist():
            ends = (int(at) if at >= 0 else None for at in (diverged_at, ended_at))
            found.append(Report(Record(int(step), dict(zip(STANDARD, measured))), *ends))
        return found


class _Part(NamedTuple):
    """What one graph holds: a step for each batch of so many rows (None: all rows), and an evaluation or not.

    is_begun: the first step's gradient is there: it was computed for the evaluation before it.
    """

    lengths: tuple[int | None, ...]
    evaluates: bool
    is_begun: bool


class Replay:
    """Trains an ensemble from evaluation to evaluation, and follows which of its runs are over.

    `launch` returns at once. Runs that are over go on being computed; `kept` has the weights that each ended with.
    The ensemble is not to be stepped, restored or shrunk from elsewhere while a window is under way, and a Replay is
    made anew for a shrunk one, with what `step.keep` gives. `outcomes` are those of the evaluations so far. At `times`
    between evaluations `snapshot` is called, with all work done that was launched.
    """

    def __init__(
        self,
        ensemble: Ensemble,
        outcomes: Sequence[Outcome],
        times: Times | None = None,
        snapshot: Callable[[], None] = lambda: None,
    ) -> None:
        self.ensemble, self.step = ensemble, ensemble.compute
        self.times, self.snapshot = times or Times(None), snapshot
        self.watch = Watch(ensemble.experiments, outcomes, ensemble.flat)
        splits = [] if self.step.splits == 1 else [self.step.splits]  # summed by the optimizer's step
        self.grad = ensemble.flat.new_zeros(*splits, *ensemble.flat.shape)
        self.loss = ensemble.flat.new_zeros(len(ensemble.flat))
        self.batches: Batches | None = None
        self._is_ahead = False  # grad and loss are those of the next step
        if ensemble.orders is not None:
            most = min(LONGEST, ensemble.schedule.eval_every)
            self.batches = Batches(ensemble.orders, len(ensemble.flat), ensemble.device, most)
        ensemble.optimizer.clock.seek(ensemble.steps)
        self.tables = ensemble.optimizer.tables
        self.moments: Moments | None = None
        if self.tables is not None:
            ensemble.optimizer.is_fed = True
            self.moments = Moments(ensemble.experiments, outcomes, self.tables.begun)
        self.graphs = Graphs(ensemble.device)
        report = self.watch.report
        self._reports = [torch.empty_like(report, device="cpu", pin_memory=report.is_cuda) for _ in range(2)]

    def evaluate(self) -> Window:
        """Evaluate as the runs are now."""
        with self.graphs.stream():
            self._perform((), evaluates=True)
            return self._reported()

    def launch(self) -> Window:
        """Train until the next evaluation is due, and evaluate."""
        schedule, begin = self.ensemble.schedule, self.ensemble.steps
        end = min(begin + schedule.eval_every - begin % schedule.eval_every, schedule.steps)
        longest = LONGEST if self._patterns() <= MOST_PATTERNS else 1
        with self.graphs.stream():
            while begin < end:
                steps = min(longest, (self.times.next(begin + 1) or end) - begin, end - begin)
                if self.batches is not None:
                    self.batches.prepare(begin, steps)
                if self.tables is not None:
                    self.tables.prepare(begin, steps)
                lengths = tuple(map(self._length, range(begin, begin + steps)))
                self._perform(lengths, evaluates=begin + steps == end)
                begin += steps
                if begin < end and begin in self.times:
                    self.graphs.wait()
                    self.snapshot()
            return self._reported()

    def _patterns(self) -> int:
        """How many different stretches of batch sizes there are between evaluations."""
        if self.batches is None or self.step.takes_padding:
            return 1
        per_epoch = self.batches.orders.per_epoch
        return per_epoch // math.gcd(per_epoch, self.ensemble.schedule.eval_every)

    def _length(self, step: int) -> int | None:
        if self.batches is None:
            return None
        orders = self.batches.orders
        return orders.size if self.step.takes_padding else orders.length(step)

    def _perform(self, lengths: tuple[int | None, ...], *, evaluates: bool) -> None:
        ensemble, part = self.ensemble, _Part(lengths, evaluates, self._is_ahead)
        before = ensemble.steps

        def do() -> None:
            ensemble.optimizer.set_host(before)  # a capture that failed half-way has counted here, not on the device
            self._do(part)

        captures = self.graphs.captures(part)
        try:
            self.graphs.perform(part, do)
        except torch.OutOfMemoryError:
            if captures and self.graphs.captures(part):  # and did not call instead
                ensemble.optimizer.set_host(before)  # nothing of it was computed
            raise
        ensemble.optimizer.set_host(before + len(lengths))  # a graph counts on the device only
        self._is_ahead = evaluates and self.batches is None

    def _do(self, part: _Part) -> None:
        ensemble, optimizer = self.ensemble, self.ensemble.optimizer
        for i, length in enumerate(part.lengths):
            batch = None
            if self.batches is not None:
                batch = self.batches.select(optimizer.clock.steps)[:, :length]
            if i > 0 or not part.is_begun:
                self.step.gradient(ensemble.flat, self.grad, self.loss, batch)
            with torch.no_grad():
                optimizer.step(ensemble.flat, self.grad, self.loss, ensemble.diverged_at)
        if part.evaluates:
            train_loss, test_loss, train_accuracy, test_accuracy, norm = self.watch.measured
            if self.batches is None:  # what the next step computes anyway
                self.step.gradient(ensemble.flat, self.grad, self.loss, None, train_accuracy)
                train_loss.copy_(self.loss)
            else:
                self.step.measure("train", ensemble.flat, train_loss, train_accuracy)
            self.step.measure("test", ensemble.flat, test_loss, test_accuracy)
            torch.linalg.vector_norm(ensemble.flat, dim=1, out=norm)
            self.watch.update(ensemble.flat, optimizer.clock.steps, ensemble.diverged_at)
            if self.moments is not None:
                self.moments.update(train_accuracy, test_accuracy, optimizer.clock.steps)

    def _reported(self) -> Window:
        """Send the report on its way, to one of two places in turn."""
        rows = self._reports.pop(0)
        self._reports.append(rows)
        rows.copy_(self.watch.report, non_blocking=True)
        return Window(self.ensemble.steps, rows, self.graphs.event())


class Graphs:
    """Functions by name, performed on one stream of a device: called the first time, captured the second, replayed.

    The first call compiles kernels and makes tables, which a capture must not; it counts like any other. What cannot be
    captured goes on being called, with a warning.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._graphs: dict[Hashable, Any] = {}
        self._pool: Any = None
        self._stream: torch.cuda.Stream | None = None
        if device.type == "cuda":
            self._stream = torch.cuda.Stream(device)
            self._stream.wait_stream(torch.cuda.current_stream(device))
        self._takes_graphs = self._stream is not None

    def stream(self) -> AbstractContextManager[Any]:
        """For a block of code whose work is to stand in line with what is performed."""
        return nullcontext() if self._stream is None else torch.cuda.stream(self._stream)

    def event(self) -> torch.cuda.Event | None:
        """Happens when all that was performed so far is done; None: it is."""
        return None if self._stream is None else self._stream.record_event()

    def wait(self) -> None:
        """Until all that was performed so far is done."""
        if self._stream is not None:
            self._stream.synchronize()

    def captures(self, name: Hashable) -> bool:
        """Whether the next `perform` of this name captures, and computes nothing until that is done."""
        return self._takes_graphs and name in self._graphs and self._graphs[name] is None

    def perform(self, name: Hashable, function: Callable[[], None]) -> None:
        """Let the device do what `function` does. Raises torch.OutOfMemoryError."""
        if not self._takes_graphs or name not in self._graphs:
            self._graphs[name] = None
            function()
            return
        if self._graphs[name] is None:
            try:
                self._graphs[name] = self.capture(function)
            except torch.OutOfMemoryError:
                raise
            except RuntimeError as error:
                self._takes_graphs = False
                warnings.warn(f"training goes on without CUDA graphs, several times slower: {error}", stacklevel=2)
                function()
                return
        self._graphs[name].replay()

    def capture(self, function: Callable[[], None]) -> Any:
        """A graph of what `function` would do, with `replay`."""
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"):
            function()
        self._pool = graph.pool()  # graphs run one after the other and leave nothing there for one another
        return graph
