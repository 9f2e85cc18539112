"""A worker process of `Processes`: `python -m grokfast.sweeps.child ROOT`.

A line of standard input is a group, as JSON; lines of standard output are what became of it: {"event": ...} any number
of times, then {"done": true}, or {"fatal": kind, "message": ...} where the store fails. At the end of standard input,
also in the middle of a group, the parent is gone: the process ends at once. SIGTERM and SIGHUP save first.
"""

from __future__ import annotations

import json
import os
import queue
import sys
import threading
from pathlib import Path
from types import FrameType
from typing import Any, TextIO

from grokfast.store import StoreError
from grokfast.sweeps.runner import Event, Group
from grokfast.sweeps.worker import train_group
from grokfast.training.interrupt import handled


def main() -> int:
    root, said = Path(sys.argv[1]), os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a library prints is no message
    groups: queue.SimpleQueue[str] = queue.SimpleQueue()
    threading.Thread(target=_listen, args=(groups,), daemon=True).start()
    try:
        with handled(_terminated):
            _say(said, {"ready": True})
            while True:
                group = Group.from_dict(json.loads(groups.get()))
                train_group(group, root, lambda event: _tell(said, event))
                _say(said, {"done": True})
    except KeyboardInterrupt:
        return 130
    except StoreError as error:
        _say(said, {"fatal": type(error).__name__, "message": str(error)})
        return 1


def _listen(groups: queue.SimpleQueue[str]) -> None:
    for line in sys.stdin:
        groups.put(line)
    os._exit(0)


def _tell(said: TextIO, event: Event) -> None:
    _say(said, {"event": event.to_dict()})


def _say(said: TextIO, message: dict[str, Any]) -> None:
    said.write(json.dumps(message) + "\n")
    said.flush()


def _terminated(signum: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
