"""What training launches is what a GPU can compile and capture: benchmarks.launches finds it, and what is not."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton")
from benchmarks.launches import as_in_a_capture, grid_error, scenes

ROOT = Path(__file__).parents[1]
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="Triton compiles on Linux only")


def launches(*arguments):
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "benchmarks.launches", *arguments]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)


def test_every_recipe_can_be_captured_and_a_transformers_kernels_compiled():
    some = [name for name in scenes() if not name.endswith((" models", "tf32x3", "bf16", "torch.float16"))]
    ran = launches("--scene", *some, "--compile", "grokfast, tf32")
    assert ran.returncode == 0, ran.stdout + ran.stderr
    said = ran.stdout.splitlines()
    assert len([line for line in said if line.endswith("that were not there before")]) >= len(some)
    assert len([line for line in said if line.endswith(": good")]) > 30


@pytest.mark.parametrize(
    "use",
    [
        lambda x: x.sum().item(),
        lambda x: bool(x[0] > 0),
        lambda x: x.tolist(),
        lambda x: x[x > 0],
        lambda x: x.nonzero(),
        lambda x: x + torch.tensor([1.0, 2.0]),
        lambda x: x + torch.arange(2),
    ],
)
def test_what_a_capture_forbids_is_refused(use):
    x = torch.ones(2)
    use(x)
    with as_in_a_capture(), pytest.raises(RuntimeError, match=r"waits for|host|of the CPU"):
        use(x)


def test_what_a_capture_allows_is_left_alone():
    x = torch.ones(2, requires_grad=True)
    with as_in_a_capture():
        index = torch.arange(2, device=x.device)
        (grad,) = torch.autograd.grad((x[index] * torch.zeros(2, device=x.device)).sum(), x)
        grad[:1] += 1
    assert grad.tolist() == [1, 0]


def test_grids_that_no_gpu_takes_are_named():
    assert grid_error((1 << 20, 65535, 65535)) == ""
    assert "grid (1, 65536), at most" in grid_error((1, 65536))
