"""The extension's products with a relu's hidden layer, on every instruction set: csrc/cpu/active.h."""

import os
import subprocess
import sys

import pytest
import torch

WIDTHS = [16, 32, 48, 64, 80, 96, 112, 128]  # 1 to 8 times 16 columns
SIZES = [(1, 16), (63, 48), (200, 144)]  # rows, units


def inputs(rows, units, n_out, n_in, dtype=torch.float32):
    g = torch.Generator().manual_seed(0)
    shapes = (rows, units), (units, n_out), (n_out,), (rows, n_out), (rows, n_in), (rows, n_out)
    hidden, weights, bias, skip, x, grad = (torch.randn(shape, generator=g).to(dtype) for shape in shapes)
    return hidden.relu_(), weights, bias, skip, x, grad


def by_torch(rows, units, n_out, n_in, dtype):
    """The output, then the gradients of the relu's input, of the weights, of the first layer's and of its bias."""
    hidden, weights, bias, skip, x, grad = inputs(rows, units, n_out, n_in, dtype)
    of_hidden = (grad @ weights.T) * (hidden > 0)
    return hidden @ weights + bias + skip, of_hidden, hidden.T @ grad, of_hidden.T @ x, of_hidden.sum(0)


def by_extension(compiled, rows, units, n_out, n_in, threads=1):
    hidden, weights, bias, skip, x, grad = inputs(rows, units, n_out, n_in)
    shapes = (rows, n_out), (rows, units), (units, n_out), (units, n_in), (units,)
    out, of_hidden, of_weights, of_first, of_bias = results = [torch.full(s, torch.nan) for s in shapes]
    compiled.active_forward(hidden, weights, bias, skip, out, threads)
    compiled.active_backward(hidden, grad, weights, x, of_hidden, of_weights, of_first, of_bias, threads)
    return results


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize(("rows", "units"), SIZES)
def test_as_good_as_torch(rows, units, width, isa, compiled, judge):
    sizes = rows, units, width, 144 - width
    exact, theirs = (by_torch(*sizes, dtype) for dtype in (torch.float64, torch.float32))
    for got, by_them, right in zip(by_extension(compiled, *sizes), theirs, exact):
        judge(got, by_them, right)


@pytest.mark.parametrize("threads", [2, 3, 7])
def test_any_number_of_threads_gives_the_same_bits(threads, isa, compiled):
    one, several = (by_extension(compiled, 200, 144, 112, 32, n) for n in (1, threads))
    assert all(map(torch.equal, one, several))


@pytest.mark.parametrize("width", WIDTHS)
def test_avx512_and_avx2_give_the_same_bits(width, compiled):
    """All but the sums of biases, whose order is the compiler's."""
    if "avx512" not in compiled.active_isas():
        pytest.skip("this processor has no AVX-512")
    before, found = compiled.active_isa(), []
    for name in ("avx512", "avx2"):
        compiled.use_active_isa(name)
        found.append(by_extension(compiled, 200, 144, width, 144 - width)[:4])
    compiled.use_active_isa(before)
    assert all(map(torch.equal, *found))


def test_a_nan_and_an_infinity_are_no_zeros(isa, compiled):
    hidden, weights, *_ = inputs(20, 32, 48, 16)
    hidden[3, 5], hidden[4, 31] = torch.nan, torch.inf
    out = torch.empty(20, 48)
    compiled.active_forward(hidden, weights, None, None, out, 1)
    assert out[3].isnan().all()
    assert out[4].isinf().all()
    assert out[5:].isfinite().all()


def test_an_unknown_instruction_set_is_refused_and_nothing_changes(compiled):
    before = compiled.active_isa()
    with pytest.raises(ValueError, match="the processor has no mmx"):
        compiled.use_active_isa("mmx")
    assert compiled.active_isa() == before


def run(isa):
    code = "from grokfast import backend; print(backend.load_extension().active_isa())"
    environment = {**os.environ, "GROKFAST_ISA": isa}
    return subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)


def test_a_variable_chooses(compiled):
    assert run("baseline").stdout.strip() == "baseline"
    assert "GROKFAST_ISA must be one of" in run("mmx").stderr
