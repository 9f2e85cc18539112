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
from grokfast.training.engines import Hooks, Report
from grokfast.training.ensemble import Ensemble
from grokfast.training.moments import Moments
from grokfast.training.outcome import Outcome
from grokfast.training.watch import Watch

LONGEST = 200  # steps in a graph
MOST_PATTERNS = 8  # of batch sizes between two evaluations, each of which is a graph; beyond, each step is one


class Stretch:
    """A window that is under way on the device: `rows` is its report, `table` all its columns where those are others
    than the report's."""

    def __init__(
        self, steps: int, columns: Sequence[str], rows: Tensor, table: Tensor | None, event: torch.cuda.Event | None
    ) -> None:
        self.steps, self._columns, self._rows, self._table, self._event = steps, columns, rows, table, event

    def wait(self) -> None:
        if self._event is not None:
            self._event.synchronize()

    def read(self) -> list[Report]:
        """Before the next but one is launched."""
        self.wait()
        rows = self._rows.tolist()
        values = [row[1:-2] for row in rows] if self._table is None else self._table.tolist()
        ends = (None if row[-2] < 0 else int(row[-2]) for row in rows)
        return [
            Report(Record(int(row[0]), dict(zip(self._columns, of_run))), diverged_at)
            for row, of_run, diverged_at in zip(rows, values, ends)
        ]


class _Part(NamedTuple):
    """What one graph holds: a step for each batch of so many rows (None: all rows), and an evaluation or not.

    is_begun: the first step's gradient is there: it was computed for the evaluation before it.
    """

    lengths: tuple[int | None, ...]
    evaluates: bool
    is_begun: bool


class Replay:
    """Trains an ensemble from evaluation to evaluation, and follows which of its runs are over.

    An `Engine`. Runs that are over go on being computed; `watch.kept` has the weights that each ended with. `outcomes`
    are those of the evaluations so far.
    """

    runs_ahead, share = True, 0.75

    def __init__(self, ensemble: Ensemble, outcomes: Sequence[Outcome], hooks: Hooks | None = None) -> None:
        self.ensemble, self.step, self.hooks = ensemble, ensemble.compute, hooks or Hooks()
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
        if ensemble.optimizer.waits:
            self.moments = Moments(ensemble.experiments, outcomes, ensemble.optimizer.reached)
        self.graphs = Graphs(ensemble.device)
        self.table: Tensor | None = None  # of all columns, where they are not the report's
        self._judged = ensemble.judged
        if ensemble.columns != STANDARD or self._judged != (0, 1):
            self.table = self.watch.report.new_zeros(len(ensemble.flat), len(ensemble.columns))
        self._reports = [(_host_copy(self.watch.report), _host_copy(self.table)) for _ in range(2)]

    def evaluate(self) -> Stretch:
        with self.graphs.stream():
            if self.tables is not None:
                self.tables.prepare(self.ensemble.steps, 1)
            self._perform((), evaluates=True)
            return self._reported()

    def weights(self, row: int) -> dict[str, Tensor]:
        return self.ensemble.weights(row, self.watch.kept)

    def launch(self) -> Stretch:
        schedule, begin = self.ensemble.schedule, self.ensemble.steps
        end = min(begin + schedule.eval_every - begin % schedule.eval_every, schedule.steps)
        longest = LONGEST if self._patterns() <= MOST_PATTERNS else 1
        with self.graphs.stream():
            while begin < end:
                steps = min(longest, (self.hooks.times.next(begin + 1) or end) - begin, end - begin)
                if self.batches is not None:
                    self.batches.prepare(begin, steps)
                if self.tables is not None:
                    self.tables.prepare(begin, steps + 1)  # an evaluation is of the next step's
                lengths = tuple(map(self._length, range(begin, begin + steps)))
                self._perform(lengths, evaluates=begin + steps == end)
                begin += steps
                if begin < end and begin in self.hooks.times:
                    self.graphs.wait()
                    self.hooks.snapshot()
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
        self._is_ahead = evaluates and ensemble.takes_ahead

    def _do(self, part: _Part) -> None:
        ensemble, optimizer = self.ensemble, self.ensemble.optimizer
        for i, length in enumerate(part.lengths):
            batch = None
            if self.batches is not None:
                batch = self.batches.select(optimizer.clock.steps)[:, :length]
            if i > 0 or not part.is_begun:
                ensemble.change()
                self.step.gradient(ensemble.flat, self.grad, self.loss, batch)
            ensemble.take_anew(self.grad, batch)
            with torch.no_grad():
                optimizer.step(ensemble.flat, self.grad, self.loss, ensemble.diverged_at)
        if part.evaluates:
            with ensemble.averaged():
                self._evaluate()

    def _evaluate(self) -> None:
        ensemble, steps = self.ensemble, self.ensemble.optimizer.clock.steps
        train_loss, test_loss, train_accuracy, test_accuracy, norm = self.watch.measured
        ensemble.change()
        if ensemble.takes_ahead:  # what the next step computes anyway
            self.step.gradient(ensemble.flat, self.grad, self.loss, None, train_accuracy)
            train_loss.copy_(self.loss)
        else:
            self.step.measure("train", ensemble.flat, train_loss, train_accuracy)
        if self.table is None:
            self.step.measure("test", ensemble.flat, test_loss, test_accuracy)
            torch.linalg.vector_norm(ensemble.flat, dim=1, out=norm)
        else:
            others = [ensemble.measure(split) for split in ensemble.splits[1:]]
            losses = [train_loss.clone(), *(loss for loss, _ in others)]
            accuracies = [train_accuracy.clone(), *(accuracy for _, accuracy in others)]
            self.table.copy_(ensemble.table(losses, accuracies))
            for at, (loss, accuracy) in zip(self._judged, ((train_loss, train_accuracy), (test_loss, test_accuracy))):
                loss.copy_(losses[at])
                accuracy.copy_(accuracies[at])
        ensemble.optimizer.observe(train_loss, test_loss)
        self.watch.update(ensemble.flat, steps, ensemble.diverged_at)
        if self.moments is not None:
            self.moments.update(train_accuracy, test_accuracy, steps)

    def _reported(self) -> Stretch:
        """Send the report on its way, to one of two places in turn."""
        rows, table = places = self._reports.pop(0)
        self._reports.append(places)
        assert rows is not None
        rows.copy_(self.watch.report, non_blocking=True)
        if table is not None and self.table is not None:
            table.copy_(self.table, non_blocking=True)
        return Stretch(self.ensemble.steps, self.ensemble.columns, rows, table, self.graphs.event())


def _host_copy(tensor: Tensor | None) -> Tensor | None:
    """Room for it in page-locked memory."""
    return None if tensor is None else torch.empty_like(tensor, device="cpu", pin_memory=tensor.is_cuda)


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
