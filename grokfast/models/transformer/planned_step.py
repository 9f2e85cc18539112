"""Loss and gradient of an ensemble of GrokTransformers on their own data sets, each distinct prefix once: the planned
step for a GPU. Nothing waits for the device and every shape is fixed, so that it can stand in a CUDA graph.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from grokfast import backend as backends
from grokfast import checks
from grokfast.models.transformer.ensemble_plan import EnsembleLayer, EnsemblePlan, EnsembleRows
from grokfast.models.transformer.model import GrokTransformer, TransformerConfig
from grokfast.ops import layer_norm, linear_cross_entropy, mlp, pair_embed
from grokfast.ops.batch import BatchRows, Unpacker, batch_rows, sum_up
from grokfast.ops.dispatch import check_options, uses_triton
from grokfast.ops.gathered_attention.ensemble import ensemble_attention, obstacle
from grokfast.ops.linear_cross_entropy import MAX_WIDTH
from grokfast.ops.linear_cross_entropy.reference import LOSSES
from grokfast.ops.mlp.kept import PRECISIONS, mlp_kept
from grokfast.ops.read_rows import read_rows

if TYPE_CHECKING:
    from grokfast.models.transformer.fused.launches import Launches


def obstacle_to_kernels(config: TransformerConfig, seq_len: int, dtype: torch.dtype) -> str:
    """What of a model the kernels do not take, in words, or nothing."""
    if config.d_model > MAX_WIDTH:
        return f"the kernels take d_model up to {MAX_WIDTH}, got {config.d_model}"
    return obstacle(config.d_model, config.n_heads, seq_len, dtype)


class TransformerStep:
    """The models' parameters are rows of a flat [E, P'] tensor, P' at least P: in the order of named_parameters.

    Args:
        model: says names, shapes and sizes; its parameters are not read.
        tokens: [E, N, T] int64, the data set of each model, on the device of the step.
        targets: [E, N] int64.
        n_rows: how many of the N rows each model has, the first ones; None: all.
        loss: "cross_entropy", "stablemax" or "mse", as in ops.linear_cross_entropy; the mean over rows.
        precision: of matrix products, as in ops.mlp.
        backend: None, "triton" or "reference", as in ops.mlp.

    Raises:
        TypeError, ValueError: an argument has the wrong type, shape or device, dropout is not 0, or a token or target
            is out of range.
    """

    def __init__(
        self,
        model: GrokTransformer,
        tokens: Tensor,
        targets: Tensor,
        *,
        n_rows: Sequence[int] | None = None,
        loss: str = "cross_entropy",
        precision: str = "ieee",
        backend: str | None = None,
    ) -> None:
        if not isinstance(model, GrokTransformer):
            raise TypeError(f"model must be a GrokTransformer, got {type(model).__name__}")
        check_options(precision, backend)
        self.config, self.loss = model.config, checks.choice("loss", loss, LOSSES)
        if self.config.dropout:
            raise ValueError(f"model must have no dropout, got {self.config.dropout}: equal prefixes have other masks")
        self.precision, self.backend = precision, backend
        sizes = {"n_tokens": model.embedding.shape[1], "n_positions": model.positions.shape[1]}
        self.plan = EnsemblePlan(model.config, tokens, **sizes)
        if not isinstance(targets, Tensor) or targets.dtype != torch.int64 or targets.shape != tokens.shape[:2]:
            got = f"{list(targets.shape)} {targets.dtype}" if isinstance(targets, Tensor) else type(targets).__name__
            raise ValueError(f"targets must be {list(tokens.shape[:2])} torch.int64, got {got}")
        if targets.device != tokens.device:
            raise ValueError(f"targets must be on {tokens.device} as tokens are, got {targets.device}")
        low, high = (int(edge) for edge in targets.aminmax())
        if low < 0 or high >= model.n_outputs:
            raise ValueError(f"targets must be in [0, {model.n_outputs}), got {low if low < 0 else high}")
        self.targets, self.n_outputs = targets.contiguous(), model.n_outputs
        n_rows = [tokens.shape[1]] * len(tokens) if n_rows is None else list(n_rows)
        if len(n_rows) != len(tokens):
            raise ValueError(f"n_rows must be one number for each of {len(tokens)} models, got {len(n_rows)}")
        for e, n in enumerate(n_rows):
            checks.integer(f"n_rows[{e}]", n, minimum=1, maximum=tokens.shape[1])
        self.n_rows = torch.tensor(n_rows, device=tokens.device)
        self.shapes = {name: p.shape[1:] for name, p in model.named_parameters()}
        self.n_parameters = sum(shape.numel() for shape in self.shapes.values())
        self._sinusoids = None if self.config.positions == "learned" else model.positions.to(tokens.device)
        self._unpack = Unpacker(list(self.shapes.values()), tokens.device)
        self._every: BatchRows | None = None
        self._padding = torch.empty(0)
        self._launches: Launches | None = None

    @staticmethod
    def fits(
        config: TransformerConfig, *, seq_len: int, device: torch.device, dtype: torch.dtype = torch.float32
    ) -> str:
        """Why the kernels cannot train this model on this device, in words; empty where they can."""
        if config.dropout:
            return "dropout has other masks for equal prefixes"
        if backends.device_kernels(device) != "triton":
            return backends.why_no_device_kernels(device) or "the CUDA extension has no kernels for it"
        return obstacle_to_kernels(config, seq_len, dtype)

    @property
    def n_models(self) -> int:
        """E."""
        return self.plan.n_models

    def keep(self, models: Sequence[int]) -> TransformerStep:
        """The step of these models only, each with the same tables, so that its kernels have the same shapes."""
        kept = copy.copy(self)
        kept.plan, kept.targets = self.plan.keep(models), self.targets[list(models)]
        kept.n_rows = self.n_rows[list(models)]
        kept._unpack, kept._every = Unpacker(list(self.shapes.values()), self.targets.device), None
        kept._launches = None
        return kept

    def gradient(self, flat: Tensor, grad: Tensor, loss: Tensor, correct: Tensor, batch: Tensor | None = None) -> None:
        """Write the gradient [E, P'] of each model's loss [E], and how many rows each has right, correct [E].

        On the rows `batch` [E, B] int64 of each data set, on the device and not checked, of which -1 is none and not
        in the mean; or on all. Columns of `grad` from P on are set to 0. To be called once before it is captured: what
        is made once per B, scratch included, is made then. In a handful of launches, unless `why_not_fused`.
        Raises ValueError where a shape does not fit.
        """
        self._check(flat, grad, loss, correct)
        rows = self._all_rows(flat.dtype) if batch is None else batch_rows(batch, self.targets, flat.dtype)
        if grad.stride(1) == 1 and not self.why_not_fused(flat, batch):
            self._fused().gradient(flat.detach(), grad, loss, correct, self.plan.rows(rows.chosen), rows)
            return
        weights = self._leaves(flat)
        values, right = self._losses(weights, rows)
        grads = torch.autograd.grad(values, list(weights.values()), rows.share)
        torch.cat([*(g.flatten(1) for g in grads), self._zeros(grad[:, self.n_parameters :])], 1, out=grad)
        sum_up(values.detach(), right, rows, loss, correct)

    def why_not_fused(self, flat: Tensor, batch: Tensor | None = None) -> str:
        """Why `gradient` goes through autograd's operations, not a handful of launches; empty where it does not."""
        obstacle = obstacle_to_kernels(self.config, self.plan.seq_len, flat.dtype)
        if obstacle or not uses_triton("planned_step", flat, self.backend, obstacle):
            return obstacle or "no Triton kernels for this device"
        if flat.stride(1) != 1:
            return "the parameters of a model are not adjacent"
        if self.plan.shares_output(self.targets.shape[1] if batch is None else batch.shape[1]):
            return "rows of the data set are equal"
        return ""

    def _fused(self) -> Launches:
        if self._launches is None:
            from grokfast.models.transformer.fused.launches import Launches
            from grokfast.models.transformer.fused.model import Model

            model = Model(self.config, self.shapes, self.n_outputs, self.loss, self.precision)
            self._launches = Launches(model, self._sinusoids)
        return self._launches

    @torch.no_grad()
    def measure(self, flat: Tensor, loss: Tensor, correct: Tensor) -> None:
        """Write each model's loss [E] on its whole data set, and how many rows it has right, correct [E].

        In the forward launches of `gradient`, unless `why_not_fused`; scratch is given back.
        """
        self._check(flat, None, loss, correct)
        rows = self._all_rows(flat.dtype)
        if self.why_not_fused(flat):
            values, right = self._losses(self._leaves(flat), rows)
        else:
            values, right = self._fused().losses(flat.detach(), self.plan.rows(), rows)
        sum_up(values, right, rows, loss, correct)

    def _check(self, flat: Tensor, grad: Tensor | None, loss: Tensor, correct: Tensor) -> None:
        n_models, device = self.n_models, self.targets.device
        for name, t in (("flat", flat), ("grad", grad)):
            if t is None:
                continue
            if t.ndim != 2 or len(t) != n_models or t.shape[1] < self.n_parameters or t.device != device:
                accepted = f"[{n_models}, {self.n_parameters} or more] on {device}"
                raise ValueError(f"{name} must be {accepted}, got {list(t.shape)} on {t.device}")
        for name, t in (("loss", loss), ("correct", correct)):
            if t.shape != (n_models,) or t.device != device or not t.is_contiguous():
                accepted, gaps = f"[{n_models}], contiguous, on {device}", "" if t.is_contiguous() else ", with gaps"
                raise ValueError(f"{name} must be {accepted}, got {list(t.shape)} on {t.device}{gaps}")

    def _leaves(self, flat: Tensor) -> dict[str, Tensor]:
        """Each parameter [E, ...] by name, to be differentiated by."""
        return {name: t.requires_grad_() for name, t in zip(self.shapes, self._unpack(flat))}

    def _zeros(self, padding: Tensor) -> Tensor:
        if self._padding.shape != padding.shape or self._padding.dtype != padding.dtype:
            self._padding = torch.zeros_like(padding)
        return self._padding

    def _all_rows(self, dtype: torch.dtype) -> BatchRows:
        if self._every is None or self._every.share.dtype != dtype:
            rows = torch.arange(self.targets.shape[1], device=self.targets.device)
            counts = (rows < self.n_rows[:, None]).to(dtype)
            self._every = BatchRows(None, self.targets, counts, counts / self.n_rows[:, None])
        return self._every

    def _losses(self, weights: Mapping[str, Tensor], rows: BatchRows) -> tuple[Tensor, Tensor]:
        """Loss of each row [E, B], and 1 where it is right, else 0."""
        x = self._last_rows(weights, self.plan.rows(rows.chosen))
        unembedding = weights["unembedding"] if "unembedding" in weights else weights["embedding"][:, : self.n_outputs]
        values = linear_cross_entropy(
            x, unembedding, rows.targets, loss=self.loss, reduction="none", return_accuracy=True,
            precision=self.precision, backend=self.backend,
        )  # fmt: skip
        assert isinstance(values, tuple)
        return values

    def _last_rows(self, weights: Mapping[str, Tensor], rows: EnsembleRows) -> Tensor:
        """What the unembedding reads: [E, B, d]."""
        positions = weights["positions"] if self._sinusoids is None else self._sinusoids.expand(self.n_models, -1, -1)
        positions = positions.to(weights["embedding"].dtype)
        x = pair_embed(weights["embedding"], positions, rows.pairs, backend=self.backend)
        for i, layer in enumerate(rows.layers):
            prefix = f"blocks.{i}."
            x = self._block({n.removeprefix(prefix): w for n, w in weights.items() if n.startswith(prefix)}, x, layer)
        if self.config.norm in ("pre", "replace"):
            x = self._norm(x, weights, "final_norm")
        return x if rows.output is None else read_rows(x, rows.output, backend=self.backend)

    def _block(self, w: Mapping[str, Tensor], x: Tensor, rows: EnsembleLayer) -> Tensor:
        """One layer: x [E, K, d] -> [E, R, d]; `Block.forward` on rows."""
        config, precision, backend = self.config, self.precision, self.backend
        norm = config.norm
        if norm == "replace":
            x = self._norm(x, w, "ln1")
        inner = self._norm(x, w, "ln1") if norm == "pre" else x
        y = ensemble_attention(
            inner, w["w_qkv"], w.get("b_qkv"), w["w_o"], w.get("b_o"), rows.keys, rows.own, n_heads=config.n_heads,
            skip=x if config.residual else None, precision=precision, backend=backend,
        )  # fmt: skip
        if norm == "post":
            y = self._norm(y, w, "ln1")
        inner = self._norm(y, w, "ln2") if norm in ("pre", "replace") else y
        skip = y if config.residual else None
        weights = w["w_in"], w.get("b_in"), w["w_out"], w.get("b_out")
        if precision in PRECISIONS and uses_triton("mlp", x, backend, ""):
            y = mlp_kept(inner, *weights, config.activation, skip, precision)
        else:
            y = mlp(inner, *weights, activation=config.activation, skip=skip, precision=precision, backend=backend)
        return self._norm(y, w, "ln2") if norm == "post" else y

    def _norm(self, x: Tensor, w: Mapping[str, Tensor], name: str) -> Tensor:
        return layer_norm(x, w[f"{name}.weight"], w[f"{name}.bias"], backend=self.backend)
