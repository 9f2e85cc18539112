"""The side of the sweep's store: hands groups out, takes news in, and begins again what was lost."""

from __future__ import annotations

import itertools
import pickle
import time
import warnings
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any

from grokfast.store import RunStore
from grokfast.store.run import DONE
from grokfast.sweeps.on_ray.cluster import capacity, load_ray
from grokfast.sweeps.on_ray.parcels import News, pack
from grokfast.sweeps.on_ray.worker import train
from grokfast.sweeps.runner import RETRIES, Group, Report
from grokfast.sweeps.worker import ended, give_up
from grokfast.training.interrupt import StopRequest, stop_requests
from grokfast.training.version import version

SEND_EVERY = 1.0  # seconds between two deliveries of a worker
RUNS_PER_SECOND = 50  # that a delivery may look at, so that training large ensembles does not wait for it
MESSAGES = 64  # that wait for the driver at most
LOOK_EVERY = 0.3  # seconds between two looks of the driver at what was delivered
GRACE = 30.0  # seconds in which the workers save their runs when they are told to stop


@dataclass
class Task:
    """A group, how often its worker was lost, and the number of this attempt: news of others are late."""

    group: Group
    deaths: int = 0
    why: str = ""
    attempt: int = -1


@dataclass
class Driver:
    """The side of the sweep's store."""

    store: RunStore
    groups: Sequence[Group]
    report: Report
    running: dict[Any, Task] = field(default_factory=dict)  # by the reference that Ray gave
    ended: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        from ray.util.queue import Queue
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        here = NodeAffinitySchedulingStrategy(load_ray().get_runtime_context().get_node_id(), soft=False)
        self.inbox = Queue(MESSAGES, actor_options={"num_cpus": 0, "scheduling_strategy": here})
        self.inbox.qsize()  # it is there before any worker wants to send
        self.todo = deque(Task(group) for group in self.groups)
        self.attempts = itertools.count()
        self.resource = "CPU" if all(group.device == "cpu" for group in self.groups) else "GPU"

    def run(self) -> None:
        """Train all groups to their ends; see `Runner.run`."""
        if self.todo and not capacity(self.resource):
            warnings.warn(f"this Ray cluster has no {self.resource} yet: waiting for one", stacklevel=3)
        with stop_requests() as stop:  # news is taken in whole, or the curves would have gaps
            try:
                while self.todo or self.running:
                    if stop.is_set():
                        raise KeyboardInterrupt
                    self._submit()
                    self._wait(LOOK_EVERY)
            except BaseException as error:
                with stop.saving():
                    self._stop(stop, save=isinstance(error, KeyboardInterrupt))
                raise
            finally:
                with suppress(load_ray().exceptions.RayError):
                    self.inbox.shutdown(force=True)

    def _submit(self) -> None:
        """Hand out as many groups as there is room for, and one more; runs that another process trains have to wait."""
        room = max(capacity(self.resource), 1) + 1
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

    def _start(self, task: Task) -> None:
        needs = {"num_cpus": 1} if task.group.device == "cpu" else {"num_cpus": 1, "num_gpus": 1}
        remote = load_ray().remote(train).options(max_retries=0, name="grokfast", **needs)
        runs = [pack(self.store, run_id) for run_id in task.group.runs]
        every = max(SEND_EVERY, len(runs) / RUNS_PER_SECOND)
        reference = remote.remote(version(), task.group.to_dict(), runs, task.attempt, self.inbox, every)
        self.running[reference] = task

    def _wait(self, seconds: float) -> None:
        """Take in what the workers sent, and what became of them. A worker sends its last news before it ends."""
        ray = load_ray()
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

    def _store(self, news: News) -> None:
        """Curves before the checkpoint, and the status last, as the training loop does."""
        self.store.append(news.run_id, news.records)
        for snapshot in news.snapshots:
            self.store.snapshots.save(news.run_id, *snapshot)
        if news.checkpoint is not None:
            self.store.save_checkpoint(news.run_id, *news.checkpoint)
        if news.weights is not None:
            self.store.save_weights(news.run_id, news.weights)
        if news.status is not None:
            self.store.update(news.run_id, status=news.status, result=news.result)
        if not news.has_checkpoint:
            self.store.drop_checkpoint(news.run_id)

    def _lost(self, task: Task, error: Exception) -> None:
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
            self.report(ended(stored))
        return stored.status in DONE

    def _stop(self, stop: StopRequest, save: bool) -> None:
        """Cancel all tasks; with `save` each first saves its runs, and that is taken in, unless it is urgent."""
        ray = load_ray()
        begun = [task for task in (*self.running.values(), *self.todo) if task.attempt >= 0]
        try:
            if save:
                for reference in self.running:
                    ray.cancel(reference)
                until = time.monotonic() + GRACE
                while self.running and time.monotonic() < until and not stop.is_urgent():
                    self._wait(LOOK_EVERY)
        finally:
            for reference in self.running:
                ray.cancel(reference, force=True)
        for run_id in (run_id for task in begun for run_id in task.group.runs):
            if save and self.store.get(run_id).status == "running":
                self.store.update(run_id, status="interrupted")
