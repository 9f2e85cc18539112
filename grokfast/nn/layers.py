"""`MLP` and `Attention`: drop-in layers for anybody's model over grokfast.ops, with torch's parameter names."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from grokfast import checks
from grokfast.nn.ensemble import linear
from grokfast.nn.stacking import Linears, Stackable, stacked
from grokfast.ops import attention, mlp
from grokfast.ops.dispatch import check_options, torchs_own
from grokfast.ops.mlp.reference import ACTIVATIONS


class MLP(Stackable):
    """y = dropout(act(x W₁ᵀ + b₁) W₂ᵀ + b₂), and + x with `residual`: x [..., d_model] -> [..., d_model].

    Parameters as in nn.TransformerEncoderLayer: linear1.weight [d_hidden, d_model], linear1.bias [d_hidden],
    linear2.weight [d_model, d_hidden], linear2.bias [d_model], initialised as nn.Linear does. On a GPU both layers are
    one kernel and the hidden one is never in memory; see ops.mlp for activation, precision and backend.

    With `n_models` E every parameter has a leading E, and x [E, ..., d_model] -> [E, ..., d_model]; model e starts as
    the e-th of E layers made one after the other. `MLP.stack` makes it from E layers, `unstack` gives them back.
    Raises TypeError or ValueError naming the argument.
    """

    dropout: float = 0.0

    def __init__(
        self,
        d_model: int,
        d_hidden: int,
        activation: str = "relu",
        bias: bool = True,
        *,
        residual: bool = False,
        dropout: float = 0.0,
        precision: str = "ieee",
        backend: str | None = None,
        n_models: int | None = None,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        for name, value in (("d_model", d_model), ("d_hidden", d_hidden)):
            checks.integer(name, value, minimum=1)
        checks.boolean("bias", bias)
        self._set(activation, residual, dropout, precision, backend)
        self.n_models = _n_models(n_models)
        sizes, kind = ((d_model, d_hidden), (d_hidden, d_model)), {"bias": bias, "device": device, "dtype": dtype}
        of_models = [[nn.Linear(*size, **kind) for size in sizes] for _ in range(n_models or 1)]
        self.linear1: nn.Linear | Linears
        self.linear2: nn.Linear | Linears
        self.linear1, self.linear2 = of_models[0] if n_models is None else map(Linears, zip(*of_models))

    def _set(
        self, activation: str, residual: bool, dropout: float, precision: str, backend: str | None
    ) -> None:  # fmt: skip
        self.activation = checks.choice("activation", activation, ACTIVATIONS)
        self.residual = checks.boolean("residual", residual)
        self.dropout = checks.real("dropout", dropout, minimum=0, maximum=1)
        check_options(precision, backend)
        self.precision, self.backend = precision, backend

    @classmethod
    def from_linear(
        cls, stack: nn.Sequential, *, residual: bool = False, precision: str = "ieee", backend: str | None = None
    ) -> MLP:
        """The same layers, and the same parameters (an optimizer that has them goes on), of a stack.

        stack: nn.Linear(d, h), then nn.ReLU, nn.GELU, nn.SiLU or nn.Module of `to_linear`, then nn.Linear(h, o), and an
        nn.Dropout or none; with `residual` o = d. Linear layers may be of the kind of transformers' Conv1D, whose
        weights are [d, h]; they stay so. Raises TypeError or ValueError for any other.
        """
        if not isinstance(stack, nn.Sequential):
            raise TypeError(f"stack must be an nn.Sequential, got {type(stack).__name__}")
        layers: list[Any] = list(stack)
        dropout = layers.pop().p if len(layers) == 4 and type(layers[3]) is nn.Dropout else 0.0
        name = _activation_name(layers[1]) if len(layers) == 3 else None
        if name is None or not (_is_linear(layers[0]) and _is_linear(layers[2])):
            found = ", ".join(map(repr, stack))
            accepted = "nn.Linear, nn.ReLU, nn.GELU or nn.SiLU, nn.Linear, and nn.Dropout or nothing"
            raise ValueError(f"stack must be {accepted}, got {found}")
        first, second = layers[0], layers[2]
        (hidden, d), (n_out, n_in) = _weight(first).shape, _weight(second).shape
        if n_in != hidden or (residual and n_out != d):
            raise ValueError(f"stack must be layers that fit one another and the residual, got {first!r}, {second!r}")
        made = cls.__new__(cls)
        nn.Module.__init__(made)
        made._set(name, residual, dropout, precision, backend)
        made.linear1, made.linear2 = first, second
        made.training = stack.training
        return made

    def to_linear(self) -> nn.Sequential:
        """nn.Sequential(linear1, activation, linear2), and dropout, with the same parameters, without the residual.

        Raises ValueError where there are `n_models`.
        """
        self._refuse_many()
        torchs = {"relu": nn.ReLU(), "gelu": nn.GELU(), "gelu_tanh": nn.GELU("tanh"), "silu": nn.SiLU()}
        activation = torchs.get(self.activation) or Activation(self.activation)
        dropout = [nn.Dropout(self.dropout)] if self.dropout else []
        return nn.Sequential(self.linear1, activation, self.linear2, *dropout).train(self.training)

    def forward(self, x: Tensor) -> Tensor:
        """[..., d_model] -> [..., d_model]; [E, ..., d_model] of `n_models`."""
        first, second = self.linear1, self.linear2
        w_in = _weight(first)
        dropout = self.dropout if self.training else 0.0
        skip = x if self.residual and not dropout else None
        if self._is_torchs(x, w_in):
            y = second(ACTIVATIONS[self.activation](first(x)))
            y = y if skip is None else skip + y
        else:
            y = mlp(
                x, w_in, first.bias, _weight(second), second.bias, activation=self.activation, skip=skip,
                precision=self.precision, backend=self.backend,
            )  # fmt: skip
        if not dropout:
            return y
        y = F.dropout(y, dropout)
        return x + y if self.residual else y

    def _is_torchs(self, x: Tensor, w_in: Tensor) -> bool:
        """Whether ops.mlp would do nothing else than these layers do, which are called without its checks, then."""
        if not isinstance(x, Tensor) or x.ndim == 0 or w_in.ndim != 2:
            return False
        fits = x.shape[-1] == w_in.shape[1] and x.dtype is w_in.dtype
        return fits and torchs_own("mlp", x, x.numel() * w_in.shape[0], self.precision, self.backend)

    def extra_repr(self) -> str:
        settings = f"activation={self.activation!r}, residual={self.residual}, precision={self.precision!r}"
        settings += f", dropout={self.dropout}" if self.dropout else ""
        return settings if self.n_models is None else f"{settings}, n_models={self.n_models}"


class Activation(nn.Module):
    """An activation of ops.mlp that torch has no module for."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = checks.choice("name", name, ACTIVATIONS)

    def forward(self, z: Tensor) -> Tensor:
        return ACTIVATIONS[self.name](z)

    def extra_repr(self) -> str:
        return self.name


def _n_models(value: int | None) -> int | None:
    return None if value is None else checks.integer("n_models", value, minimum=1)


def _is_conv1d(module: Any) -> bool:
    """Whether it is transformers' linear layer of GPT-2, of a weight [in, out], or one like it."""
    return type(module).__name__ == "Conv1D" and hasattr(module, "nf") and module.weight.ndim == 2


def _is_linear(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear) or _is_conv1d(module)


def _weight(module: Any) -> Tensor:
    """As nn.Linear has it, [out, in]."""
    return module.weight.T if _is_conv1d(module) else module.weight


def _activation_name(module: nn.Module) -> str | None:
    if isinstance(module, nn.ReLU):
        return "relu"
    if isinstance(module, nn.GELU):
        return "gelu" if module.approximate == "none" else "gelu_tanh"
    if isinstance(module, nn.SiLU):
        return "silu"
    if type(module).__name__ in ("NewGELUActivation", "GELUTanh", "PytorchGELUTanh"):  # transformers' for GPT-2
        return "gelu_tanh"
    return module.name if isinstance(module, Activation) else None


class Attention(Stackable):
    """Self-attention over short sequences: x [B, T, d_model] -> [B, T, d_model].

    y = concat(softmax(q_h k_hᵀ / √dh) v_h) W_oᵀ + b_o over the heads h, with dh = d_model / n_heads.

    Parameters as in nn.MultiheadAttention: in_proj_weight [3 d_model, d_model] and in_proj_bias [3 d_model] of q, k and
    v, out_proj.weight [d_model, d_model], out_proj.bias [d_model], and its initialisation; state dicts are
    interchangeable. With `causal` position t sees positions 0..t. In training weights are dropped with probability
    `dropout`. Without `batch_first` x is [T, B, d_model], as nn.MultiheadAttention has it by default. On a GPU scores,
    softmax and their backward are one kernel each for T up to 64, without dropout or mask; see ops.attention for
    precision, which is that of its products, and backend.

    With `n_models` E every parameter has a leading E, and x [E, ..., T, d_model] -> [E, ..., T, d_model]; see MLP.
    Raises TypeError or ValueError naming the argument.
    """

    in_proj_weight: nn.Parameter
    in_proj_bias: nn.Parameter | None
    dropout: float = 0.0
    batch_first: bool = True

    def __init__(
        self,
        d_model: int,
        n_heads: int,
        causal: bool = True,
        bias: bool = True,
        *,
        dropout: float = 0.0,
        batch_first: bool = True,
        precision: str = "ieee",
        backend: str | None = None,
        n_models: int | None = None,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        checks.integer("d_model", d_model, minimum=1)
        checks.integer("n_heads", n_heads, minimum=1)
        if d_model % n_heads:
            raise ValueError(f"d_model must be a multiple of n_heads, got {d_model} and {n_heads}")
        checks.boolean("causal", causal)
        checks.boolean("bias", bias)
        check_options(precision, backend)
        self.dropout = checks.real("dropout", dropout, minimum=0, maximum=1, open_maximum=True)
        self.batch_first = checks.boolean("batch_first", batch_first)
        self.d_model, self.n_heads, self.causal = d_model, n_heads, causal
        self.precision, self.backend = precision, backend
        self.n_models = _n_models(n_models)
        kind = {"bias": bias, "device": device, "dtype": dtype}
        torchs = [nn.MultiheadAttention(d_model, n_heads, **kind) for _ in range(n_models or 1)]
        for name in ("in_proj_weight", "in_proj_bias"):
            of_models = [getattr(layer, name) for layer in torchs]
            self.register_parameter(name, of_models[0] if n_models is None else stacked(of_models))
        out = [layer.out_proj for layer in torchs]
        self.out_proj: nn.Linear | Linears = out[0] if n_models is None else Linears(out)

    @classmethod
    def from_multihead(
        cls, layer: nn.MultiheadAttention, *, causal: bool = True, precision: str = "ieee", backend: str | None = None
    ) -> Attention:
        """The same layer with the same parameters (an optimizer that has them goes on), batch first or not as it is.

        Raises TypeError or ValueError where `layer` has what is not here: other sizes of k and v, added keys.
        """
        if not isinstance(layer, nn.MultiheadAttention):
            raise TypeError(f"layer must be an nn.MultiheadAttention, got {type(layer).__name__}")
        if layer.in_proj_weight is None or layer.bias_k is not None or layer.add_zero_attn:
            raise ValueError("layer must have no kdim, vdim, add_bias_kv or add_zero_attn, got one with")
        made = cls(
            layer.embed_dim, layer.num_heads, causal, layer.in_proj_bias is not None, dropout=layer.dropout,
            batch_first=layer.batch_first, precision=precision, backend=backend, device="meta",
        )  # fmt: skip
        made.training = layer.training
        made.register_parameter("in_proj_weight", layer.in_proj_weight)
        made.in_proj_bias, made.out_proj = layer.in_proj_bias, layer.out_proj
        return made

    def to_multihead(self) -> nn.MultiheadAttention:
        """nn.MultiheadAttention with the same parameters; a causal mask is an argument there.

        Raises ValueError where there are `n_models`.
        """
        self._refuse_many()
        has_bias = self.in_proj_bias is not None
        made = nn.MultiheadAttention(
            self.d_model, self.n_heads, self.dropout, has_bias, batch_first=self.batch_first, device="meta"
        )
        made.training = self.training
        made.in_proj_weight = self.in_proj_weight
        made.register_parameter("in_proj_bias", self.in_proj_bias)
        made.out_proj = self.out_proj  # type: ignore[assignment]
        return made

    def forward(self, x: Tensor, attn_mask: Tensor | None = None) -> Tensor:
        """[..., T, d_model] -> [..., T, d_model]; [E, ..., T, d_model] of `n_models`; T before B without batch_first.

        attn_mask: bool, broadcast to [..., n_heads, T, T], True where a position does NOT see another, as in
        nn.MultiheadAttention (in ops.attention True is where it does).
        Raises TypeError or ValueError naming the argument.
        """
        shape = ["..." if self.n_models is None else f"{self.n_models}, ...", "T", self.d_model]
        right_models = self.n_models is None or (x.ndim > 2 and len(x) == self.n_models)
        if x.ndim < 2 or x.shape[-1] != self.d_model or not right_models:
            raise ValueError(f"x must be [{', '.join(map(str, shape))}], got {tuple(x.shape)}")
        turned = not self.batch_first and x.ndim > (2 if self.n_models is None else 3)
        if turned:
            x = x.transpose(-2, -3)
        if attn_mask is not None:
            if not isinstance(attn_mask, Tensor) or attn_mask.dtype != torch.bool:
                kind = getattr(attn_mask, "dtype", type(attn_mask).__name__)
                raise TypeError(f"attn_mask must be a bool tensor, got {kind}")
            attn_mask = ~attn_mask
        into = F.linear if self.n_models is None else linear
        qkv = into(x, self.in_proj_weight, self.in_proj_bias)
        q, k, v = (t.unflatten(-1, (self.n_heads, -1)).transpose(-2, -3) for t in qkv.split(self.d_model, -1))
        out = attention(
            q, k, v, causal=self.causal, attn_mask=attn_mask, dropout=self.dropout if self.training else 0.0,
            precision=self.precision, backend=self.backend,
        )  # fmt: skip
        y = self.out_proj(out.transpose(-2, -3).flatten(-2))
        return y.transpose(-2, -3) if turned else y

    def extra_repr(self) -> str:
        settings = f"{self.d_model}, n_heads={self.n_heads}, causal={self.causal}, precision={self.precision!r}"
        settings += f", dropout={self.dropout}" if self.dropout else ""
        settings += "" if self.batch_first else ", batch_first=False"
        return settings if self.n_models is None else f"{settings}, n_models={self.n_models}"
