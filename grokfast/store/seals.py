"""Checksums of what the database holds: a flipped bit is noticed when the row, or the curve, is read.

A row's seal is the CRC-32 (zlib) of its values. A curve's is that of all its bytes, in the row of its run; so a chunk
that is lost, moved or changed is noticed, too.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable
from typing import Any, NamedTuple


class Row(NamedTuple):
    """A row of `runs`, as it is stored. last_step is that of its curve, curve the curve's seal.

    columns: a JSON list of what its curve has beside the step; None: it has had no record yet.
    """

    key: int
    run_id: str
    created: str
    updated: str
    preset: str
    version: str
    device: str
    status: str
    config: str
    result: str | None = None
    hash: str | None = None
    owner: str | None = None
    last_step: int | None = None
    curve: int = 0
    columns: str | None = None


class SweepRow(NamedTuple):
    """A row of `sweeps`, as it is stored."""

    key: int
    sweep_id: str
    created: str
    preset: str
    base: str
    grid: str


class Member(NamedTuple):
    """A row of `members`: the run that has this place in the sweep, both by their primary keys."""

    sweep: int
    place: int
    run: int


def seal(row: Iterable[Any]) -> int:
    """The checksum of a row's values and their types; the same on every machine and with every version of Python."""
    return zlib.crc32(ascii(tuple(row)).encode())


def curve_seal(chunks: Iterable[bytes], before: int = 0) -> int:
    """The checksum of a curve that goes on with these chunks."""
    for chunk in chunks:
        before = zlib.crc32(chunk, before)
    return before
