"""Where the tools keep what they build: compilers, code, an emulator; in a folder of this user alone."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path


def folder() -> Path:
    """Made where it is not there. Raises PermissionError where it is somebody else's."""
    path = Path(tempfile.gettempdir()) / f"grokfast-ptx-{os.getuid()}"
    path.mkdir(mode=0o700, exist_ok=True)
    if path.stat().st_uid != os.getuid():
        raise PermissionError(f"{path} is somebody else's")
    return path
