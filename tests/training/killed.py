"""A process that is killed at its k-th file or SQL event, for many k: `python -m tests.training.killed WHAT ROOT KS`.

WHAT is "train" (a run, to its end) or "remove" (of a sweep with two runs). KS is "all", or how many, evenly spread. For
every k a line of JSON says what became of it, the first of a process that nobody killed. Children are forked, so that
torch is imported once.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import sqlite3
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from grokfast import Experiment, train
from grokfast.store import RunStore
from grokfast.sweeps import InProcess, plan
from grokfast.training import RunResult, resume
from grokfast.training.result import stored_result

TINY = Experiment.preset("quick").override(
    {
        "task.p": 11, "model.width": 16, "schedule.steps": 20, "schedule.eval_every": 5, "schedule.stop_after": None,
        "device": "cpu", "engine": "reference", "schedule.snapshots": "7", "schedule.full_snapshots": True,
    }
)  # fmt: skip
FILE_EVENTS = {"open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.chmod"}


class Events:
    """Counts what happens to files below a folder, and SQL statements; kills this process before the k-th."""

    def __init__(self, folder: Path, k: int | None) -> None:
        self.folder, self.k, self.n = str(folder), k, 0
        sys.addaudithook(self._audited)
        sync, connect = os.fsync, sqlite3.connect

        def fsync(file: Any) -> None:
            self._count()
            sync(file)

        def connected(*arguments: Any, **options: Any) -> sqlite3.Connection:
            db = connect(*arguments, **options)
            db.set_trace_callback(lambda _: self._count())
            return db

        os.fsync, sqlite3.connect = fsync, connected

    def _audited(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event in FILE_EVENTS and str(arguments[0]).startswith(self.folder):
            self._count()

    def _count(self) -> None:
        self.n += 1
        if self.n == self.k:
            os.kill(os.getpid(), signal.SIGKILL)


def forked(action: Callable[[], Any]) -> Any:
    """What the action returns in a child, as JSON values; None where the child was killed."""
    reader, writer = os.pipe()
    if (child := os.fork()) == 0:
        os.close(reader)
        status = 1
        try:
            with os.fdopen(writer, "w") as file:
                json.dump(action(), file)
            status = 0
        except BaseException as error:
            print(json.dumps({"error": repr(error)}), flush=True)
        finally:
            os._exit(status)
    os.close(writer)
    with os.fdopen(reader) as file:
        said = file.read()
    _, status = os.waitpid(child, 0)
    return json.loads(said) if status == 0 else None


def bits(result: RunResult) -> str:
    """A digest of the weights, the curves and what was found."""
    digest = hashlib.sha256()
    for name, tensor in sorted(result.weights.items()):
        digest.update(name.encode() + tensor.numpy().tobytes())
    for name, column in sorted(result.curves.items()):
        digest.update(name.encode() + np.ascontiguousarray(column).tobytes())
    found = {n: v for n, v in result.summary().items() if n not in ("run_id", "seconds", "directory")}
    digest.update(json.dumps(found, sort_keys=True).encode())
    return digest.hexdigest()


def begin(what: str, root: Path) -> None:
    """What is there before the first event."""
    if what == "remove":
        planned = plan(TINY, {"seed": [0, 1]}, store=root, runner=InProcess())
        planned.train()
        (root / planned.sweep_id).mkdir()
        (root / planned.sweep_id / "curves.png").write_bytes(b"a picture")


def act(what: str, root: Path, k: int | None) -> dict[str, Any]:
    events = Events(root, k)
    with RunStore(root) as store:
        if what == "train":
            train(TINY, store=store, checkpoint_every=0)
        else:
            store.sweeps.remove(store.sweeps.list()[0].sweep_id)
    return {"events": events.n}


def look(what: str, root: Path) -> dict[str, Any]:
    """Go on with what is there, write once more, and say what there is then."""
    with RunStore(root) as store:
        runs = store.list()
        found: dict[str, Any] = {"status": [run.status for run in runs], "sweeps": len(store.sweeps.list())}
        if what == "train":
            results = [
                stored_result(store, run.run_id) if run.status == "finished" else resume(run.run_id, store)
                for run in runs
            ]
        else:
            results = [stored_result(store, run.run_id) for run in runs]
        found["bits"] = [bits(result) for result in results]
        extra = store.create({}, preset="after", version="", device="")  # the next write
        store.remove(extra)
        ids = {run.run_id for run in store.list()} | {sweep.sweep_id for sweep in store.sweeps.list()}
    files = {str(path.relative_to(root)) for path in root.rglob("*") if path.is_file()}
    kept = ["weights.safetensors", "checkpoint.safetensors"]  # a finished run may go on
    kept += ["snapshots/7.safetensors", "snapshots/7.state.safetensors"]
    expected = {"grokfast.sqlite", *(f"{run.run_id}/{name}" for run in runs if run.run_id in ids for name in kept)}
    pictures = {path for path in files if path.endswith(".png") and path.partition("/")[0] in ids}
    found["litter"] = sorted(files - expected - pictures)
    found["missing"] = sorted(expected - files)
    folders = {path.name for path in root.iterdir() if path.is_dir()} - {".owners"}
    found["folders"] = sorted(folders - ids)
    return found


def main(what: str, folder: Path, ks: str) -> None:
    torch.set_num_threads(1)

    def one(k: int | None) -> dict[str, Any]:
        root = folder / f"{what}-{k}"
        forked(lambda: begin(what, root))
        ended = forked(lambda: act(what, root, k))
        return {"k": k, "ended": ended, "found": forked(lambda: look(what, root))}

    whole = one(None)
    print(json.dumps(whole), flush=True)
    n = whole["ended"]["events"]
    chosen = range(1, n + 1) if ks == "all" else sorted({1 + round(i) for i in np.linspace(0, n - 1, int(ks)).tolist()})
    for k in chosen:
        print(json.dumps(one(k)), flush=True)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), sys.argv[3])
