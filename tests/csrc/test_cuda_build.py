"""What nvcc makes of the CUDA kernels, on a machine that need not have a GPU: registers, spills, shared memory."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "csrc/cuda/update.cu"
NVCC = shutil.which("nvcc") or shutil.which("nvcc", path=os.environ.get("CUDA_HOME", "/usr/local/cuda") + "/bin")

pytestmark = [
    pytest.mark.skipif(NVCC is None, reason="needs nvcc"),
    pytest.mark.skipif(not SOURCE.exists(), reason="needs the source tree"),
]


def compiled_to(kind, architecture, folder):
    """The output and what ptxas said."""
    output = folder / f"update.{kind}"
    command = [NVCC, "-std=c++17", "-O3", f"-{kind}", f"-arch=sm_{architecture}", "-Xptxas=-v", SOURCE, "-o", output]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return output, done.stderr


def table_bytes(kernel):
    """Of the kernel's argument, as its mangled name has it."""
    return int(re.search(r"update_kernelINS_11UpdateTableILi(\d+)E", kernel)[1])


@pytest.mark.parametrize("architecture", [80, 90, 100])
def test_nothing_spills(architecture, tmp_path):
    _, said = compiled_to("cubin", architecture, tmp_path)
    used = re.findall(r"entry function '(\S+)' .*?Used (\d+) registers.*?(\d+) bytes smem", said, re.DOTALL)
    spilled = re.findall(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", said)
    for kernel, registers, shared in used:
        print(f"sm_{architecture}, {table_bytes(kernel)} B of tables: {registers} registers, {shared} B shared memory")
    assert sorted(table_bytes(kernel) for kernel, _, _ in used) == [4096, 32760]
    assert len(spilled) >= len(used)  # and those of functions that are called
    assert all(spill == ("0", "0", "0") for spill in spilled)
    assert all(int(registers) <= 64 for _, registers, _ in used)


def test_four_elements_are_one_memory_access(tmp_path):
    """Loads of parameter, gradient, two states, EMA or ring, and sum; stores of all but the gradient."""
    output, _ = compiled_to("ptx", 90, tmp_path)
    kernels = re.split(r"^\.visible \.entry|^\.entry|^\s*\.entry", output.read_text(), flags=re.MULTILINE)[1:]
    assert len(kernels) == 2
    for kernel in kernels:
        assert len(re.findall(r"ld\.global\.v4\.f32", kernel)) >= 6
        assert len(re.findall(r"st\.global\.wb\.v4\.f32", kernel)) >= 5
        assert not re.findall(r"\b(?:ld|st)\.local", kernel)
