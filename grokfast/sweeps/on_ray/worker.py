"""The side of a worker: it trains in a store of its own, and sends what is new there."""

from __future__ import annotations

import pickle
import queue
import tempfile
import threading
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from grokfast.store import CheckpointError, RunStore
from grokfast.store.run import DONE
from grokfast.sweeps.on_ray.parcels import News, Packed, records_after, unpack
from grokfast.sweeps.runner import Event, Group
from grokfast.sweeps.worker import train_group
from grokfast.training.version import version

RUNS_PER_MESSAGE = 32


def train(
    versions: str, group: dict[str, Any], runs: list[Packed], attempt: int, inbox: Any, send_every: float
) -> None:
    """The task. Cancelled, it saves like a process that is interrupted, and sends that, too."""
    if version() != versions:
        raise RuntimeError(f"this node has {version()}, the sweep is one of {versions}")
    with tempfile.TemporaryDirectory(prefix="grokfast-") as directory:
        root = Path(directory)
        unpack(root, runs)
        courier = Courier(root, runs, attempt, inbox, send_every)
        courier.start()
        try:
            with suppress(KeyboardInterrupt):
                train_group(Group.from_dict(group), root, courier.events.put)
        finally:
            courier.over.set()
            courier.join()
        if courier.error is not None:
            raise courier.error


class Courier(threading.Thread):
    """Sends what is new in the worker's store to the driver, until `over` is set, and then what is left."""

    def __init__(self, root: Path, runs: Sequence[Packed], attempt: int, inbox: Any, send_every: float) -> None:
        super().__init__(daemon=True)
        self.root, self.attempt, self.inbox, self.send_every = root, attempt, inbox, send_every
        self.sources = [Source(run) for run in runs]
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


class Source:
    """What of one run has been sent."""

    def __init__(self, run: Packed) -> None:
        self.run_id = run.run_id
        self.sent = int(run.records[-1].step) if run.records else -1
        self.checkpoint: int | None = None  # when the last one that was sent, or received, was written
        self.snapshots: set[int] = set()  # the steps of those that have been sent
        self.is_over = False

    def news(self, store: RunStore) -> News | None:
        """What is to be sent. The checkpoint is read before the curves, which so reach at least as far."""
        if self.is_over:
            return None
        stored = store.get(self.run_id)
        self.is_over = stored.status not in ("pending", "running")
        news = News(self.run_id, [], status=stored.status if self.is_over else None, result=stored.result)
        with suppress(OSError, CheckpointError):  # there is none yet, or none any more
            written = (store.directory(self.run_id) / "checkpoint.safetensors").stat().st_mtime_ns
            if written != self.checkpoint:
                news.checkpoint = store.load_checkpoint(self.run_id)
                self.checkpoint = written
        for step, is_full in store.snapshots.of(self.run_id).items():
            if step not in self.snapshots:
                state = store.snapshots.state(self.run_id, step)[0] if is_full else None
                news.snapshots.append((step, *store.snapshots.weights(self.run_id, step), state))
                self.snapshots.add(step)
        if stored.status in DONE:
            news.has_checkpoint = store.has_checkpoint(self.run_id)
            with suppress(CheckpointError):  # the sweep may not keep weights
                news.weights = store.load_weights(self.run_id)
        news.records = records_after(store, self.run_id, self.sent)
        if news.records:
            self.sent = int(news.records[-1].step)
        return news if self.is_over or news.records or news.checkpoint or news.snapshots else None
