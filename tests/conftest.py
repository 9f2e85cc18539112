"""Fixtures for all tests: the backends, poisoned memory, thread counts, and how an error is judged."""

import os
import signal
import warnings
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # before torch: spinning threads slow a busy machine down 10 times
if workers := int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "0")):  # which share the cores, as does what they start
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // workers)))

import numpy as np
import pytest
import torch

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # before Triton: its kernels then run on CPU tensors

from grokfast import backend

TESTS = Path(__file__).parent

# As from a terminal: under nohup and in a background shell these are ignored, here and in all that a test starts.
signal.signal(signal.SIGINT, signal.default_int_handler)
if hasattr(signal, "SIGHUP"):
    signal.signal(signal.SIGHUP, signal.SIG_DFL)

# Gates that take long and change seldom: kernels as compiled and in every order, whole runs, builds. Paths from here.
SLOW = (
    "csrc/test_cuda_build.py", "docs/test_tour.py", "ptx/test_kernels.py", "test_build.py", "test_distributions.py",
    "test_gpu_report.py", "test_kernel_launches.py", "test_kernel_resources.py", "test_races.py",
    "training/test_whole_runs.py",
)  # fmt: skip
# Tests whose every case takes long, as steps in Triton's interpreter and processes do: one case of each is not slow.
# Those of the whole file, or with this word in their name. On a GPU kernels are fast, and tried whole.
ONE_OF_EACH = {
    "cli/test_streams.py": "", "models/transformer/test_fused.py": "", "models/transformer/test_planned_step.py": "",
    "optim/test_distributed.py": "", "optim/test_launches.py": "", "test_backend.py": "",
    "training/test_forks.py": "triton", "training/test_fused_training.py": "", "training/test_kills.py": "",
    "transforms/test_flat.py": "triton", "transforms/test_spans.py": "triton",
}  # fmt: skip


@pytest.hookimpl(tryfirst=True)  # before -m chooses
def pytest_collection_modifyitems(items):
    seen = set()
    for item in items:
        if not item.path.is_relative_to(TESTS):
            continue
        path = item.path.relative_to(TESTS).as_posix()
        case = item.callspec.id if hasattr(item, "callspec") else ""
        is_one = path in ONE_OF_EACH and case and ONE_OF_EACH[path] in case and not torch.cuda.is_available()
        if path in SLOW or (is_one and (path, item.originalname) in seen):
            item.add_marker(pytest.mark.slow)
        if is_one:
            seen.add((path, item.originalname))


@pytest.fixture
def compiled():
    """grokfast._C; skips the test where it is not built."""
    module, why = backend.built()
    if module is None:
        pytest.skip(f"grokfast._C is not available: {why}")
    with backend.using("auto"):
        yield module


@pytest.fixture(params=["avx512", "avx2", "baseline"])
def isa(request, compiled):
    """Runs the test on every instruction set that the products of active units are compiled for."""
    if request.param not in compiled.active_isas():
        pytest.skip(f"this processor has no {request.param}")
    before = compiled.active_isa()
    compiled.use_active_isa(request.param)
    yield request.param
    compiled.use_active_isa(before)


@pytest.fixture(params=["auto", "reference"])
def each_backend(request):
    """Runs the test on the extension (skipped where it is not built) and on plain PyTorch."""
    if request.param == "auto":
        request.getfixturevalue("compiled")
    with backend.using(request.param):
        yield request.param


@pytest.fixture(params=["reference", "triton"])
def engine(request):
    """Runs the test on plain PyTorch and on the kernels (in the interpreter, where there is no GPU)."""
    if request.param == "triton":
        pytest.importorskip("triton")
    with backend.using(request.param):
        yield request.param


@pytest.fixture
def poisoned():
    """torch.empty returns NaN, so that an output that was never written cannot pass."""
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)  # else cuBLAS, and what adds atomically, refuse on a GPU
    assert torch.empty(3, device="cuda" if torch.cuda.is_available() else "cpu").isnan().all()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="(?s).*does not have a deterministic implementation|.*CuBLAS")
        yield
    torch.use_deterministic_algorithms(before[0], warn_only=before[1])


@pytest.fixture
def products_of_any_shape_alike(monkeypatch):
    """In Triton's interpreter a product's bits do not depend on the height of its tile, as they do not on a GPU.

    There numpy makes it, and on some processors its BLAS has kernels of its own for some heights, and four times
    torch's error in sums of 130 numbers. So: in fp64, rounded.
    """
    matmul = np.matmul

    def rounded(a, b, dtype=None):
        return matmul(a.astype(np.float64), b.astype(np.float64)).astype(dtype or np.result_type(a, b))

    if not torch.cuda.is_available():
        monkeypatch.setattr(np, "matmul", rounded)


@pytest.fixture(autouse=True)
def exact_products():
    """A test that fails while torch's products are in tf32 leaves them exact for the next."""
    yield
    torch.set_float32_matmul_precision("highest")


@pytest.fixture
def set_threads():
    """torch.set_num_threads, undone after the test."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.fixture
def judge():
    return as_good_as_torch


def as_good_as_torch(got, by_torch, exact, factor=2):
    """Largest error at most `factor` times torch's at the same precision, both against fp64 (flash-attention's rule).

    Plus one unit in the last place of the largest exact value: on a few elements torch may be exact by luck.
    """
    assert got.shape == exact.shape
    assert exact.dtype == torch.float64
    if exact.numel() == 0:
        return
    error, yardstick = ((t.double() - exact).abs().max().item() for t in (got, by_torch))
    allowed = factor * yardstick + torch.finfo(got.dtype).eps * exact.abs().max().item()
    assert error <= allowed, f"error {error:.3g}, torch's own {yardstick:.3g}, allowed {allowed:.3g}"
