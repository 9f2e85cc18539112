"""What a machine leaves behind: at most three archives, written anew after every part, from which another goes on."""

from __future__ import annotations

import os
import tarfile
from collections.abc import Iterable
from pathlib import Path

LIMIT = 14 << 20  # bytes of an archive
LOG = 1 << 20  # bytes of a log, its end
RESULTS, KERNELS, BUILD = "gpu-results.tar.gz", "gpu-kernels.tar.xz", "gpu-build.tar.xz"
# Of a compiled kernel what is loaded again; its stages on the way are ten times as much.
LOADED = (".cubin", ".json", ".ptx", ".so")


def pack(files: Iterable[Path], folder: Path, archive: Path, limit: int = LIMIT) -> int:
    """Write files, by their places in `folder`, to an archive; how many. Ends before the one that makes it too large.

    What was there before stays until the new one is whole.
    """
    new, packed = archive.with_name(f".{archive.name}"), 0
    fast = {"preset": 1} if archive.suffix == ".xz" else {"compresslevel": 6}
    with new.open("wb") as raw, tarfile.open(fileobj=raw, mode=f"w:{archive.suffix[1:]}", **fast) as tar:  # type: ignore[call-overload]
        for file in files:
            # What the compressor holds back is counted as if it could not be compressed any further.
            if raw.tell() + file.stat().st_size > limit:
                continue
            tar.add(file, file.relative_to(folder), recursive=False)
            packed += 1
    os.replace(new, archive)
    return packed


def unpack(archive: Path, folder: Path) -> bool:
    """Into `folder`; whether there was one. Raises tarfile.TarError, lzma.LZMAError, EOFError or OSError where it is
    torn."""
    if not archive.exists():
        return False
    folder.mkdir(parents=True, exist_ok=True)
    with tarfile.open(archive) as tar:
        tar.extractall(folder, filter="data")
    return True


def kernels(folder: Path) -> list[Path]:
    """Files of compilers' caches that another machine needs, whole kernels, the first made first."""
    of_kernels: dict[Path, list[Path]] = {}
    for file in folder.rglob("*"):
        is_tritons = folder / "triton" in file.parents
        if file.is_file() and (file.suffix in LOADED or not is_tritons):
            of_kernels.setdefault(file.parent, []).append(file)
    order = sorted(of_kernels, key=lambda parent: min(file.stat().st_mtime for file in of_kernels[parent]))
    return [file for parent in order for file in sorted(of_kernels[parent])]


def shorten(log: Path, most: int = LOG) -> None:
    """Keep the end of a log."""
    if log.stat().st_size > most:
        with log.open("rb") as file:
            file.seek(-most, os.SEEK_END)
            end = file.read()
        log.write_bytes(b"...\n" + end)
