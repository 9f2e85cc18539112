"""Standard streams that do not make a command fail: closed, full, or of few characters."""

from __future__ import annotations

import codecs
import os
import signal
import sys
import unicodedata
import warnings
from collections.abc import Callable
from contextlib import suppress
from io import TextIOWrapper
from typing import Any, TextIO, cast

from grokfast.text import one_line

CLOSED_PIPE = 128 + getattr(signal, "SIGPIPE", 13)  # the status of a command that died of one
_PLAIN = {"×": "x", "·": "-", "∘": "o", "•": "*", "≈": "~", "−": "-", "±": "+-", "√": "sqrt "}
_PLAIN |= {"→": "->", "←": "<-", "‖": "||", "Σ": "sum ", "∈": "in", "∝": "~"}
_PLAIN |= {"µ": "u", "λ": "lambda", "α": "alpha", "β": "beta", "σ": "sigma", "≤": "<=", "≥": ">=", "…": "..."}
_PLAIN |= dict(zip("▁▂▃▄▅▆▇█", "_.-~=+*#")) | dict.fromkeys("▏▎▍▌▋▊▉", "-")


def run(command: Callable[[], int]) -> int:
    """The command's exit status; quietly CLOSED_PIPE where whoever read the output has enough, as of any Unix tool.

    What the output's encoding does not have is written in characters that it has. Where the output cannot be written,
    it says so and the status is 1; 130 after Ctrl-C.
    """
    _prepare()
    try:
        try:
            return command()
        finally:
            sys.stdout.flush()
    except BrokenPipeError:
        _discard(sys.stdout)
        return CLOSED_PIPE
    except OSError as error:
        _discard(sys.stdout)
        print(f"grokfast: standard output: {one_line(error)}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


def _prepare() -> None:
    codecs.register_error("grokfast", _plainly)
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:  # it was closed
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115 - as long as the process
        elif isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="grokfast")
    sys.stderr = cast(TextIO, _Lossy(sys.stderr))
    warnings.showwarning = _warn


class _Lossy:
    """Standard error, which only tells of the work: where it cannot be written any more, as its terminal is closed or
    its disk full, the work goes on, and what would be said is dropped."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        try:
            return self._stream.write(text)
        except (OSError, ValueError):
            _discard(self._stream)
            return len(text)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except (OSError, ValueError):
            _discard(self._stream)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def _warn(message: Warning | str, *_: Any, **__: Any) -> None:
    """A warning as any other message, without the line of code that it came from."""
    print(f"grokfast: {one_line(message)}", file=sys.stderr)


def _plainly(error: UnicodeError) -> tuple[str, int]:
    """A codec's error handler."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    return "".join(map(_plain, error.object[error.start : error.end])), error.end


def _plain(character: str) -> str:
    if character in _PLAIN:
        return _PLAIN[character]
    raised = "^" if unicodedata.decomposition(character).startswith("<super>") else ""
    parts = unicodedata.normalize("NFKD", character).encode("ascii", "ignore").decode()
    return f"{raised}{parts}" if parts else "?"


def _discard(stream: TextIO) -> None:
    """What is still to be written, also at the interpreter's end."""
    with suppress(OSError, ValueError):
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, stream.fileno())
        os.close(null)
