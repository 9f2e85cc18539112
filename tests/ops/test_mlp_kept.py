import pytest
import torch

from grokfast.ops.mlp.kept import mlp_kept
from grokfast.ops.mlp.reference import mlp as reference

pytest.importorskip("triton")
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def results(function, dtype, n, d, hidden, activation, skip, biases):
    """Output, and the gradient of every tensor."""
    g = torch.Generator().manual_seed(n)
    shapes = {"x": (n, d), "w_in": (hidden, d), "b_in": (hidden,), "w_out": (d, hidden), "b_out": (d,)}
    given = {k: torch.randn(2, *s, generator=g, dtype=torch.float64).to(DEVICE, dtype) for k, s in shapes.items()}
    given = {k: None if k.startswith("b") and not biases else t.requires_grad_() for k, t in given.items()}
    other = {None: None, "x": given["x"], "other": given["x"].detach().cos().requires_grad_()}[skip]
    out = function(*given.values(), activation, other, "ieee")
    weights = torch.randn(out.shape, generator=g, dtype=torch.float64).to(DEVICE, dtype)
    wanted = [t for t in given.values() if t is not None] + ([other] if skip == "other" else [])
    return [out.detach(), *torch.autograd.grad((out * weights).sum(), wanted)]


@pytest.mark.parametrize(
    ("n", "d", "hidden", "activation", "skip", "biases"),
    [
        (7, 12, 20, "relu", "x", True),
        (70, 5, 33, "gelu", "other", True),
        (1, 3, 1, "relu", None, False),
        (9, 17, 65, "gelu", "x", False),
    ],
)
def test_it_is_as_good_as_torch(n, d, hidden, activation, skip, biases, judge, poisoned):
    case = n, d, hidden, activation, skip, biases
    kept, by_torch = (results(function, torch.float32, *case) for function in (mlp_kept, reference))
    for ours, theirs, exact in zip(kept, by_torch, results(reference, torch.float64, *case), strict=True):
        judge(ours, theirs, exact)
