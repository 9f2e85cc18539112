"""Small Triton kernels, compiled and executed outside of the interpreter; test_kernels.py runs them with the plugin."""

import sys

import pytest
import torch

triton = pytest.importorskip("triton")
import triton.language as tl  # noqa: E402

from grokfast.ops.linear import kernels as linear  # noqa: E402
from tests.ptx.emulate import emulated  # noqa: E402
from tests.tf32 import cut  # noqa: E402

pytestmark = pytest.mark.skipif("tests.ptx.plugin" not in sys.modules, reason="test_kernels.py runs it")


def draw(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


@triton.jit
def product_kernel(
    p_a, p_b, p_c, P: tl.constexpr, M: tl.constexpr, N: tl.constexpr, K: tl.constexpr, BK: tl.constexpr,
    TRANSPOSED: tl.constexpr,
):  # fmt: skip
    m, n = tl.arange(0, M), tl.arange(0, N)
    acc = tl.zeros([M, N], tl.float32)
    for i in range(0, K, BK):
        k = i + tl.arange(0, BK)
        a = tl.load(p_a + m[:, None] * K + k[None, :])
        if TRANSPOSED:
            b = tl.trans(tl.load(p_b + n[:, None] * K + k[None, :]))
        else:
            b = tl.load(p_b + k[:, None] * N + n[None, :])
        if P == "bf16":
            acc = tl.dot(a.to(tl.bfloat16), b.to(tl.bfloat16), acc)
        elif P == "fp16":
            acc = tl.dot(a.to(tl.float16), b.to(tl.float16), acc)
        else:
            acc = tl.dot(a, b, acc, input_precision=P)
    tl.store(p_c + m[:, None] * N + n[None, :], acc)


@pytest.mark.parametrize(("stages", "transposed"), [(1, False), (3, True)])
@pytest.mark.parametrize(
    ("precision", "rounded", "allowed"),
    [
        ("ieee", lambda t: t, 2e-6),
        ("tf32x3", lambda t: t, 4e-6),
        ("tf32", cut, 2e-6),
        ("bf16", lambda t: t.bfloat16(), 2e-6),
        ("fp16", lambda t: t.half(), 2e-6),
    ],
)
def test_products(precision, rounded, allowed, stages, transposed, on_the_machine):
    a, b, c = draw(64, 128), draw(128, 32), torch.full((64, 32), torch.nan)
    given = b.T.contiguous() if transposed else b
    sizes = {"M": 64, "N": 32, "K": 128, "BK": 32, "TRANSPOSED": transposed}
    product_kernel[(1,)](a, given, c, P=precision, **sizes, num_warps=4, num_stages=stages)
    exact = rounded(a).double() @ rounded(b).double()
    assert (c - exact).abs().max() <= allowed * exact.abs().max()
    counts = on_the_machine.launches[0]
    passes = {"ieee": 0, "tf32x3": 3}.get(precision, 1)
    assert counts.mma_flops == passes * 2 * 64 * 128 * 32
    assert counts.stored == c.nbytes


def test_instructions_are_counted_without_the_numbers_too(on_the_machine, request):
    a, b, c = draw(64, 128), draw(128, 32), torch.empty(64, 32)

    def launch():
        sizes = {"M": 64, "N": 32, "K": 128, "BK": 32, "TRANSPOSED": False}
        product_kernel[(3,)](a, b, c, P="tf32", **sizes, num_warps=4, num_stages=2)

    launch()
    with emulated(request.config.getoption("capability"), only_counts=True) as counted:
        launch()
    assert counted.launches == on_the_machine.launches
    assert counted.launches[0].instructions > 3 * 4 * 100
    on_the_machine.findings.clear()  # all three programs write the product


@triton.jit
def row_kernel(p_x, p_out, n, B: tl.constexpr):
    row, at = tl.program_id(0), tl.arange(0, B)
    x = tl.load(p_x + row * n + at, mask=at < n, other=float("-inf"))
    weights = tl.exp(x - tl.max(x, 0))
    tl.store(p_out + row * n + at, weights / tl.sum(weights, 0), mask=at < n)


def test_reductions_over_warps(on_the_machine):
    x, out = draw(5, 200), torch.full((5, 200), torch.nan)
    row_kernel[(5,)](x, out, 200, B=256, num_warps=4)
    torch.testing.assert_close(out, x.softmax(1), rtol=1e-6, atol=1e-7)
    assert on_the_machine.launches[0].stored == x.nbytes


@triton.jit
def ticket_kernel(p_x, p_tickets, p_out, B: tl.constexpr):
    """The last program to come adds up what all have left."""
    at = tl.arange(0, B)
    tl.store(p_out + tl.program_id(0), tl.sum(tl.load(p_x + tl.program_id(0) * B + at), 0))
    tl.debug_barrier()
    if tl.atomic_add(p_tickets, 1) == tl.num_programs(0) - 1:
        total = 0.0
        for i in range(tl.num_programs(0)):
            total += tl.load(p_out + i)
        tl.store(p_out + tl.num_programs(0), total)


def test_tickets():
    x, out, tickets = draw(6, 32), torch.full((7,), torch.nan), torch.zeros(1, dtype=torch.int32)
    ticket_kernel[(6,)](x, tickets, out, B=32)
    torch.testing.assert_close(out, torch.cat([x.sum(1), x.sum()[None]]))
    assert tickets.item() == 6


@triton.jit
def double_kernel(p_x, p_out, BARRIER: tl.constexpr, B: tl.constexpr):
    """The other way round, through global memory, in which other threads write."""
    at = tl.arange(0, B)
    tl.store(p_out + at, tl.load(p_x + at) * 2)
    if BARRIER:
        tl.debug_barrier()
    tl.store(p_out + B + at, tl.load(p_out + B - 1 - at))


@pytest.mark.parametrize("barrier", [True, False])
def test_a_missing_barrier_is_found(barrier, on_the_machine):
    x, out = draw(128), torch.full((256,), torch.nan)
    double_kernel[(1,)](x, out, BARRIER=barrier, B=128, num_warps=4)
    assert bool(on_the_machine.findings) != barrier
    assert barrier or "test_compiled.py" in on_the_machine.findings[0]
    on_the_machine.findings.clear()
    assert not barrier or torch.equal(out[128:], 2 * x.flip(0))


@pytest.mark.parametrize("precision", ["tf32", "tf32x3"])
def test_no_copy_overtakes_a_product_under_way(precision):
    """The gradient of a matrix in several steps, beside that of its bias."""
    x, grad = draw(1, 250, 64), draw(1, 250, 128)
    of_weight, of_bias = linear.backward_weight(grad, x, True, precision)
    exact = grad[0].T.double() @ x[0].double()
    assert (of_weight[0] - exact).norm() <= (2e-3 if precision == "tf32" else 1e-6) * exact.norm()
    torch.testing.assert_close(of_bias, grad.sum(1), rtol=1e-5, atol=1e-5)
