"""The project's kernels, compiled for a GPU and executed on the CPU: some of their own tests, as they are.

All of them, and other orders of programs and warps: see plugin.py.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton")
from tests.ptx.machine import why_not

ROOT = Path(__file__).parents[2]
pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="Triton compiles on Linux only"),
    pytest.mark.skipif(torch.cuda.is_available(), reason="the kernels run on the GPU"),
    pytest.mark.skipif(bool(why_not()), reason=why_not()),
]
PROJECT = [
    "models/transformer/test_planned_step.py::test_the_kernels_are_as_good_as_torch",
    "ops/test_pair_step.py::test_precisions",
    "ops/test_pair_step.py::test_the_gradient_is_as_good_as_autograds[triton-gelu-mse]",
    "ops/test_mlp.py::test_low_precision_is_as_good_as_torch_at_it[tf32]",
    "ops/test_sums.py::test_each_model_has_the_gradients_it_has_alone[pair_embed]",
    "transforms/test_flat.py::test_every_model_follows_torch[triton-adamw-ema]",
    "transforms/test_clock.py::test_the_first_step_that_is_not_finite_is_noted[triton-1-nan]",
]
HOPPER = [
    "models/transformer/test_fused.py::test_the_heights_of_the_recipes_give_the_same_bits_alone_and_among_others",
    "ops/test_pair_step.py::test_precisions",
    "ops/test_mlp.py::test_low_precision_is_as_good_as_torch_at_it[tf32]",
]
SMALL = ["ptx/test_compiled.py"]


@pytest.mark.parametrize(("capability", "tests", "at_least"), [(80, SMALL + PROJECT, 29), (90, SMALL + HOPPER, 21)])
def test_they_pass_their_tests(capability, tests, at_least):
    environment = {**os.environ, "TRITON_INTERPRET": "0", "PYTEST_ADDOPTS": "", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "pytest", "-n", "0", "-m", ""]
    command += ["-p", "tests.ptx.plugin", f"--capability={capability}"]
    command += [f"tests/{test}" for test in tests]
    ran = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    passed = re.search(r"(\d+) passed", ran.stdout)
    assert passed, ran.stdout
    assert int(passed[1]) >= at_least
