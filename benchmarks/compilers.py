"""The kernels under more than one compiler: two versions of Triton, each with its own ptxas and with that of CUDA 13.

python -m benchmarks.compilers [--triton 3.6.0 | --python PYTHON] [--kernel PATTERN ...] [--capability 80 90 100]
                               [--all] [--tests | --no-kernels] [--out FILE]

Compiles what is in danger: kernels that had more than 240 registers of 255 in kernel-resources.json, or are not what
they were there (--all: every one). What FILE knows of a kernel that is unchanged since, with all that it is compiled
from, is not compiled again; it is written kernel by kernel, so that a run that is stopped goes on where it was.
--tests runs the kernels' tests besides, those in Triton's interpreter, the launches' and the emulator's, under both.
The other Triton is installed into a folder of its own, or is that of another PYTHON. The other ptxas is that of
TRITON_PTXAS_PATH, or the one on the path or in CUDA_HOME. A kernel that cannot be compiled, spills 100 bytes or needs
more shared memory than there is fails; one that spills less is a warning, with the versions that do it.
TRITON_INTERPRET must not be set.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import triton
from triton.backends.nvidia.compiler import get_ptxas

from benchmarks.folder import folder
from benchmarks.interleave import machine
from benchmarks.prediction.shipped import shipped
from benchmarks.resources import FAR, MANY, TRITONS_OPTIONS, assemble, compile_offline, fingerprint
from grokfast.ops.configurations import LEAST_SHARED_BYTES, SHARED_BYTES

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
CHANGES = ("TRITON_INTERPRET", "TRITON_PTXAS_PATH", "TRITON_PTXAS_BLACKWELL_PATH")  # what Triton is
NUMPY = "numpy<2.4"  # with a newer one the interpreter of Triton 3.6 cannot count to a number that it is given
TESTS = (
    "tests/ops", "tests/models/transformer/test_fused.py", "tests/models/transformer/test_planned_step.py",
    "tests/transforms/test_flat.py", "tests/transforms/test_clock.py", "tests/ptx", "tests/test_kernel_launches.py",
)  # fmt: skip


@dataclass(frozen=True)
class Environment:
    """A Triton: the Python that has it, and what has to come first on that one's path."""

    python: str
    path: str = ""

    def run(self, *arguments: str, **options: Any) -> subprocess.Popen[str]:
        known = {name: value for name, value in os.environ.items() if name not in CHANGES}
        places = [part for part in (self.path, known.get("PYTHONPATH", "")) if part]
        known["PYTHONPATH"] = os.pathsep.join(places)
        return subprocess.Popen([self.python, *arguments], cwd=ROOT, env=known, text=True, **options)


def installed(version: str) -> Environment:
    """This Python with another Triton, from `folder` where it was installed before."""
    path = folder() / f"triton-{version}"
    if not path.exists():
        new = path.with_name(f"{path.name}.{os.getpid()}")
        wanted = ["--no-deps", "--target", str(new), f"triton=={version}", NUMPY]
        subprocess.run([sys.executable, "-m", "pip", "install", "-q", *wanted], check=True)
        new.rename(path)
    return Environment(sys.executable, str(path))


def other_ptxas() -> str | None:
    """That which is not Triton's."""
    toolkit = Path(os.environ.get("CUDA_HOME", "/usr/local/cuda")) / "bin" / "ptxas"
    return os.environ.get("TRITON_PTXAS_PATH") or shutil.which("ptxas") or shutil.which(str(toolkit))


@cache
def release(ptxas: str) -> str:
    said = subprocess.run([ptxas, "--version"], capture_output=True, text=True, check=True).stdout
    found = re.search(r"release (\d+\.\d+)", said)
    if found is None:
        raise RuntimeError(f"{ptxas} does not say its version: {said}")
    return found[1]


def newest_ptx(release: str) -> str:
    """The version of PTX that came with a CUDA: 8.7 with 12.8, 9.0 with 13.0."""
    major, minor = map(int, release.split("."))
    return f"9.{minor}" if major == 13 else f"8.{minor - (minor > 5)}"


def found_by(config: Mapping[str, Any], capability: int, ptxas: str | None) -> dict[str, Any]:
    """[registers, bytes spilled, bytes shared] by compiler, as Triton calls it; or what it says instead."""
    own = get_ptxas(capability).path
    names = {path: f"Triton {triton.__version__}, ptxas {release(path)}" for path in (own, ptxas) if path}
    try:
        made = compile_offline(dict(config), capability)
    except Exception as error:  # of many kinds; each is a finding
        said = f"{type(error).__name__}: {error}".strip().splitlines()
        return {names[own]: f"{said[0]} ... {said[-1]}"}
    found: dict[str, Any] = {}
    for path, name in names.items():
        version = re.search(r"\.version (\d+\.\d+)", made.asm["ptx"])
        assert version, made.asm["ptx"][:200]
        spoken = min(version[1], newest_ptx(release(path)), key=float)
        text = made.asm["ptx"].replace(version[0], f".version {spoken}", 1)
        try:
            found[name] = [*assemble(path, text, capability, TRITONS_OPTIONS), made.metadata.shared]
        except RuntimeError as error:
            found[name] = str(error)
    return found


def _work(ptxas: str | None) -> None:
    """Under one Triton: from fingerprints and capabilities, line by line, to what is found."""
    configs = {fingerprint(config): config for config in shipped()}
    for line in sys.stdin:
        of, capability = json.loads(line)
        found = found_by(configs[of], capability, ptxas) if of in configs else {}
        print(json.dumps(found), flush=True)


def compiled(environment: Environment, places: Sequence[tuple[str, int]]) -> Iterator[dict[str, Any]]:
    """What is found at each place, under one Triton."""
    arguments = ["-m", "benchmarks.compilers", "--work", *([ptxas] if (ptxas := other_ptxas()) else [])]
    worker = environment.run(*arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert worker.stdin, worker.stdout
    with worker:
        for place in places:
            worker.stdin.write(json.dumps(place) + "\n")
            worker.stdin.flush()
            line = worker.stdout.readline()
            if not line:
                raise RuntimeError(f"the compiler of {environment} ended")
            yield json.loads(line)


def version_of(environment: Environment) -> str:
    asked = environment.run("-c", "import triton; print(triton.__version__)", stdout=subprocess.PIPE)
    return asked.communicate()[0].strip()


def in_danger(capabilities: Iterable[int], patterns: Sequence[str], everything: bool) -> list[dict[str, Any]]:
    """Kernels and where, those first that spill or are not known."""
    table = json.loads((RESULTS / "kernel-resources.json").read_text())["rows"]
    known = {(row["from"], row["sm"]): (row["spilled_bytes"], row["registers"]) for row in table}
    rows = []
    for config in shipped():
        for capability in capabilities:
            if capability in config.get("capabilities", [capability]) and all(
                re.search(w, config["name"]) for w in patterns
            ):
                row = {"kernel": config["name"], "from": fingerprint(config), "sm": capability}
                danger = known.get((row["from"], capability), (MANY, 255))
                rows += [(danger, row)] if everything or danger > (0, FAR) else []
    return [row for _, row in sorted(rows, key=lambda one: one[0], reverse=True)]


def faults(row: Mapping[str, Any]) -> Iterator[tuple[bool, str]]:
    """What is wrong with a kernel, and whether that is more than a warning."""
    limit = SHARED_BYTES.get(row["sm"], LEAST_SHARED_BYTES)
    for compiler, found in row["found"].items():
        what = f"{compiler}, sm_{row['sm']}, {row['kernel']}"
        if isinstance(found, str):
            yield True, f"{what}: {found}"
        elif found[1] or found[2] > limit:
            yield found[1] >= MANY or found[2] > limit, f"{what}: {found[1]} bytes spilled, {found[2]:,} shared"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--triton", default="3.6.0", help="the other one")
    parser.add_argument("--python", help="one that has the other Triton, and all else")
    parser.add_argument("--kernel", nargs="+", default=[], help="regular expressions that all are in its name")
    parser.add_argument("--capability", type=int, nargs="+", default=[80, 90, 100])
    parser.add_argument("--all", action="store_true", help="kernels far from spilling, too")
    parser.add_argument("--tests", action="store_true")
    parser.add_argument("--no-kernels", action="store_true", help="only tests")
    parser.add_argument("--out", type=Path, default=RESULTS / "kernel-compilers.json")
    parser.add_argument("--work", nargs="?", const="", default=None, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.work is not None:
        _work(args.work or None)
        return 0
    both = [Environment(sys.executable), Environment(args.python) if args.python else installed(args.triton)]
    if other_ptxas() is None:
        print("Only Triton's own ptxas was found: no other was run (TRITON_PTXAS_PATH)")
    failed = False if args.no_kernels else _kernels(both, args)
    for environment in both if args.tests or args.no_kernels else []:
        failed |= _tests(environment)
    return int(failed)


def _kernels(both: Sequence[Environment], args: argparse.Namespace) -> bool:
    """Compile what is not known, and say what is wrong of all that is."""
    wanted = in_danger(args.capability, args.kernel, args.all)
    before = json.loads(args.out.read_text())["rows"] if args.out.exists() else []
    known = {(row["from"], row["sm"]): row["found"] for row in before}
    rows = [row | {"found": known.get((row["from"], row["sm"]), {})} for row in wanted]
    current = {fingerprint(config) for config in shipped()}
    places = {(row["from"], row["sm"]) for row in rows}
    kept = [row for row in before if row["from"] in current and (row["from"], row["sm"]) not in places]
    for environment in both:
        begins = f"Triton {version_of(environment)}, "
        todo = [row for row in rows if not any(name.startswith(begins) for name in row["found"])]
        print(f"{begins}{len(todo)} of {len(rows)} kernels to compile", flush=True)
        for row, found in zip(todo, compiled(environment, [(row["from"], row["sm"]) for row in todo])):
            row["found"] |= found
            _write(args.out, [row for row in [*kept, *rows] if row["found"]])
            said = "; ".join(f"{name}: {value}" for name, value in found.items())
            print(f"sm_{row['sm']:<4} {row['kernel']}: {said}", flush=True)
    all_faults = [fault for row in rows for fault in faults(row)]
    for fails, text in all_faults:
        print(f"{'FAILS' if fails else 'Warning'}: {text}")
    return any(fails for fails, _ in all_faults)


def _write(out: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """A kernel a line."""
    head = json.dumps({"title": "Kernels under several compilers", "machine": machine()}, indent=1)
    lines = ",\n".join("  " + json.dumps(row) for row in rows)
    out.write_text(f'{head[:-2]},\n "rows": [\n{lines}\n ]\n}}\n')


def _tests(environment: Environment) -> bool:
    """Whether one fails."""
    print(f"Triton {version_of(environment)}: {' '.join(TESTS)}", flush=True)
    return environment.run("-m", "pytest", "-m", "", "-n", "0", *TESTS).wait() != 0


if __name__ == "__main__":
    sys.exit(main())
