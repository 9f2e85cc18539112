"""Tests whose Triton kernels run as the PTX that a GPU would get: the project's own ones, as they are.

TRITON_INTERPRET=0 python -m pytest -p tests.ptx.plugin tests/ops/test_mlp.py -k triton [--capability 80] [--order 1]
"""

import pytest

from tests.ptx.emulate import emulated

AGREEING = ("tick_kernel",)  # those of its threads that find a gradient that is not finite write the same


def pytest_addoption(parser):
    parser.addoption("--capability", type=int, default=80, help="of the GPU that kernels are compiled for")
    parser.addoption("--order", type=int, default=0, help="seed of the order of programs and warps")
    parser.addoption("--launches", action="store_true", help="say what each launch did")


@pytest.fixture(autouse=True)
def on_the_machine(request):
    """What the launches of a test did. Fails where a GPU may do otherwise."""
    with emulated(request.config.getoption("capability"), request.config.getoption("order")) as seen:
        yield seen
    if request.config.getoption("launches"):
        print(*seen.launches, sep="\n")
    if not seen.launches:
        pytest.skip("no kernel was launched")
    findings = [found for found in seen.findings if not found.startswith(AGREEING)]
    assert not findings, "\n".join(findings)
