"""Everything that only a machine with an NVIDIA GPU can say: what must hold first, then the times.

python -m benchmarks.gpu --call 1 --out DIR [--from PACK] [--minutes 9]    # then --call 2 and 3, --from what 1 left
python -m benchmarks.gpu --parts NAME ... --out DIR [--from PACK]
python -m benchmarks.gpu --dry-run [--call N]                              # what would be done, with seconds; no GPU

All work is done in `--work`, outside of DIR, which gets four files at most, written anew after every part: `gpu.md`,
the tables with device, clocks, versions and date; and what another machine goes on from: results and logs, compiled
kernels, the built extension. PACK is a folder with these; a call then begins with parts of earlier ones that were not
begun. A part that fails or takes too long is noted and does not stop the others: it gets SIGINT, after a while SIGKILL.
None is begun that the minutes leave no time for. Nothing is fetched from a network.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import lzma
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch

from benchmarks import gpu_pack
from benchmarks.gpu_parts import CALLS, MINUTES, Part, parts, plan
from benchmarks.gpu_report import CLOCKS, clocks, report
from benchmarks.interleave import machine

ROOT = Path(__file__).parents[1]
GRACE = 8.0  # seconds from SIGINT to SIGKILL
RESERVE = 15.0  # seconds of a call that stay for packing
LEAST = 5.0  # seconds without which no part is begun


class Work:
    """The folder that parts work in. Its place must be the same on every machine: Triton's cache has whole paths."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.results, self.caches = folder, folder / "results", folder / "caches"
        for each in (self.results, self.caches):
            each.mkdir(parents=True, exist_ok=True)
        self.state = self.results / "parts.json"

    @property
    def environment(self) -> dict[str, str]:
        caches = {"TRITON_CACHE_DIR": "triton", "TORCHINDUCTOR_CACHE_DIR": "inductor"}
        return {**os.environ, "PYTHONUNBUFFERED": "1", **{key: str(self.caches / of) for key, of in caches.items()}}

    def begun(self) -> dict[str, dict[str, Any]]:
        """How parts went, of earlier calls, too."""
        try:
            return dict(json.loads(self.state.read_text()))
        except (OSError, ValueError):
            return {}

    def forget(self, name: str) -> None:
        self.state.write_text(json.dumps({of: about for of, about in self.begun().items() if of != name}) + "\n")

    def note(self, name: str, **about: Any) -> None:
        self.state.write_text(json.dumps(self.begun() | {name: about}, indent=1) + "\n")

    def restore(self, pack: Path, only_results: bool = False) -> Iterator[str]:
        """What was there, and what was not or is torn, in words. Raises ValueError where there are no results."""
        if not (pack / gpu_pack.RESULTS).exists():
            raise ValueError(f"--from must be a folder with {gpu_pack.RESULTS}, got {pack}")
        places = {gpu_pack.RESULTS: self.results, gpu_pack.KERNELS: self.caches, gpu_pack.BUILD: ROOT}
        for name, folder in places.items():
            if only_results and name != gpu_pack.RESULTS:
                continue
            if name == gpu_pack.BUILD and self.begun().get("build", {}).get("sources") != sources():
                self.forget("build")
                yield f"{name}: left out, it is of other sources"
                continue
            try:
                yield f"{name}: {'taken' if gpu_pack.unpack(pack / name, folder) else 'not there'}"
            except (tarfile.TarError, lzma.LZMAError, EOFError, OSError) as error:
                yield f"{name}: left out, {type(error).__name__}: {error}"

    def save(self, out: Path) -> list[str]:
        """Write the report and the archives; what did not fit, in words."""
        out.mkdir(parents=True, exist_ok=True)
        (out / "gpu.md").write_text(report(self.results, self.begun(), machine()))
        for log in self.results.glob("*.txt"):
            gpu_pack.shorten(log)
        extension = [*ROOT.glob("grokfast/_C*.so"), *ROOT.glob("grokfast/_build_info.json")]
        said = []
        for name, folder, files in (
            (gpu_pack.RESULTS, self.results, sorted(file for file in self.results.rglob("*") if file.is_file())),
            (gpu_pack.KERNELS, self.caches, gpu_pack.kernels(self.caches)),
            (gpu_pack.BUILD, ROOT, extension if "build" in self.begun() else []),
        ):
            if files and (packed := gpu_pack.pack(files, folder, out / name)) < len(files):
                said.append(f"{name}: {packed} of {len(files)} files fit")
        return said


def sources() -> str:
    """A fingerprint of what the extension is built from."""
    files = sorted(file for file in (ROOT / "csrc").rglob("*") if file.is_file())
    texts = [file.relative_to(ROOT).as_posix().encode() + file.read_bytes() for file in [*files, ROOT / "setup.py"]]
    return hashlib.sha256(b"".join(texts)).hexdigest()[:16]


def run(part: Part, limit: float, work: Work) -> str:
    """Run one part, its output to NAME.txt of the results, and say in a line how it went."""
    begun, name = time.monotonic(), part.name
    command = [word.format(out=work.results) for word in part.command]
    with (work.results / f"{name}.txt").open("w") as file, sampled(work.results / f"{name}-clocks.csv"):
        process = subprocess.Popen(
            command, stdout=file, stderr=subprocess.STDOUT, env=work.environment, cwd=ROOT, start_new_session=True
        )
        try:
            code: int | str = process.wait(limit)
        except subprocess.TimeoutExpired:
            code = f"stopped after {limit:.0f} s"
        finally:
            how = stop(process)
    code = f"{code}{how}" if isinstance(code, str) else code
    return f"{'passed' if code == 0 else f'failed ({code})'}, {time.monotonic() - begun:.0f} s"


def stop(process: subprocess.Popen[bytes], grace: float | None = None) -> str:
    """End a process, with those that it started: SIGINT, so that it can say what it has, and after a while SIGKILL."""
    how = ""
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGINT)
        try:
            process.wait(GRACE if grace is None else grace)
        except subprocess.TimeoutExpired:
            how = ", killed"
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    return how


@contextmanager
def sampled(file: Path) -> Iterator[None]:
    """While a block of code runs, nvidia-smi writes CLOCKS to a file, every second."""
    if shutil.which("nvidia-smi") is None:
        yield
        return
    command = ["nvidia-smi", f"--query-gpu={CLOCKS}", "--format=csv,noheader,nounits", "--loop=1"]
    with file.open("w") as samples:
        process = subprocess.Popen(command, stdout=samples, stderr=subprocess.DEVNULL)
        try:
            yield
        finally:
            process.kill()
            process.wait()


def described(todo: Sequence[Part], minutes: float) -> Iterator[str]:
    """The plan as text."""
    yield f"{'call':>4} {'part':<22} {'seconds':>7} {'at most':>7}"
    for part in todo:
        words = [word.format(out="DIR") for word in part.command[1:]]
        yield f"{part.call:>4} {part.name:<22} {part.seconds:>7} {part.limit:>7}  python {' '.join(words)}"
    yield f"{sum(part.seconds for part in todo)} s expected, of {60 * minutes - RESERVE:.0f} s; guesses, not measured"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="folder for what comes back")
    parser.add_argument("--call", type=int, choices=CALLS, help="which of three; default: all parts")
    parser.add_argument("--parts", nargs="+", choices=[part.name for part in parts()], help="these, in this order")
    parser.add_argument("--from", type=Path, dest="pack", help="folder with what an earlier call left")
    parser.add_argument("--minutes", type=float, default=MINUTES, help="for all of it")
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "grokfast-gpu")
    parser.add_argument("--dry-run", action="store_true", help="say what would be done")
    args = parser.parse_args()
    deadline = time.monotonic() + 60 * args.minutes - RESERVE
    work = Work(Path(tempfile.mkdtemp()) if args.dry_run else args.work)
    if args.pack is not None:
        for line in work.restore(args.pack, only_results=args.dry_run):
            print(line, flush=True)
    todo = plan(args.call, args.parts, set() if args.pack is None else set(work.begun()))
    if args.dry_run:
        print("\n".join(described(todo, args.minutes)))
        shutil.rmtree(work.folder)
        return 0
    if args.out is None:
        raise SystemExit("--out is missing: the folder for what comes back")
    if not torch.cuda.is_available():
        raise SystemExit("needs an NVIDIA GPU and a CUDA build of torch; --dry-run says what would be done")
    # As from a terminal: what a background shell starts ignores SIGINT, with all that it starts. A part ends with us.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)
    went = []
    for part in todo:
        if (left := deadline - time.monotonic()) < LEAST:
            print(f"{part.name}: not begun, no time", flush=True)
            went.append(False)
            continue
        said = run(part, min(part.limit, left), work)
        about = {"sources": sources()} if part.name == "build" else {}
        work.note(part.name, said=said, clocks=clocks(work.results / f"{part.name}-clocks.csv"), **about)
        for line in (f"{part.name}: {said}", *work.save(args.out)):
            print(line, flush=True)
        went.append(said.startswith("passed"))
    return int(not all(went))


if __name__ == "__main__":
    sys.exit(main())
