"""Tests whose Triton kernels run as the PTX that a GPU would get: the project's own ones, as they are.

TRITON_INTERPRET=0 python -m pytest -p tests.ptx.plugin tests/ops/test_mlp.py -k triton [--capability 80] [--order 1]
"""

import re
from contextlib import nullcontext

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from tests.ptx.emulate import emulated

AGREEING = ("tick_kernel",)  # those of its threads that find a gradient that is not finite write the same


def pytest_addoption(parser):
    parser.addoption("--capability", type=int, default=80, help="of the GPU that kernels are compiled for")
    parser.addoption("--order", type=int, default=0, help="seed of the order of programs and warps")
    parser.addoption("--launches", action="store_true", help="say what each launch did")


class CutProducts(TorchDispatchMode):
    """torch's products in tf32 as tensor cores make them, which cut numbers off: the yardstick of kernels in it."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function.overloadpacket.__name__ in ("mm", "bmm", "addmm", "baddbmm"):
            args = (*args[:-2], *(to_tf32(t) if t.dtype == torch.float32 else t for t in args[-2:]))
        return function(*args, **(kwargs or {}))


def to_tf32(t):
    return (t.contiguous().view(torch.int32) & ~0x1FFF).view(torch.float32)


@pytest.fixture(autouse=True)
def on_the_machine(request):
    """What the launches of a test did. Fails where a GPU may do otherwise."""
    options = request.config.getoption("capability"), request.config.getoption("order")
    is_tf32 = re.search(r"tf32\b", request.node.name)
    with emulated(*options) as seen, CutProducts() if is_tf32 else nullcontext():
        yield seen
    if request.config.getoption("launches"):
        print(*seen.launches, sep="\n")
    if not seen.launches:
        pytest.skip("no kernel was launched")
    findings = [found for found in seen.findings if not found.startswith(AGREEING)]
    assert not findings, "\n".join(findings)
