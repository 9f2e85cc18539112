"""The small decoder of the grokking papers in plain PyTorch: the ground truth for fused kernels."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from grokfast import checks, parts
from grokfast.models.base import Model
from grokfast.models.transformer.names import weights_as
from grokfast.nn.ensemble import EnsembleModule, Initializer, embedding, layer_norm, linear
from grokfast.nn.masks import Masks, dropout
from grokfast.tasks.data import Data

Activation = Literal["relu", "gelu"]
Norm = Literal["none", "pre", "post", "replace"]
Positions = Literal["learned", "sinusoidal"]
Outputs = Literal["answers", "tokens"]
Init = Literal["nanda", "torch"]
MAX_LAYERS = 1000


@parts.register("transformer")
@dataclass(frozen=True, kw_only=True)
class TransformerConfig(Model):
    """The defaults are Nanda et al.'s model (2023, arXiv 2301.05217).

    Args:
        n_layers, d_model, n_heads, d_mlp: sizes; d_model is a multiple of n_heads, and even for sinusoidal positions.
        activation: of the MLP, "relu" or "gelu" (the exact one, with erf).
        norm: where LayerNorm acts, see GrokTransformer.
        positions: "learned", or "sinusoidal" (Vaswani et al. 2017, arXiv 1706.03762, section 3.5).
        n_positions: rows of the position table; None: the sequence length.
        tied: the unembedding is the first n_outputs rows of the embedding, not a parameter of its own.
        attention_bias: biases of the four attention matrices.
        mlp_bias: biases of the two MLP matrices.
        dropout: probability in [0, 1); acts in training mode, see GrokTransformer.
        residual: False drops the skip connections.
        causal: position t sees positions 0..t only.
        attention_rate: α; heads weigh what they see by α·softmax + (1 − α): at 0 all positions alike, each by 1
            (Zhong et al. 2023, arXiv 2306.17844, section 4).
        outputs: one logit per answer ("answers") or per token of the vocabulary ("tokens").
        init: "nanda" draws every matrix from N(0, 1/d_model), the unembedding from N(0, 1/n_tokens), biases 0;
            "torch" has the defaults of nn.Embedding, nn.MultiheadAttention and nn.Linear. LayerNorm starts at 1 and 0.
        init_scale: multiplies every initial matrix (embedding and positions too; not biases or LayerNorm).

    Raises:
        TypeError, ValueError: an argument has the wrong type or is out of range.
    """

    varies: ClassVar[frozenset[str]] = frozenset({"init_scale"})
    scheduled: ClassVar[frozenset[str]] = frozenset({"dropout"})

    n_layers: int = 1
    d_model: int = 128
    n_heads: int = 4
    d_mlp: int = 512
    activation: Activation = "relu"
    norm: Norm = "none"
    positions: Positions = "learned"
    n_positions: int | None = None
    tied: bool = False
    attention_bias: bool = False
    mlp_bias: bool = True
    dropout: float = 0.0
    residual: bool = True
    causal: bool = True
    outputs: Outputs = "answers"
    init: Init = "nanda"
    init_scale: float = 1.0
    attention_rate: float = parts.added(1.0)

    def __post_init__(self) -> None:
        super().__post_init__()
        fields = checks.Fields(self)
        fields.integer("n_layers", minimum=1, maximum=MAX_LAYERS)
        fields.integer("d_model", "n_heads", "d_mlp", minimum=1)
        if self.d_model % self.n_heads:
            raise ValueError(f"d_model must be a multiple of n_heads={self.n_heads}, got {self.d_model}")
        choices = {"activation": Activation, "norm": Norm, "positions": Positions, "outputs": Outputs, "init": Init}
        fields.choice(**{name: get_args(options) for name, options in choices.items()})
        if self.positions == "sinusoidal" and self.d_model % 2:
            raise ValueError(f"d_model must be even for sinusoidal positions, got {self.d_model}")
        fields.integer("n_positions", minimum=1, optional=True)
        fields.boolean("tied", "attention_bias", "mlp_bias", "residual", "causal")
        fields.real("dropout", minimum=0, maximum=1, open_maximum=True)
        fields.real("attention_rate", minimum=0, maximum=1)
        fields.real("init_scale", minimum=0, maximum=checks.LARGEST_REAL, open_minimum=True)

    def why_not(self, data: Data) -> str:
        x, y = data.train.inputs, data.train.targets
        if data.n_tokens and not data.is_real and (data.n_positions or 1) <= data.seq_len:
            return ""
        return (
            "a transformer takes inputs [N, T] of tokens and targets [N], or [N, S] with S at most T, the data have "
            f"{list(x.shape)} {x.dtype} and {list(y.shape)} {y.dtype}"
        )

    def build(self, data: Data, *, seeds: Sequence[int] = (0,), dtype: torch.dtype = torch.float32) -> GrokTransformer:
        sizes = {"n_tokens": data.n_tokens, "n_answers": data.n_answers, "seq_len": data.seq_len}
        return GrokTransformer(self, **sizes, n_answered=data.n_positions, seeds=seeds, dtype=dtype)

    def n_outputs(self, data: Data) -> int:
        """The logits of a row."""
        return data.n_answers if self.outputs == "answers" else data.n_tokens

    def weights_as(self, names: str, model: Any) -> dict[str, Tensor]:
        return weights_as(names, model)

    def activations(self, data: Data, *, backward: bool) -> int:
        positions, d, outputs = data.seq_len, self.d_model, self.n_outputs(data)
        norms = 0 if self.norm == "none" else 2 * d
        of_layer = positions * (8 * d + norms + 2 * self.d_mlp + 3 * self.n_heads * positions)
        scores, hidden = 3 * self.n_heads * positions, 2 * self.d_mlp
        widest = max(positions * max(7 * d + scores, 3 * d + hidden), 5 * outputs)
        return self.n_layers * of_layer + 3 * outputs + positions * (2 * d + hidden) if backward else widest


class GrokTransformer(EnsembleModule):
    """E = len(seeds) decoders: tokens in, the last position's logits out, or those of the last `n_answered`.

    With x = embedding[tokens] + positions, each layer does, by `norm`:

        "none"     x ← x + attn(x);        x ← x + mlp(x)
        "pre"      x ← x + attn(LN₁(x));   x ← x + mlp(LN₂(x))
        "post"     x ← LN₁(x + attn(x));   x ← LN₂(x + mlp(x))
        "replace"  x ← LN₁(x);   x ← x + attn(x);   x ← x + mlp(LN₂(x))      (Lee et al. 2024, arXiv 2405.20233)

    without the `x +` if not residual. "pre" and "replace" end with one more LayerNorm. The unembedding has no bias.

        attn(x) = concat_h[softmax(q_h k_hᵀ / √d_head) v_h] w_oᵀ + b_o   with q, k, v = x w_qkvᵀ + b_qkv
        mlp(x)  = act(x w_inᵀ + b_in) w_outᵀ + b_out

    Dropout acts on the sum of embedding and positions, the attention weights, and the outputs of attn and of mlp.

    Args:
        n_tokens: vocabulary size.
        n_answers: answers are 0..n_answers-1.
        n_answered: positions that have an answer, the last ones; None: the last one.
        seq_len: T, tokens per input.
        seeds: one initialisation seed per model.
        dtype: floating-point type of the parameters, which are drawn in fp32.

    Raises:
        TypeError, ValueError: an argument has the wrong type or is out of range, n_positions is below seq_len, or a
            tied embedding has fewer rows than there are outputs.
    """

    can_unstack = True
    positions: Tensor

    def __init__(
        self,
        config: TransformerConfig,
        *,
        n_tokens: int,
        n_answers: int,
        seq_len: int,
        n_answered: int | None = None,
        seeds: Sequence[int] = (0,),
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__(seeds)
        if not isinstance(config, TransformerConfig):
            raise TypeError(f"config must be a TransformerConfig, got {config!r} ({type(config).__name__})")
        for name, value in (("n_tokens", n_tokens), ("n_answers", n_answers), ("seq_len", seq_len)):
            checks.integer(name, value, minimum=1)
        n_outputs = n_answers if config.outputs == "answers" else n_tokens
        longest = seq_len if config.n_positions is None else config.n_positions
        if longest < seq_len:
            raise ValueError(f"n_positions must be at least seq_len={seq_len}, got {longest}")
        self.n_answered = n_answered
        if config.tied and n_outputs > n_tokens:
            raise ValueError(f"n_answers must be at most n_tokens={n_tokens} where tied, got {n_answers}")
        self.config, self.n_outputs = config, n_outputs

        draw = _Weights(config, self.seeds, dtype)
        self.embedding = draw.table(n_tokens)  # [E, n_tokens, d]
        if config.positions == "learned":
            self.positions = draw.table(longest)  # [E, longest, d]
        else:
            self.register_buffer("positions", sinusoids(longest, config.d_model, dtype), persistent=False)
        self.blocks = nn.ModuleList(Block(config, draw) for _ in range(config.n_layers))
        self.final_norm = draw.norm() if config.norm in ("pre", "replace") else nn.Identity()
        self.unembedding = None if config.tied else draw.matrix(n_outputs, config.d_model, std=n_tokens**-0.5)

    def forward(self, tokens: Tensor, masks: Masks | Sequence[torch.Generator] | None = None) -> Tensor:
        """Logits of the last position, or positions.

        Args:
            tokens: [N, T], the same for every model, or [E, N, T]; int64 below n_tokens, which is left to the lookup to
                find out: a check would cost a synchronisation at every step.
            masks: of dropout: `Masks`, or one generator per model, so that model e draws the same in any ensemble;
                None: torch's global stream.

        Returns:
            [E, N, n_outputs], or [E, N, n_answered, n_outputs].

        Raises:
            TypeError: tokens is no int64 tensor.
            ValueError: tokens has another shape, or there are not masks for each model.
        """
        return self._logits(self.hidden(tokens, masks))

    def _logits(self, x: Tensor) -> Tensor:
        x = x[..., -1, :] if self.n_answered is None else x[..., -self.n_answered :, :]  # [E, N, d] or [E, N, S, d]
        unembedding = self.embedding[..., : self.n_outputs, :] if self.unembedding is None else self.unembedding
        return linear(self.final_norm(x), unembedding)

    def hidden(self, tokens: Tensor, masks: Masks | Sequence[torch.Generator] | None = None) -> Tensor:
        """The residual stream after the last layer, before the final LayerNorm: [E, N, T, d]. Arguments as forward."""
        tokens = self._checked(tokens)
        if masks is not None and len(masks) != self.n_models:
            raise ValueError(f"masks must be one per model, {self.n_models}, got {len(masks)}")
        x = self._at_positions(embedding(tokens, self.embedding), masks)
        for block in self.blocks:
            x = block(x, masks)
        return x

    def _at_positions(self, x: Tensor, masks: Masks | Sequence[torch.Generator] | None) -> Tensor:
        return dropout(
            x + self.positions.unsqueeze(-3)[..., : x.shape[-2], :], self.config.dropout, self.training, masks
        )

    def embedded(self, inputs: Tensor) -> Tensor:
        return embedding(self._checked(inputs), self.embedding)

    def from_embedded(self, x: Tensor, preactivations: list[Tensor] | None = None) -> Tensor:
        x = self._at_positions(x, None)
        for block in self.blocks:
            x = block(x, None, preactivations)
        return self._logits(x)

    def attention_maps(self, tokens: Tensor) -> Tensor:
        """How much of each position the heads take: [E, n_layers, N, n_heads, T, T], the last axis what is looked at.

        tokens: as of forward. α·softmax + (1 − α) where attention_rate α is not 1, 0 where causal heads do not look.
        """
        x, maps = self._at_positions(self.embedded(tokens), None), []
        block: Any
        for block in self.blocks:
            maps.append(block.attention_map(x))
            x = block(x, None)
        return torch.stack(maps, 1)

    def _checked(self, tokens: Tensor) -> Tensor:
        """tokens as [E, N, T]."""
        if not isinstance(tokens, Tensor) or tokens.dtype != torch.int64:
            raise TypeError(f"tokens must be an int64 tensor, got {getattr(tokens, 'dtype', type(tokens).__name__)}")
        shape, longest = tuple(tokens.shape), self.positions.shape[-2]
        if len(shape) not in (2, 3) or not 1 <= shape[-1] <= longest or shape[:-2] not in ((), self.lead):
            raise ValueError(
                f"tokens must be [N, T] or [E, N, T] with E={self.n_models} and T from 1 to {longest}, "
                f"got {list(shape)}"
            )
        return tokens.expand(*self.lead, *shape[-2:])


class Block(nn.Module):
    """One layer: attention and MLP, joined as GrokTransformer's docstring says."""

    def __init__(self, config: TransformerConfig, draw: _Weights) -> None:
        super().__init__()
        self.config = config
        d, d_mlp = config.d_model, config.d_mlp
        # q, k, v one after the other, head after head in each; "torch": Glorot's bound for the packed matrix, biases 0
        self.w_qkv = draw.matrix(3 * d, d, bound=math.sqrt(6 / (3 * d + d)))  # [E, 3d, d]
        self.w_o = draw.matrix(d, d)  # [E, d, d]
        self.b_qkv = draw.constant(3 * d, value=0) if config.attention_bias else None
        self.b_o = draw.constant(d, value=0) if config.attention_bias else None
        self.w_in = draw.matrix(d_mlp, d)  # [E, d_mlp, d]
        self.b_in = draw.bias(d_mlp, d) if config.mlp_bias else None
        self.w_out = draw.matrix(d, d_mlp)  # [E, d, d_mlp]
        self.b_out = draw.bias(d, d_mlp) if config.mlp_bias else None
        self.ln1 = nn.Identity() if config.norm == "none" else draw.norm()
        self.ln2 = nn.Identity() if config.norm == "none" else draw.norm()

    def forward(
        self,
        x: Tensor,
        masks: Masks | Sequence[torch.Generator] | None,
        preactivations: list[Tensor] | None = None,
    ) -> Tensor:
        """[E, N, T, d] -> [E, N, T, d]."""
        norm = self.config.norm  # "none": ln1 and ln2 are the identity
        if norm == "post":
            x = self.ln1(self._add(x, self.attention(x, masks)))
            return self.ln2(self._add(x, self.mlp(x, masks, preactivations)))
        if norm == "replace":
            x = self.ln1(x)
        x = self._add(x, self.attention(x if norm == "replace" else self.ln1(x), masks))
        return self._add(x, self.mlp(self.ln2(x), masks, preactivations))

    def attention_map(self, x: Tensor) -> Tensor:
        """[E, N, n_heads, T, T] of what comes into the layer, [E, N, T, d]."""
        return self._heads(x if self.config.norm == "post" else self.ln1(x))[0]

    def attention(self, x: Tensor, masks: Masks | Sequence[torch.Generator] | None) -> Tensor:
        """[E, N, T, d] -> [E, N, T, d], (α·softmax(q kᵀ / √d_head) + (1 − α)) v in each head; α is usually 1."""
        weights, v = self._heads(x)
        weights = dropout(weights, self.config.dropout, self.training, masks)
        heads = (weights @ v).transpose(-3, -2).flatten(-2)  # [E, N, T, d]
        return dropout(linear(heads, self.w_o, self.b_o), self.config.dropout, self.training, masks)

    def _heads(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The weights [E, N, H, T, T] and values [E, N, H, T, d_head] of each head."""
        seq_len, n_heads, d_head = x.shape[-2], self.config.n_heads, self.config.d_model // self.config.n_heads
        qkv = linear(x, self.w_qkv, self.b_qkv).unflatten(-1, (3, n_heads, d_head))  # [E, N, T, 3, H, d_head]
        q, k, v = qkv.transpose(-4, -2).unbind(-3)  # [E, N, H, T, d_head]
        scores = q @ k.mT / math.sqrt(d_head)  # [E, N, H, T, T]
        future = None
        if self.config.causal:
            future = torch.ones(seq_len, seq_len, dtype=torch.bool, device=x.device).triu(1)
            scores = scores.masked_fill(future, -math.inf)
        weights = scores.softmax(-1)
        if (rate := self.config.attention_rate) != 1:
            weights = rate * weights + (1 - rate)
            weights = weights if future is None else weights.masked_fill(future, 0)
        return weights, v

    def mlp(
        self,
        x: Tensor,
        masks: Masks | Sequence[torch.Generator] | None,
        preactivations: list[Tensor] | None = None,
    ) -> Tensor:
        """[E, N, T, d] -> [E, N, T, d]."""
        activation = F.relu if self.config.activation == "relu" else F.gelu
        z = linear(x, self.w_in, self.b_in)
        if preactivations is not None:
            preactivations.append(z)
        y = linear(activation(z), self.w_out, self.b_out)
        return dropout(y, self.config.dropout, self.training, masks)

    def _add(self, x: Tensor, y: Tensor) -> Tensor:
        return x + y if self.config.residual else y


class LayerNorm(nn.Module):
    """weight [E, d] starts at 1, bias [E, d] at 0."""

    def __init__(self, weight: nn.Parameter, bias: nn.Parameter) -> None:
        super().__init__()
        self.weight, self.bias = weight, bias

    def forward(self, x: Tensor) -> Tensor:
        """[E, ..., d] -> [E, ..., d]."""
        return layer_norm(x, self.weight, self.bias)


class _Weights(Initializer):
    """The initial weights that config.init and config.init_scale ask for."""

    def __init__(self, config: TransformerConfig, seeds: Sequence[int], dtype: torch.dtype) -> None:
        super().__init__(seeds, dtype)
        self.config = config

    def table(self, n_rows: int) -> nn.Parameter:
        """[E, n_rows, d]."""
        std = self.config.d_model**-0.5 if self.config.init == "nanda" else 1.0
        return self.normal(n_rows, self.config.d_model, std=self.config.init_scale * std)

    def matrix(self, n_out: int, n_in: int, *, std: float | None = None, bound: float | None = None) -> nn.Parameter:
        """[E, n_out, n_in]; std ("nanda") is 1/√d_model, bound ("torch") 1/√n_in unless given."""
        if self.config.init == "nanda":
            return self.normal(n_out, n_in, std=self.config.init_scale * (std or self.config.d_model**-0.5))
        return self.uniform(n_out, n_in, bound=self.config.init_scale * (bound or n_in**-0.5))

    def bias(self, n_out: int, n_in: int) -> nn.Parameter:
        """[E, n_out], of nn.Linear for "torch"."""
        return self.constant(n_out, value=0) if self.config.init == "nanda" else self.uniform(n_out, bound=n_in**-0.5)

    def norm(self) -> LayerNorm:
        return LayerNorm(self.constant(self.config.d_model, value=1), self.constant(self.config.d_model, value=0))


def sinusoids(n_positions: int, d: int, dtype: torch.dtype) -> Tensor:
    """[1, n_positions, d]: sin(t/10000^(2i/d)) at entry 2i, the cosine at 2i + 1 (Vaswani et al. 2017, section 3.5)."""
    rates = 10000 ** (-torch.arange(0, d, 2, dtype=torch.float64) / d)  # [d/2]
    angles = torch.arange(n_positions, dtype=torch.float64).unsqueeze(1) * rates  # [n_positions, d/2]
    return torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(1).unsqueeze(0).to(dtype)
