"""A runner of worker processes on this machine: one per core, with one thread each, or one per GPU."""

from __future__ import annotations

import json
import os
import queue
import subprocess
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import grokfast
from grokfast import checks
from grokfast.store import StoreError, StoreFullError
from grokfast.sweeps.runner import RETRIES, Event, Group, Report
from grokfast.sweeps.worker import give_up
from grokfast.training.interrupt import StopRequest, stop_requests

GRACE = 30.0  # seconds in which a worker saves its runs when it is told to stop
LOOK_EVERY = 0.1  # seconds between two looks at whether to stop
ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")


def cores() -> int:
    """The CPU cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


class Processes:
    """At most `n` workers (default: one per core, or one per GPU), each of which lives until there are no groups left.

    A worker imports torch once. One that dies is replaced, see `Runner.run`; one that dies before it was ready, RETRIES
    times in a row, leaves its work to the others. Raises TypeError or ValueError for n.
    """

    def __init__(self, n: int | None = None) -> None:
        self.n = None if n is None else checks.integer("processes", n, minimum=1)

    @property
    def workers(self) -> int:
        return self.n or cores()

    def where(self) -> str:
        return f"{self.workers} process{'es' if self.workers > 1 else ''}"

    def run(self, groups: Sequence[Group], root: Path, report: Report) -> None:
        work = _Work(deque(_Task(group) for group in groups), root)
        slots = [_Slot(work, environment) for environment in self._environments(groups)]
        with stop_requests() as stop:  # until every worker has saved
            try:
                for slot in slots:
                    slot.thread.start()
                self._take_in(work, len(slots), report, stop)
            except BaseException:
                with work.starting:
                    work.is_stopping = True
                _stop(slots, stop)
                raise

    def _take_in(self, work: _Work, slots: int, report: Report, stop: StopRequest) -> None:
        """Pass on what the slots tell, until all have ended."""
        failure: ChildProcessError | None = None
        while slots:
            if stop.is_set():
                raise KeyboardInterrupt
            try:
                news = work.inbox.get(timeout=LOOK_EVERY)
            except queue.Empty:
                continue
            if isinstance(news, Event):
                report(news)
            elif isinstance(news, _Task):
                give_up(news.group, work.root, news.why, report)
            elif isinstance(news, ChildProcessError):
                failure = news
            elif isinstance(news, Exception):
                raise news
            else:
                slots -= 1
        if work.todo and failure is not None:
            raise failure

    def _environments(self, groups: Sequence[Group]) -> list[dict[str, str]]:
        """Of each worker: one thread, or one GPU."""
        if all(group.device == "cpu" for group in groups):
            return [dict(ONE_THREAD)] * min(self.workers, len(groups))
        import torch

        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        gpus = visible.split(",") if visible else [str(i) for i in range(torch.cuda.device_count())]
        n = min(self.n or len(gpus), len(groups))
        return [{"CUDA_VISIBLE_DEVICES": gpus[i % len(gpus)]} for i in range(n)]


@dataclass
class _Task:
    group: Group
    deaths: int = 0
    why: str = ""


@dataclass
class _Work:
    """What the slots share: groups to train, and the news for the thread that called `run` (None: a slot has ended)."""

    todo: deque[_Task]
    root: Path
    inbox: queue.SimpleQueue[Event | _Task | Exception | None] = field(default_factory=queue.SimpleQueue)
    is_stopping: bool = False
    starting: threading.Lock = field(default_factory=threading.Lock)  # held while a worker is started


class _Slot:
    """A thread that keeps one worker process busy and replaces it when it dies."""

    def __init__(self, work: _Work, environment: dict[str, str]) -> None:
        self.work, self.environment = work, environment
        self.child: _Child | None = None
        self.failed_starts = 0  # in a row
        self.thread = threading.Thread(target=self._serve, daemon=True)

    def _serve(self) -> None:
        try:
            while not self.work.is_stopping and (task := self._next()) is not None:
                self._train(task)
        except Exception as error:
            self.work.inbox.put(error)
        finally:
            if self.child is not None:
                self.child.close()
            self.work.inbox.put(None)

    def _next(self) -> _Task | None:
        try:
            return self.work.todo.popleft()
        except IndexError:
            return None

    def _train(self, task: _Task) -> None:
        with self.work.starting:
            if self.work.is_stopping:
                return
            if self.child is None:
                try:
                    self.child = _Child(self.work.root, self.environment)
                except OSError as error:
                    self._failed_to_start(task, str(error))
                    return
        if self.child.train(task.group, self.work) or self.work.is_stopping:
            self.failed_starts = 0
            return
        died, was_ready, self.child = self.child.death(), self.child.was_ready, None
        if not was_ready:
            self._failed_to_start(task, died)
            return
        self.failed_starts = 0
        task.deaths, task.why = task.deaths + 1, f"its worker died {task.deaths + 1} times: {died}"
        if task.deaths > RETRIES:
            self.work.inbox.put(task)
        else:
            self.work.todo.appendleft(task)

    def _failed_to_start(self, task: _Task, why: str) -> None:
        """The task is not to blame. Raises ChildProcessError where this has been tried often enough."""
        self.work.todo.appendleft(task)
        self.failed_starts += 1
        if self.failed_starts > RETRIES:
            raise ChildProcessError(f"a worker process did not start {self.failed_starts} times: {why}")


class _Child:
    """One worker process."""

    def __init__(self, root: Path, environment: dict[str, str]) -> None:
        self.was_ready = False
        self._errors: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the process
        path = [str(Path(grokfast.__file__).parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])]
        self.process = subprocess.Popen(
            [sys.executable, "-m", "grokfast.sweeps.child", str(root)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            env={**os.environ, **environment, "PYTHONPATH": os.pathsep.join(path)},
            start_new_session=True,  # Ctrl-C is for the parent, which tells its workers itself
        )

    def train(self, group: Group, work: _Work) -> bool:
        """Have the group trained and pass the events on; False if the process ended before the group did."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        try:
            self.process.stdin.write(json.dumps(group.to_dict()) + "\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            return False
        for line in self.process.stdout:
            try:
                message: dict[str, Any] = json.loads(line)
            except ValueError:  # it was killed in the middle of a line
                return False
            self.was_ready = True
            if "event" in message:
                work.inbox.put(Event.from_dict(message["event"]))
            elif "fatal" in message:
                kind = StoreFullError if message["fatal"] == StoreFullError.__name__ else StoreError
                raise kind(message["message"])
            elif "done" in message:
                return True
        return False

    def death(self) -> str:
        """Why it ended: exit status or signal, and the last lines of what it said."""
        status = self.process.wait()
        self._errors.seek(0)
        last = self._errors.read().decode(errors="replace").strip().splitlines()[-3:]
        self.close()
        how = f"signal {-status}" if status < 0 else f"exit status {status}"
        return " | ".join([how, *last])

    def close(self) -> None:
        """End an idle process."""
        assert self.process.stdin is not None
        with suppress(BrokenPipeError):
            self.process.stdin.close()
        self.process.wait()
        if self.process.stdout is not None:
            self.process.stdout.close()
        self._errors.close()


def _stop(slots: Sequence[_Slot], stop: StopRequest) -> None:
    """Have every worker save its runs and end; kill those that do not, or all where it is urgent."""
    children = [slot.child.process for slot in slots if slot.child is not None]
    until = time.monotonic() + GRACE
    with stop.saving():
        for process in children:
            process.terminate()
        while any(process.poll() is None for process in children):
            if time.monotonic() > until or stop.is_urgent():
                break
            time.sleep(LOOK_EVERY / 10)
        for process in children:
            process.kill()
