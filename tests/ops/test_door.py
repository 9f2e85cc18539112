"""What C++ gets of torch's tensors is checked where it is read: a wrong one is an error that names it, never memory."""

import pytest
import torch

from grokfast.ops import RowIndex, gathered_attention, layer_norm, mlp


def floats(*shape, dtype=torch.float32):
    return torch.ones(shape, dtype=dtype)


def indices(*shape):
    return torch.zeros(shape, dtype=torch.int64)


N, A, B, H, C, E, S, D = 6, 3, 2, 16, 32, 1, 2, 4
TABLES = {"w_a": floats(E, A, H), "w_b": floats(E, B, H), "bias": floats(E, H)}
PAIRS = {"a": indices(E, N), "b": indices(E, N)}
OF_TABLES = {"grad_a": floats(E, A, H), "grad_b": floats(E, B, H)}
TABLE, QUERY = indices(4), torch.arange(N)
ATTENTION = {"q": floats(N, D), "kv": floats(3, 2 * D), "query": QUERY, "keys": indices(N, S)}
READERS = {
    "start": torch.arange(N + 1), "items": torch.arange(N),
    "start_k": torch.tensor([0, N * S, N * S, N * S]), "items_k": torch.arange(N * S),
}  # fmt: skip
MIXED = {
    "tables": floats(2, 3, C), "scores": floats(A, 3, 2), "base": floats(A, C), "keys": indices(N, S),
    "query": indices(N), "common": 2, "rate": 1.0,
}  # fmt: skip
# What each function takes: its arguments in their order, tensors and numbers.
FUNCTIONS = {
    "pair_embed_forward": {**TABLES, **PAIRS, "out": floats(E, N, H), "activation": 1, "threads": 1},
    "pair_embed_backward": {
        **TABLES, **PAIRS, "grad_out": floats(E, N, H), **OF_TABLES, "grad_bias": floats(E, H), "activation": 1,
        "threads": 1,
    },
    "classify": {
        "loss": 0, "logits": floats(E, N, C), "target": indices(E, N), "grad_logits": floats(E, N, C),
        "loss_out": floats(E), "accuracy_out": floats(E), "of": N, "threads": 1,
    },
    "active_forward": {
        "hidden": floats(N, H), "weights": floats(H, C), "bias": floats(C), "skip": floats(N, C), "out": floats(N, C),
        "threads": 1,
    },
    "active_backward": {
        "hidden": floats(N, H), "grad_out": floats(N, C), "weights": floats(H, C), "x": floats(N, 16),
        "grad_hidden": floats(N, H), "grad_weights": floats(H, C), "grad_first": floats(H, 16), "grad_bias": floats(H),
        "threads": 1,
    },
    "pair_rows": {
        **TABLES, "weight": floats(C, H), "out_bias": floats(C), "a": indices(N), "b": indices(N), "target": indices(N),
        "grad_a": floats(A, H), "grad_b": floats(B, H), "grad_weight": floats(C, H), "grad_bias": floats(C), "loss": 0,
        "threads": 1,
    },
    "group_readers": {"index": indices(N), "n_rows": 2, "start": indices(3), "items": indices(N)},
    "sum_readers": {
        "x": floats(N, H), "start": READERS["start"], "items": READERS["items"], "out": floats(N, H), "threads": 1,
    },
    "sum_rows": {"x": floats(N, H), "out": floats(H), "threads": 1},
    "activate_forward": {
        "z": floats(N, H), "bias": floats(H), "slope": floats(N, H), "activation": 4, "threads": 1,
    },
    "activate_backward": {
        "grad": floats(N, H), "kept": floats(N, H), "grad_bias": floats(H), "activation": 1, "threads": 1,
    },
    "add_rows": {
        "out": floats(N, H), "table": floats(A, H), "index": indices(N), "bias": floats(H), "threads": 1,
    },
    "layer_norm_forward": {
        "x": floats(N, H), "weight": floats(H), "bias": floats(H), "out": floats(N, H), "stats": floats(N, 2),
        "eps": 1e-5, "threads": 1,
    },
    "layer_norm_backward": {
        "x": floats(N, H), "weight": floats(H), "stats": floats(N, 2), "grad": floats(N, H), "grad_x": floats(N, H),
        "grad_weight": floats(H), "grad_bias": floats(H), "threads": 1,
    },
    "residual_norm_forward": {
        "y": floats(N, H), "bias": floats(H), "skip": floats(A, H), "index": indices(N), "weight": floats(H),
        "offset": floats(H), "out": floats(N, H), "stats": floats(N, 2), "eps": 1e-5, "threads": 1,
    },
    "residual_norm_backward": {
        "y": floats(N, H), "weight": floats(H), "stats": floats(N, 2), "grad": floats(N, H), "along": floats(A, H),
        "grad_y": floats(N, H), "grad_weight": floats(H), "grad_offset": floats(H), "grad_bias": floats(H),
        "threads": 1,
    },
    "gathered_attention_forward": {
        **ATTENTION, "heads": 2, "out": floats(N, D), "weights": floats(N, S, 2), "threads": 1,
    },
    "gathered_attention_backward": {
        **ATTENTION, "heads": 2, **READERS, "weights": floats(N, S, 2), "grad_out": floats(N, D),
        "grad_q": floats(N, D), "grad_kv": floats(3, 2 * D), "threads": 1,
    },
    "mixed_rows_forward": {
        **MIXED, "hidden": floats(N, H), "linear": floats(N, C - H), "weights": floats(N, S, 2), "threads": 1,
    },
    "mixed_rows_backward": {
        **MIXED, "start": READERS["start_k"], "items": READERS["items_k"], "weights": floats(N, S, 2),
        "grad_hidden": floats(N, H), "grad_linear": floats(N, C - H), "grad_tables": floats(2, 3, C),
        "grad_scores": floats(A, 3, 2), "grad_base": floats(A, C), "threads": 1,
    },
    "folded_rows_forward": {
        **MIXED, "to_logits": floats(H, C - H), "hidden": floats(N, H), "logits": floats(N, C - H),
        "weights": floats(N, S, 2), "threads": 1,
    },
    "folded_rows_backward": {
        **MIXED, "start": READERS["start_k"], "items": READERS["items_k"], "weights": floats(N, S, 2),
        "hidden": floats(N, H), "to_logits": floats(H, C - H), "grad_logits": floats(N, C - H),
        "scratch": floats(1, N, 64), "grad_tables": floats(2, 3, C), "grad_scores": floats(A, 3, 2),
        "grad_base": floats(A, C), "grad_to_logits": floats(H, C - H),
    },
}  # fmt: skip
TENSORS = [(name, key) for name, given in FUNCTIONS.items() for key, t in given.items() if isinstance(t, torch.Tensor)]
NUMBERS = [(name, key) for name, given in FUNCTIONS.items() for key, n in given.items() if type(n) is int]


def call(module, function, **changed):
    given = {k: t.clone() if isinstance(t, torch.Tensor) else t for k, t in FUNCTIONS[function].items()}
    return getattr(module, function)(*(given | changed).values())


def without(t):
    """A tensor whose storage was given back, as sharded training does between steps."""
    t = t.clone()
    t.untyped_storage().resize_(0)
    return t


WRONG = {
    "another dtype": lambda t: t.to(torch.bfloat16 if t.is_floating_point() else torch.int32),
    "a wider dtype": lambda t: t.to(torch.float64),
    "one row more": lambda t: torch.cat([t, t[:1]]),
    "an axis more": lambda t: t[None],
    "other strides": lambda t: t.repeat_interleave(2, -1)[..., ::2],
    "another device": lambda t: t.to("meta"),
    "no memory": without,
    "no tensor": lambda t: t.data_ptr(),
    "a subclass": lambda t: t.as_subclass(type("Own", (torch.Tensor,), {})),
    "sparse": lambda t: t.to_sparse(),
}


@pytest.mark.parametrize("function", FUNCTIONS)
def test_what_fits_is_taken(function, compiled):
    call(compiled, function)


# Functions that take a longer one of these, too, and arguments whose size says what the others must be.
LONGER = {
    "sum_readers": ("x", "items"), "sum_rows": ("x",), "add_rows": ("table",),
    "residual_norm_forward": ("skip",), "residual_norm_backward": ("along",),
    "gathered_attention_forward": ("q", "kv"), "gathered_attention_backward": ("items", "items_k"),
    "mixed_rows_backward": ("items",), "folded_rows_backward": ("items", "scratch"),
}  # fmt: skip
FIRST = (
    "x",
    "y",
    "tables",
    "scores",
    "index",
    "q",
    "kv",
    "z",
    "out",
    "weight",
    "weights",
    "grad",
    "logits",
    "hidden",
    "a",
    "keys",
)


def test_units_and_classes_that_do_not_fit_the_registers_are_refused(compiled):
    narrow = {"tables": floats(2, 3, 20), "base": floats(A, 20), "to_logits": floats(H, 4), "logits": floats(N, 4)}
    with pytest.raises(ValueError, match="no such number of units or classes"):
        call(compiled, "folded_rows_forward", **narrow)


@pytest.mark.parametrize("wrong", WRONG)
@pytest.mark.parametrize(("function", "argument"), TENSORS)
def test_a_wrong_tensor_is_refused(function, argument, wrong, compiled):
    right = FUNCTIONS[function][argument]
    if (wrong == "one row more" and argument in LONGER.get(function, ())) or (
        wrong == "other strides" and right.numel() == 1
    ):
        return
    with pytest.raises((TypeError, ValueError, RuntimeError)) as refused:
        call(compiled, function, **{argument: WRONG[wrong](right)})
    if wrong != "sparse" and not (wrong == "one row more" and argument in FIRST):  # then the others do not fit it
        assert argument.split("_")[0] in str(refused.value) or "readers" in str(refused.value)


@pytest.mark.parametrize("number", [-1, 0, 1 << 20, (1 << 63) - 1])
@pytest.mark.parametrize(("function", "argument"), NUMBERS)
def test_numbers_have_bounds(function, argument, number, compiled):
    taken = {
        "activation": (0,),
        "loss": (0,),
        "threads": (1 << 20,),
        "of": (1 << 20, (1 << 63) - 1),
        "common": (-1, 0),
    }
    if number in taken.get(argument, ()):
        return
    with pytest.raises((TypeError, ValueError)):
        call(compiled, function, **{argument: number})


@pytest.mark.parametrize(
    ("function", "argument"),
    [
        ("pair_embed_forward", "a"), ("pair_embed_backward", "b"), ("classify", "target"), ("group_readers", "index"),
        ("sum_readers", "start"), ("sum_readers", "items"), ("add_rows", "index"), ("residual_norm_forward", "index"),
        ("gathered_attention_forward", "query"), ("gathered_attention_forward", "keys"),
        ("gathered_attention_backward", "start"), ("gathered_attention_backward", "items_k"),
        ("mixed_rows_forward", "keys"), ("mixed_rows_forward", "query"), ("mixed_rows_backward", "start"),
        ("mixed_rows_backward", "items"), ("folded_rows_backward", "start"), ("folded_rows_backward", "items"),
    ],
)  # fmt: skip
def test_indices_that_were_changed_since_they_were_checked_are_refused(function, argument, compiled):
    changed = FUNCTIONS[function][argument].clone()
    changed.view(-1)[-1] = 1 << 40
    with pytest.raises((IndexError, ValueError)):
        call(compiled, function, **{argument: changed})


def test_readers_out_of_order_are_refused(compiled):
    with pytest.raises(ValueError, match="readers are not in order"):
        call(compiled, "sum_readers", start=torch.tensor([0, 5, 3, 3, 4, 5, 6]))
    with pytest.raises(ValueError, match="readers do not fit their items"):
        call(compiled, "sum_readers", start=torch.arange(-1, N))


def test_a_row_index_changed_in_place_is_an_error(compiled):
    keys = RowIndex(torch.zeros(3, 2, dtype=torch.int64), 3)
    keys.index.fill_(3)
    with pytest.raises(IndexError, match=r"keys must be in \[0, 3\), got 3"):
        gathered_attention(floats(3, 4), floats(12, 4), None, floats(4, 4), None, keys, n_heads=2)


def test_keys_without_a_slot_are_refused(each_backend):
    keys = RowIndex(torch.zeros(3, 0, dtype=torch.int64), 3)
    with pytest.raises(ValueError, match=r"keys must have a slot at least, got \[3, 0\]"):
        gathered_attention(floats(3, 4), floats(12, 4), None, floats(4, 4), None, keys, n_heads=2)


def test_weights_without_memory_are_an_error(compiled):
    with pytest.raises((ValueError, RuntimeError), match="storage"):
        layer_norm(floats(3, 4), without(floats(4)), floats(4))


@pytest.mark.parametrize("stride", [0, 2])
def test_a_bias_of_any_stride_reaches_large_products_right(stride, compiled, judge):
    """oneDNN does not look at it, and read beyond one number that was expanded."""
    torch.manual_seed(0)
    x, w_in, b_in, w_out = torch.randn(1024, 64), torch.randn(64, 64), torch.randn(64), torch.randn(128, 64)
    b_out = torch.randn(1).expand(128) if stride == 0 else torch.randn(256)[::2]
    got = mlp(x, w_in, b_in, w_out, b_out)
    by_torch = mlp(x, w_in, b_in, w_out, b_out, backend="reference")
    judge(got, by_torch, mlp(*(t.double() for t in (x, w_in, b_in, w_out, b_out))))
