"""`backend`, an attribute of this module: what a block of code has chosen by `grokfast.backend.using`, else None.

Each thread and each asyncio task has its own. torch.compile cannot trace `chosen.get()`, but guards an attribute: it
asks for it anew at every call of a compiled function, in the thread that calls.
"""

from __future__ import annotations

from contextvars import ContextVar

chosen: ContextVar[str | None] = ContextVar("grokfast.backend", default=None)


def __getattr__(name: str) -> str | None:
    if name == "backend":
        return chosen.get()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
