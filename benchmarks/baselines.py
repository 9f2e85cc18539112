"""The transformers of the recipes as anybody would write them: plain eager PyTorch, and JAX where it is installed."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from grokfast import EMA, Experiment
from grokfast.models import GrokTransformer, TransformerConfig
from grokfast.models.transformer.model import sinusoids


class Decoder(nn.Module):
    """Every position of every row through every layer; the last position's logits, or of several [N, S, n_outputs]."""

    def __init__(
        self, config: TransformerConfig, n_tokens: int, n_outputs: int, seq_len: int, n_answered: int | None = None
    ) -> None:
        super().__init__()
        d = config.d_model
        self.config, self.n_answered = config, n_answered
        self.embedding = nn.Embedding(n_tokens, d)
        self.positions = nn.Embedding(config.n_positions or seq_len, d)
        if config.positions == "sinusoidal":
            self.positions.weight = nn.Parameter(sinusoids(seq_len, d, torch.float32)[0], requires_grad=False)
        self.layers = nn.ModuleList(DecoderLayer(config) for _ in range(config.n_layers))
        self.final_norm = nn.LayerNorm(d) if config.norm in ("pre", "replace") else nn.Identity()
        self.head = nn.Linear(d, n_outputs, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embedding(tokens) + self.positions.weight[: tokens.shape[1]]
        for layer in self.layers:
            x = layer(x)
        x = self.final_norm(x)
        return self.head(x[:, -1] if self.n_answered is None else x[:, -self.n_answered :])


class DecoderLayer(nn.Module):
    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        d, bias = config.d_model, config.attention_bias
        self.config = config
        self.qkv, self.out = nn.Linear(d, 3 * d, bias=bias), nn.Linear(d, d, bias=bias)
        activation = nn.ReLU() if config.activation == "relu" else nn.GELU()
        self.mlp = nn.Sequential(
            nn.Linear(d, config.d_mlp, bias=config.mlp_bias),
            activation,
            nn.Linear(config.d_mlp, d, bias=config.mlp_bias),
        )
        self.ln1, self.ln2 = (nn.Identity() if config.norm == "none" else nn.LayerNorm(d) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        if self.config.norm == "post":
            x = self.ln1(x + self.attention(x))
            return self.ln2(x + self.mlp(x))
        if self.config.norm == "replace":
            x = self.ln1(x)
            x = x + self.attention(x)
        else:
            x = x + self.attention(self.ln1(x))
        return x + self.mlp(self.ln2(x))

    def attention(self, x: Tensor) -> Tensor:
        n, t, d = x.shape
        heads = self.config.n_heads
        q, k, v = self.qkv(x).view(n, t, 3, heads, d // heads).permute(2, 0, 3, 1, 4)
        scores = q @ k.transpose(-1, -2) / math.sqrt(d // heads)
        future = torch.ones(t, t, dtype=torch.bool, device=x.device).triu(1)
        weights = scores.masked_fill(future, -math.inf).softmax(-1)
        return self.out((weights @ v).transpose(1, 2).reshape(n, t, d))


def eager_step(
    experiment: Experiment, *, compiled: bool = False, device: str = "cpu", capturable: bool = False
) -> Callable[[], Any]:
    """Forward, backward, gradient filter and torch's optimizer, with torch's default options; on a GPU its fused one,
    or, compiled, what the compiler makes of foreach.

    capturable: in a CUDA graph, where every batch is the same one; ValueError with a filter, which makes new tensors.
    """
    if capturable and experiment.filter is not None:
        raise ValueError(f"experiment must have no filter in a CUDA graph, got {experiment.filter}")
    data, config, o = experiment.task.build(), experiment.model, experiment.optimizer
    assert isinstance(config, TransformerConfig)
    n_outputs = data.n_answers if config.outputs == "answers" else data.n_tokens
    model = Decoder(config, data.n_tokens, n_outputs, data.seq_len, data.n_positions).to(device)
    kinds = {"adamw": torch.optim.AdamW, "adam": torch.optim.Adam}
    parameters = [p for p in model.parameters() if p.requires_grad]
    how = "foreach" if compiled else "fused"
    style = {} if device == "cpu" else {how: True, "capturable": capturable}
    groups: Any = parameters
    if o.decayed == "matrices":
        groups = [{"params": [p for p in parameters if p.ndim > 1]}]
        groups.append({"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0})
    optimizer = kinds[o.rule](groups, lr=o.lr, betas=o.betas, weight_decay=o.weight_decay, **style)
    x, y, size = data.train.inputs.to(device), data.train.targets.to(device), experiment.schedule.batch_size
    if size is not None and capturable:
        x, y, size = x[:size], y[:size], None
    order = iter(())
    averages: dict[Tensor, Tensor] = {}

    def loss_of(x: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(model(x).flatten(0, -2), y.flatten(), ignore_index=-1)

    mode = "default" if device == "cpu" else "max-autotune"  # with CUDA graphs
    loss_of_batch = torch.compile(loss_of, mode=mode) if compiled else loss_of
    update = torch.compile(lambda: optimizer.step(), mode=mode) if compiled and device != "cpu" else optimizer.step

    def step() -> None:
        nonlocal order
        rows: Any = slice(None)
        if size is not None:
            rows = next(order, None)
            if rows is None:
                order = iter(torch.randperm(len(x), device=device).split(size)[: len(x) // size])
                rows = next(order)
        optimizer.zero_grad()
        loss_of_batch(x[rows], y[rows]).backward()
        if isinstance(experiment.filter, EMA):
            alpha, lamb = experiment.filter.alpha, experiment.filter.lamb
            for p in parameters:
                assert p.grad is not None
                averages[p] = averages[p] * alpha + p.grad * (1 - alpha) if p in averages else p.grad.clone()
                p.grad = p.grad + averages[p] * lamb
        update()

    return step


def vmap_step(experiment: Experiment, models: int, device: str) -> Callable[[], Any]:
    """torch.func: vmap of grad over the stacked parameters of so many models on the same rows, without a filter."""
    data, config, o = experiment.task.build(), experiment.model, experiment.optimizer
    assert isinstance(config, TransformerConfig)
    n_outputs = data.n_answers if config.outputs == "answers" else data.n_tokens
    template = Decoder(config, data.n_tokens, n_outputs, data.seq_len).to(device)
    kinds = {"adamw": torch.optim.AdamW, "adam": torch.optim.Adam}
    rows = slice(experiment.schedule.batch_size)
    x, y = data.train.inputs[rows].to(device), data.train.targets[rows].to(device)
    stacked = {
        name: p.detach().expand(models, *p.shape).clone() for name, p in template.named_parameters() if p.requires_grad
    }
    style = {} if device == "cpu" else {"fused": True}
    optimizer = kinds[o.rule](stacked.values(), lr=o.lr, betas=o.betas, weight_decay=o.weight_decay, **style)

    def loss_of(parameters: dict[str, Tensor]) -> Tensor:
        return F.cross_entropy(torch.func.functional_call(template, parameters, (x,)), y)

    grads_of = torch.func.vmap(torch.func.grad(loss_of))

    def step() -> None:
        for name, grad in grads_of(stacked).items():
            stacked[name].grad = grad
        optimizer.step()

    return step


def jax_step(experiment: Experiment) -> Callable[[], Any]:
    """`jit` of one full-batch step of `nanda` with AdamW; ImportError where there is no JAX."""
    import jax
    import jax.numpy as jnp

    data, config, o = experiment.task.build(), experiment.model, experiment.optimizer
    assert isinstance(config, TransformerConfig)
    own = GrokTransformer(config, n_tokens=data.n_tokens, n_answers=data.n_answers, seq_len=data.seq_len)
    w = {name.replace("blocks.0.", ""): jnp.asarray(p.detach()[0].numpy()) for name, p in own.named_parameters()}
    x, y = jnp.asarray(data.train.inputs.numpy()), jnp.asarray(data.train.targets.numpy())
    heads, d_head = config.n_heads, config.d_model // config.n_heads
    mask = jnp.tril(jnp.ones((data.seq_len, data.seq_len), dtype=bool))

    def loss(w: dict[str, Any]) -> Any:
        h = (w["embedding"][x] + w["positions"]).reshape(-1, config.d_model)  # products of matrices are XLA's fastest
        q, k, v = jnp.moveaxis((h @ w["w_qkv"].T).reshape(*x.shape, 3, heads, d_head), 2, 0)
        scores = jnp.einsum("nqhd,nkhd->nhqk", q, k) / math.sqrt(d_head)
        weights = jax.nn.softmax(jnp.where(mask, scores, -jnp.inf), axis=-1)
        h = h + jnp.einsum("nhqk,nkhd->nqhd", weights, v).reshape(h.shape) @ w["w_o"].T
        h = h + jax.nn.relu(h @ w["w_in"].T + w["b_in"]) @ w["w_out"].T + w["b_out"]
        logits = jax.nn.log_softmax(h.reshape(*x.shape, -1)[:, -1] @ w["unembedding"].T)
        return -jnp.take_along_axis(logits, y[:, None], axis=1).mean()

    def update(w: Any, m: Any, v: Any, t: Any) -> Any:
        grads = jax.grad(loss)(w)
        (b1, b2), t = o.betas, t + 1
        m = jax.tree.map(lambda m, g: b1 * m + (1 - b1) * g, m, grads)
        v = jax.tree.map(lambda v, g: b2 * v + (1 - b2) * g * g, v, grads)

        def change(w: Any, m: Any, v: Any) -> Any:
            corrected = jnp.sqrt(v / (1 - b2**t)) + o.eps
            return w * (1 - o.lr * o.weight_decay) - o.lr * m / (1 - b1**t) / corrected

        return jax.tree.map(change, w, m, v), m, v, t

    step_of = jax.jit(update, donate_argnums=(0, 1, 2))
    state = (w, jax.tree.map(jnp.zeros_like, w), jax.tree.map(jnp.zeros_like, w), jnp.zeros(()))

    def step() -> None:
        nonlocal state
        state = jax.block_until_ready(step_of(*state))

    return step
