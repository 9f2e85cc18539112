"""A runner on Ray: groups are tasks, on this machine or on a cluster whose nodes share no files.

A worker trains in a store of its own, in a temporary directory, and about once a second sends what is new there to the
driver, which alone writes to the sweep's store. So a lost node loses no more than a killed process: its groups begin
again, wherever there is room, from the checkpoints that the driver has.
"""

from __future__ import annotations

import itertools
import os
import pickle
import queue
import signal
import socket
import tempfile
import threading
import time
import warnings
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from grokfast.store import CheckpointError, NewRun, RunStore
from grokfast.store.records import Record
from grokfast.training.loop import stop_requests, version
from grokfast.training.sweep.runner import RETRIES, Event, Group, Report
from grokfast.training.sweep.worker import DONE, give_up, train_group

SEND_EVERY = 1.0  # seconds between two deliveries of a worker
RUNS_PER_SECOND = 50  # that a delivery may look at, so that training large ensembles does not wait for it
RUNS_PER_MESSAGE = 32
MESSAGES = 64  # that wait for the driver at most
LOOK_EVERY = 0.3  # seconds between two looks of the driver at what was delivered
GRACE = 30.0  # seconds in which the workers save their runs when they are told to stop


class OnRay:
    """Trains on the Ray cluster at `address` ("auto", "host:6379", "ray://host:10001"), or on one that is started here
    for the time of the sweep ("local"). A program that has called `ray.init` stays connected as it is.

    A group takes one GPU, or one CPU where the experiment's device is the CPU. Every node needs this grokfast and this
    torch installed. Raises ImportError naming the extra where Ray is not installed, TypeError for an address that is no
    text; `run` and `workers` raise ConnectionError where no cluster answers.
    """

    def __init__(self, address: str = "local") -> None:
        if not isinstance(address, str) or not address:
            raise TypeError(f"address must be 'local', 'auto' or that of a Ray cluster, got {address!r}")
        _ray()
        self.address = address
        self._connected_here = False

    @property
    def workers(self) -> int:
        self._connect()
        return _room("GPU") or _room("CPU")

    def where(self) -> str:
        return "Ray on this machine" if self.address == "local" else f"Ray at {self.address}"

    def run(self, groups: Sequence[Group], root: Path, report: Report) -> None:
        self._connect()
        try:
            with RunStore(root, create=False) as store:
                _Driver(store, groups, report).run()
        finally:
            if self._connected_here:
                _ray().shutdown()
                self._connected_here = False

    def _connect(self) -> None:
        ray = _ray()
        if ray.is_initialized():
            return
        _knock(self.address)
        quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
        if self.address == "local":
            quiet |= {"include_dashboard": False}
        with _own_signals():
            ray.init(self.address, **quiet)
        self._connected_here = True


@dataclass
class _Task:
    """A group, how often its worker was lost, and the number of this attempt: news of others are late."""

    group: Group
    deaths: int = 0
    why: str = ""
    attempt: int = -1


@dataclass
class _News:
    """What is new in one run: evaluations, a checkpoint (tensors and meta), final weights, a status and a result."""

    run_id: str
    records: list[Record]
    checkpoint: tuple[dict[str, Any], dict[str, Any]] | None = None
    weights: dict[str, Any] | None = None
    status: str | None = None
    result: dict[str, Any] | None = None


@dataclass
class _Packed:
    """A run as it travels to a worker: what the store has of it, up to its checkpoint."""

    run_id: str
    new: NewRun
    preset: str
    records: list[Record]
    checkpoint: tuple[dict[str, Any], dict[str, Any]] | None


@dataclass
class _Driver:
    """The side of the sweep's store."""

    store: RunStore
    groups: Sequence[Group]
    report: Report
    running: dict[Any, _Task] = field(default_factory=dict)  # by the reference that Ray gave
    ended: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        from ray.util.queue import Queue
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        here = NodeAffinitySchedulingStrategy(_ray().get_runtime_context().get_node_id(), soft=False)
        self.inbox = Queue(MESSAGES, actor_options={"num_cpus": 0, "scheduling_strategy": here})
        self.inbox.qsize()  # it is there before any worker wants to send
        self.todo = deque(_Task(group) for group in self.groups)
        self.attempts = itertools.count()
        self.resource = "CPU" if all(group.device == "cpu" for group in self.groups) else "GPU"

    def run(self) -> None:
        if self.todo and not _room(self.resource):
            warnings.warn(f"this Ray cluster has no {self.resource} yet: waiting for one", stacklevel=3)
        try:
            with stop_requests() as stop:  # news is taken in whole, or the curves would have gaps
                while self.todo or self.running:
                    if stop.is_set():
                        raise KeyboardInterrupt
                    self._submit()
                    self._wait(LOOK_EVERY)
        except BaseException as error:
            self._stop(save=isinstance(error, KeyboardInterrupt))
            raise
        finally:
            with suppress(_ray().exceptions.RayError):
                self.inbox.shutdown(force=True)

    def _submit(self) -> None:
        """Hand out as many groups as there is room for, and one more; runs that another process trains have to wait."""
        room = max(_room(self.resource), 1) + 1
        for _ in range(len(self.todo)):
            if len(self.running) >= room:
                return
            task = self.todo.popleft()
            claimed = self.store.sweeps.claim(task.group.runs)
            elsewhere = [run for run in task.group.runs if run not in claimed and not self._has_ended(run)]
            if elsewhere:
                self.todo.append(replace(task, group=replace(task.group, runs=tuple(elsewhere))))
            if claimed:
                self._start(replace(task, group=replace(task.group, runs=tuple(claimed)), attempt=next(self.attempts)))

    def _start(self, task: _Task) -> None:
        needs = {"num_cpus": 1} if task.group.device == "cpu" else {"num_cpus": 1, "num_gpus": 1}
        remote = _ray().remote(_train).options(max_retries=0, name="grokfast", **needs)
        runs = [_pack(self.store, run_id) for run_id in task.group.runs]
        every = max(SEND_EVERY, len(runs) / RUNS_PER_SECOND)
        reference = remote.remote(version(), task.group.to_dict(), runs, task.attempt, self.inbox, every)
        self.running[reference] = task

    def _wait(self, seconds: float) -> None:
        """Take in what the workers sent, and what became of them. A worker sends its last news before it ends."""
        ray = _ray()
        if not self.running:
            time.sleep(seconds)
            return
        references = list(self.running)
        done, _ = ray.wait(references, num_returns=len(references), timeout=seconds)
        self._receive()
        for reference in done:
            task = self.running.pop(reference)
            try:
                ray.get(reference)
            except ray.exceptions.TaskCancelledError:
                pass
            except ray.exceptions.RayError as error:
                self._lost(task, error)

    def _receive(self) -> None:
        current = {task.attempt for task in self.running.values()}
        for message in self.inbox.get_nowait_batch(self.inbox.qsize()):
            attempt, news, events = pickle.loads(message)
            if attempt not in current:
                continue  # its worker was given up, another one trains these runs
            for run in news:
                self._store(run)
            for event in events:
                if event.status in DONE:
                    self.ended.add(event.run_id)
                self.report(event)

    def _store(self, news: _News) -> None:
        """Curves before the checkpoint, and the status last, as the training loop does."""
        self.store.append(news.run_id, news.records)
        if news.checkpoint is not None:
            self.store.save_checkpoint(news.run_id, *news.checkpoint)
        if news.weights is not None:
            self.store.save_weights(news.run_id, news.weights)
        if news.status is not None:
            self.store.update(news.run_id, status=news.status, result=news.result)

    def _lost(self, task: _Task, error: Exception) -> None:
        deaths = task.deaths + 1
        lines = str(error).strip().splitlines() or [""]
        last = lines[-1] if type(error).__name__.startswith("RayTaskError") else lines[0]
        why = f"its worker on Ray was lost {deaths} times: {type(error).__name__}: {last}"
        if deaths > RETRIES:
            give_up(task.group, self.store.root, why, self.report)
        else:
            self.todo.appendleft(replace(task, deaths=deaths, why=why))

    def _has_ended(self, run_id: str) -> bool:
        """Whether a run that could not be claimed has ended, which is reported once."""
        stored = self.store.get(run_id)
        if stored.status in DONE and run_id not in self.ended:
            self.ended.add(run_id)
            result = stored.result or {}
            names = ("steps", "phase", "t_memorize", "t_generalize")
            self.report(Event(run_id=run_id, status=stored.status, **{name: result[name] for name in names}))
        return stored.status in DONE

    def _stop(self, save: bool) -> None:
        """Cancel all tasks; with `save` each first saves its runs, and what it saved is taken in."""
        ray = _ray()
        begun = [task for task in (*self.running.values(), *self.todo) if task.attempt >= 0]
        try:
            if save:
                for reference in self.running:
                    ray.cancel(reference)
                until = time.monotonic() + GRACE
                with stop_requests() as again:
                    while self.running and time.monotonic() < until and not again.is_set():
                        self._wait(LOOK_EVERY)
        finally:
            for reference in self.running:
                ray.cancel(reference, force=True)
        for run_id in (run_id for task in begun for run_id in task.group.runs):
            if save and self.store.get(run_id).status == "running":
                self.store.update(run_id, status="interrupted")


def _pack(store: RunStore, run_id: str) -> _Packed:
    """The run up to its checkpoint, or from its beginning where there is none; the store forgets what came after."""
    stored = store.get(run_id)
    checkpoint = None
    if store.has_checkpoint(run_id):
        try:
            checkpoint = store.load_checkpoint(run_id)
        except CheckpointError as error:
            warnings.warn(f"run {run_id} begins again: {error}", stacklevel=2)
    store.truncate(run_id, -1 if checkpoint is None else int(checkpoint[1]["steps"]))
    # an id is the preset, "-", and the beginning of the hash
    new = NewRun(stored.config, run_id[len(stored.preset) + 1 :], stored.version, stored.device)
    return _Packed(run_id, new, stored.preset, _records(store, run_id, after=-1), checkpoint)


def _unpack(root: Path, runs: Sequence[_Packed]) -> None:
    """Make a store at `root` in which the runs have the ids and the state that they have in the sweep's store."""
    with RunStore(root) as store:
        for preset in dict.fromkeys(run.preset for run in runs):
            store.sweeps.create(preset, {}, {}, [run.new for run in runs if run.preset == preset])
        for run in runs:
            (root / run.run_id).mkdir()
            store.append(run.run_id, run.records)
            if run.checkpoint is not None:
                store.save_checkpoint(run.run_id, *run.checkpoint)


def _records(store: RunStore, run_id: str, after: int) -> list[Record]:
    curves = store.curves(run_id)
    rows = zip(*(curves[name].tolist() for name in Record._fields))
    return [Record(*row) for row in rows if row[0] > after]


def _train(
    versions: str, group: dict[str, Any], runs: list[_Packed], attempt: int, inbox: Any, send_every: float
) -> None:
    """The task. Cancelled, it saves like a process that is interrupted, and sends that, too."""
    if version() != versions:
        raise RuntimeError(f"this node has {version()}, the sweep is one of {versions}")
    with tempfile.TemporaryDirectory(prefix="grokfast-") as directory:
        root = Path(directory)
        _unpack(root, runs)
        courier = _Courier(root, runs, attempt, inbox, send_every)
        courier.start()
        try:
            with suppress(KeyboardInterrupt):
                train_group(Group.from_dict(group), root, courier.events.put)
        finally:
            courier.over.set()
            courier.join()
        if courier.error is not None:
            raise courier.error


class _Courier(threading.Thread):
    """Sends what is new in the worker's store to the driver, until `over` is set, and then what is left."""

    def __init__(self, root: Path, runs: Sequence[_Packed], attempt: int, inbox: Any, send_every: float) -> None:
        super().__init__(daemon=True)
        self.root, self.attempt, self.inbox, self.send_every = root, attempt, inbox, send_every
        self.sources = [_Source(run) for run in runs]
        self.events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        self.over = threading.Event()
        self.error: Exception | None = None

    def run(self) -> None:
        try:
            with RunStore(self.root, create=False) as store:
                while not self.over.wait(self.send_every):
                    self._send(store)
                self._send(store)
        except Exception as error:
            self.error = error

    def _send(self, store: RunStore) -> None:
        """Events are fetched before the store is read, and sent after it: the store is never behind what they say."""
        events = [self.events.get() for _ in range(self.events.qsize())]
        news = [new for source in self.sources if (new := source.news(store)) is not None]
        parts = [news[i : i + RUNS_PER_MESSAGE] for i in range(0, len(news), RUNS_PER_MESSAGE)]
        if events:
            parts.append([])
        for part in parts:
            # as bytes: the queue's own process need not import torch to pass it on
            self.inbox.put(pickle.dumps((self.attempt, part, [] if part else events)))


class _Source:
    """What of one run has been sent."""

    def __init__(self, run: _Packed) -> None:
        self.run_id = run.run_id
        self.sent = int(run.records[-1].step) if run.records else -1
        self.checkpoint: int | None = None  # when the last one that was sent, or received, was written
        self.is_over = False

    def news(self, store: RunStore) -> _News | None:
        """What is to be sent. The checkpoint is read before the curves, which so reach at least as far."""
        if self.is_over:
            return None
        stored = store.get(self.run_id)
        self.is_over = stored.status not in ("pending", "running")
        news = _News(self.run_id, [], status=stored.status if self.is_over else None, result=stored.result)
        with suppress(OSError, CheckpointError):  # there is none yet, or none any more
            written = (store.directory(self.run_id) / "checkpoint.safetensors").stat().st_mtime_ns
            if written != self.checkpoint:
                news.checkpoint = store.load_checkpoint(self.run_id)
                self.checkpoint = written
        if stored.status in DONE:
            with suppress(CheckpointError):  # the sweep may not keep weights
                news.weights = store.load_weights(self.run_id)
        news.records = _records(store, self.run_id, after=self.sent)
        if news.records:
            self.sent = int(news.records[-1].step)
        return news if self.is_over or news.records or news.checkpoint else None


def _room(resource: str) -> int:
    """How many groups the cluster can train at once, as it is now."""
    return int(_ray().cluster_resources().get(resource, 0))


def _knock(address: str) -> None:
    """ConnectionError where nobody listens at "host:port" or "ray://host:port"; Ray itself would try for minutes."""
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if not (colon and port.isdecimal()):
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=5).close()
    except (OSError, OverflowError) as error:
        raise ConnectionError(f"no Ray cluster answers at {address}: {error}") from None


def _ray() -> Any:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        with _own_signals():
            import ray
    except ImportError:
        raise ImportError("ray is not installed: pip install 'grokfast[ray]'") from None
    return ray


@contextmanager
def _own_signals() -> Iterator[None]:
    """Ray sets a handler of SIGTERM; it is not its to set."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
