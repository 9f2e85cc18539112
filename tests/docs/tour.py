"""Runs the blocks of docs/tour.md in one shell, as somebody who pastes them; `python tests/docs/tour.py` renews it."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

PAGE = Path(__file__).parents[2] / "docs" / "tour.md"
_BLOCK = re.compile(r"^```sh\n(.*?)^```\n\n^```\n(.*?)^```\n", re.M | re.S)
_PROGRESS = re.compile(
    r"step +[\d,]+ (plateau|generalis|memoris|start|train)|\d+/\d+ done, .* (left|s/s)$|This machine does|"
    r".*: \d+ runs; "
)


class Block(NamedTuple):
    """What is typed, and what the page says comes back."""

    typed: str
    shown: list[str]


def blocks(text: str) -> list[Block]:
    return [Block(typed, shown.splitlines()) for typed, shown in _BLOCK.findall(text)]


def run(page: list[Block], where: Path, seconds: float) -> list[list[str]]:
    """What each block says, line by line. Raises where one fails."""
    tools = where / ".tools"  # `grokfast` and `python` are those of this process, installed or not
    tools.mkdir()
    for name, words in {"grokfast": "-m grokfast", "python": ""}.items():
        (tools / name).write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} {words} "$@"\n')
        (tools / name).chmod(0o755)
    script = ["set -euo pipefail"]
    for place, block in enumerate(page):
        script += [f"exec > {tools}/{place}.txt 2>&1", block.typed]
    environment = {**os.environ, "PATH": f"{tools}{os.pathsep}{os.environ['PATH']}", "COLUMNS": "120"}
    environment |= {"CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(PAGE.parents[1])}
    done = subprocess.run(["bash", "-c", "\n".join(script)], cwd=where, env=environment, timeout=seconds)
    said = [(tools / f"{place}.txt") for place in range(len(page))]
    lines = [path.read_text().splitlines() if path.exists() else [] for path in said]
    if done.returncode:
        raise AssertionError("\n".join(["the tour stopped:", *(lines[sum(path.exists() for path in said) - 1])]))
    return lines


def main() -> None:
    text = PAGE.read_text()
    page = blocks(text)
    with tempfile.TemporaryDirectory() as where:
        said = run(page, Path(where), 3600)
        home = str(Path(where).resolve())
    for block, lines in zip(page, said, strict=True):
        kept = [line.rstrip().replace(home, "~/tour") for line in lines if line.strip() and not _PROGRESS.match(line)]
        before = f"```sh\n{block.typed}```\n\n```\n" + "".join(f"{line}\n" for line in block.shown)
        text = text.replace(before, f"```sh\n{block.typed}```\n\n```\n" + "".join(f"{line}\n" for line in kept))
    PAGE.write_text(text)


if __name__ == "__main__":
    main()
