"""Forward under one autocast state, backward under another: operations are what torch's own are there."""

import itertools
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import grokfast
from grokfast import ops
from grokfast.ops import dispatch
from grokfast.ops.pair_step import cpu as pair_step
from grokfast.ops.pair_step.reference import Parameters
from grokfast.ops.products import linear

HEAD = """
import torch, grokfast
from grokfast.ops import dispatch
from torch import nn

dispatch.TORCHS_OWN["mlp"] = {at_least}
head = grokfast.nn.MLP.from_linear(nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 8)))
for _ in range(50):
    with torch.autocast("cpu", torch.bfloat16):
        with torch.autocast("cpu", enabled=False):
            y = head(torch.randn(64, 16))
        y.square().sum().backward()
print("sound")
"""


@pytest.fixture(autouse=True)
def at_any_size(monkeypatch):
    """The extension's own way, where torch's layers would be faster."""
    monkeypatch.setitem(dispatch.TORCHS_OWN, "mlp", 0)


STATES = {"off": [], "on": [True], "off in on": [True, False], "on in off": [False, True]}
PLACES = list(itertools.product(STATES, STATES))


def under(state, work):
    """work() in blocks of autocast, one in the other."""
    for enabled in reversed(STATES[state]):
        work = inside(enabled, work)
    return work()


def inside(enabled, work):
    def inner():
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            return work()

    return inner


def values(f, tensors, forward, backward):
    """f's results and the gradients of all tensors, the two made under different states."""
    out = under(forward, lambda: f(*tensors))
    slope = torch.randn(out.shape, generator=torch.Generator().manual_seed(1)).to(out.dtype)
    wanted = [t for t in tensors if t.requires_grad]
    return [out.detach(), *under(backward, lambda: torch.autograd.grad(out, wanted, slope))]


def random(*shapes):
    g = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=g).requires_grad_() for shape in shapes]


N, D, H, A = 40, 16, 32, 7
INDEX = torch.randint(A, (1, N, 2), generator=torch.Generator().manual_seed(2))
TARGET = INDEX[..., 0]
KEYS = ops.RowIndex(torch.randint(N, (N, 3), generator=torch.Generator().manual_seed(3)), N)
QUERY = ops.RowIndex(torch.randint(N, (N,), generator=torch.Generator().manual_seed(4)), N)


def torchs_gathered(x, w_qkv, b_qkv, w_o, b_o, query=None):
    qkv = F.linear(x, w_qkv, b_qkv).view(N, 3, 2, D // 2)
    q, k, v = qkv.unbind(1)
    q, k, v = q if query is None else q[query.index], k[KEYS.index], v[KEYS.index]
    weights = ((q.unsqueeze(1) * k).sum(-1) * (D // 2) ** -0.5).softmax(1)
    return F.linear((weights.unsqueeze(3) * v).sum(1).flatten(1), w_o, b_o)


def torchs_pairs(w_a, w_b, bias):
    return F.relu(w_a[0][INDEX[0, :, 0]] + w_b[0][INDEX[0, :, 1]] + bias[0])[None]


GATHERED = ((N, D), (3 * D, D), (3 * D,), (D, D), (D,))
MLP = ((N, D), (H, D), (H,), (D, H), (D,))
# Ours, torch's, the tensors' shapes.
OPERATIONS = {
    "mlp": (ops.mlp, lambda x, w, b, v, c: F.linear(F.relu(F.linear(x, w, b)), v, c), MLP),
    "mlp, gelu and x": (
        lambda x, *rest: ops.mlp(x, *rest, activation="gelu", skip=x),
        lambda x, w, b, v, c: (x.bfloat16() if torch.is_autocast_enabled("cpu") else x)
        + F.linear(F.gelu(F.linear(x, w, b)), v, c),
        MLP,
    ),
    "large mlp": (
        ops.mlp,
        lambda x, w, b, v, c: F.linear(F.relu(F.linear(x, w, b)), v, c),
        ((1100, 64), (64, 64), (64,), (64, 64), (64,)),
    ),
    "linear": (linear, F.linear, ((N, D), (H, D))),
    "attention": (
        lambda q, k, v: ops.attention(q, k, v),
        lambda q, k, v: (q @ k.mT * 8**-0.5 + torch.full((5, 5), -torch.inf).triu(1).to(q)).softmax(-1) @ v,
        ((2, 3, 5, 8),) * 3,
    ),
    "gathered_attention": (
        lambda *t: ops.gathered_attention(*t, KEYS, n_heads=2), torchs_gathered, GATHERED,
    ),
    "gathered_attention by query": (
        lambda *t: ops.gathered_attention(*t, KEYS, QUERY, n_heads=2), lambda *t: torchs_gathered(*t, QUERY), GATHERED,
    ),
    "pair_embed": (
        lambda a, b, c: ops.pair_embed(a, b, INDEX, c, activation="relu"), torchs_pairs, ((1, A, D), (1, A, D), (1, D)),
    ),
    "classify": (
        lambda x: ops.classify(x, TARGET)[0], lambda x: F.cross_entropy(x[0], TARGET[0])[None], ((1, N, A),),
    ),
    "linear_cross_entropy": (
        lambda x, w: ops.linear_cross_entropy(x, w, TARGET[0]),
        lambda x, w: F.cross_entropy(F.linear(x, w).to(x.dtype), TARGET[0]),
        ((N, D), (A, D)),
    ),
    "layer_norm": (ops.layer_norm, lambda x, w, b: F.layer_norm(x, (D,), w, b), ((N, D), (D,), (D,))),
}  # fmt: skip


@pytest.mark.parametrize("name", OPERATIONS)
@pytest.mark.parametrize(("forward", "backward"), PLACES)
def test_operations_are_as_good_as_torchs_in_any_nesting(name, forward, backward, each_backend, judge):
    ours, theirs, shapes = OPERATIONS[name]
    got, by_torch = (values(f, random(*shapes), forward, backward) for f in (ours, theirs))
    exact = values(theirs, [t.detach().double().requires_grad_() for t in random(*shapes)], "off", "off")
    for one, two, right in zip(got, by_torch, exact):
        assert one.dtype == two.dtype
        judge(one, two, right, factor=3)


@pytest.mark.parametrize("name", [name for name in OPERATIONS if name != "linear_cross_entropy"])
@pytest.mark.parametrize("backward", STATES)
def test_what_was_called_without_autocast_keeps_its_bits(name, backward, compiled):
    ours, _, shapes = OPERATIONS[name]
    for forward in ("off", "off in on"):
        found = values(ours, random(*shapes), forward, backward)
        assert all(map(torch.equal, found, values(ours, random(*shapes), "off", "off")))


@pytest.mark.parametrize("at_least", [0, 1 << 25])
def test_an_fp32_head_inside_a_mixed_precision_step_leaves_the_heap_alone(at_least):
    head = HEAD.format(at_least=at_least)
    done = subprocess.run([sys.executable, "-c", head], capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stdout) == (0, "sound\n"), done.stderr


def test_a_step_of_pairs_is_not_moved(compiled, set_threads):
    set_threads(1)
    tensors = [t.detach() for t in random((A, D), (A, D), (D,), (A, D), (A,))]
    rows = [INDEX[0, :, 0].contiguous(), INDEX[0, :, 1].contiguous(), TARGET[0].contiguous()]

    def step():
        grads = Parameters(*map(torch.empty_like, tensors))
        found = pair_step.gradient(Parameters(*tensors), grads, *rows, loss="mse")
        return [torch.tensor(found), *grads]

    assert all(map(torch.equal, under("on", step), step()))


def test_a_gradient_of_another_kind_is_taken_as_torch_takes_it(compiled):
    """Views of one number expanded, transposed ones, and sparse ones, whose memory is not rows of numbers."""
    x = torch.randn(6, 4)
    ours = grokfast.nn.MLP(4, 8)
    theirs = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 4))
    theirs[0], theirs[2] = ours.linear1, ours.linear2
    for loss in (lambda y: y.sum(), lambda y: (y.T @ y.T.T).sum(), lambda y: F.embedding(TARGET[0] % 6, y).sum()):
        found = []
        for layer in (ours, theirs):
            layer.zero_grad()
            loss(layer(x)).backward()
            found.append([p.grad.clone() for p in layer.parameters()])
        for one, two in zip(*found):
            torch.testing.assert_close(one, two)
