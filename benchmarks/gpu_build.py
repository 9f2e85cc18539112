"""What the machine has, and the extension built with CUDA where it stands, without a network; then it is imported.

python -m benchmarks.gpu_build

Builds by setup.py, not by pip, which would fetch setuptools, pybind11 and ninja though they are there. Where one of
these or nvcc is missing the extension is built without CUDA, or not at all: it is said, and the exit status is 1;
everything else runs without it, on Triton and plain PyTorch.
"""

from __future__ import annotations

import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

from benchmarks.interleave import machine

ROOT = Path(__file__).parents[1]
BUILD = ("setuptools", "pybind11", "ninja")
TOOLS = {"nvcc": "--version", "c++": "--version", "ptxas": "--version", "nvidia-smi": "-L"}
IMPORTED = "import sys; from grokfast import backend; e = backend.extension(); print(backend.build_info()); "
IMPORTED += "sys.exit(0 if e is not None and e.with_cuda else 1)"


def packages() -> list[str]:
    """Names of what pyproject.toml needs to run, to test and to build."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [*project["dependencies"], *project["optional-dependencies"]["test"], *BUILD]
    return list(dict.fromkeys(re.split(r"[ >=<;\[]", one)[0] for one in wanted))


def found() -> Iterator[str]:
    """Device and versions, a line each; what is missing, too."""
    yield from (f"{key}: {value}" for key, value in machine().items())
    for name in packages():
        try:
            yield f"{name} {importlib.metadata.version(name)}"
        except importlib.metadata.PackageNotFoundError:
            yield f"{name}: missing"
    for tool, option in TOOLS.items():
        if shutil.which(tool) is None:
            yield f"{tool}: missing"
            continue
        said = subprocess.run([tool, option], capture_output=True, text=True, check=False).stdout.strip().splitlines()
        yield f"{tool}: {next((line for line in said if 'release' in line), said[0] if said else 'says nothing')}"


def main() -> int:
    for line in found():
        print(line, flush=True)
    for wish in ("1", "0"):  # with CUDA, or at least for the CPU
        environment = {**os.environ, "GROKFAST_CUDA": wish}
        command = [sys.executable, "setup.py", "build_ext", "--inplace"]
        built = subprocess.run(command, cwd=ROOT, env=environment, check=False).returncode
        print(f"GROKFAST_CUDA={wish}: setup.py ended with {built}", flush=True)
        if built == 0:
            break
    return subprocess.run([sys.executable, "-c", IMPORTED], cwd=ROOT, check=False).returncode


if __name__ == "__main__":
    raise SystemExit(main())
