"""The fused step's kernels as they are launched for the recipes, for the offline check of registers and spills."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from grokfast.models.transformer.fused import kernels, layout
from grokfast.models.transformer.fused.layout import Level
from grokfast.models.transformer.fused.model import Model
from grokfast.models.transformer.model import GrokTransformer, TransformerConfig
from grokfast.ops.dispatch import PRECISIONS

_POWER = {"n_layers": 2, "norm": "post", "positions": "sinusoidal", "mlp_bias": False, "outputs": "tokens"}
_GROKFAST = {
    "n_layers": 2, "norm": "replace", "activation": "gelu", "attention_bias": True, "outputs": "tokens",
    "n_positions": 5,
}  # fmt: skip
_WIDE = {"d_model": 512, "n_heads": 8, "d_mlp": 2048, "activation": "gelu", "norm": "pre", "n_layers": 2, "tied": True}
_ODD = {"d_model": 100, "n_heads": 5, "d_mlp": 200, "norm": "pre", "residual": False}
# Changes to the default model, tokens, answers, positions, loss, precisions
MODELS: list[tuple[str, dict[str, Any], int, int, int, str, tuple[str, ...]]] = [
    ("nanda", {}, 114, 113, 3, "cross_entropy", PRECISIONS),
    ("power", _POWER, 99, 97, 4, "cross_entropy", PRECISIONS),
    ("grokfast", _GROKFAST, 99, 97, 4, "cross_entropy", PRECISIONS),
    ("odd", _ODD, 99, 97, 64, "mse", ("ieee", "tf32")),
    ("wide", _WIDE, 2200, 2000, 5, "stablemax", ("ieee", "tf32x3", "tf32")),
]


def _signature(kernel: Any, constants: dict[str, Any], whole: tuple[str, ...]) -> dict[str, str]:
    names = [name for name in kernel.arg_names if name not in constants]
    return {n: ("*i64" if n in whole else "*fp32") if n.startswith("p_") else "i32" for n in names}


def shipped() -> list[dict[str, Any]]:
    """Configurations at the sizes of the recipes and at others, as benchmarks.resources takes them."""
    configs: list[dict[str, Any]] = []

    def add(
        name: str, kernel: Any, constants: dict[str, Any], whole: tuple[str, ...], aligned: tuple[str, ...]
    ) -> None:
        known = {n: c for n, c in constants.items() if n in kernel.arg_names}
        options: dict[str, int] = {n: constants[n] for n in ("num_warps", "num_stages", "maxnreg") if n in constants}
        signature = _signature(kernel, known, whole)
        row = {"name": f"fused {name}", "kernel": kernel, "signature": signature, "constants": known, **options}
        configs.append({**row, "aligned": [n for n in aligned if n in signature]})

    flat = "flat_model", "back_model", "positions_model", "transposed_model", "grad_model", "n_split", "n_model"
    index = "p_keys", "p_own", "p_target"
    for name, changes, n_tokens, n_answers, seq_len, loss, precisions in MODELS:
        config = TransformerConfig(**changes)
        transformer = GrokTransformer(config, n_tokens=n_tokens, n_answers=n_answers, seq_len=seq_len)
        shapes = {n: p.shape[1:] for n, p in transformer.named_parameters()}
        for precision in precisions:
            model = Model(config, shapes, transformer.n_outputs, loss, precision)
            title = f"{name}, {precision}"
            levels = [Level.of(config, i, 1000, seq_len if i else 0) for i in range(config.n_layers + 1)]
            entering = model.enter_constants(levels[0])
            add(f"enter, {title}", kernels.enter_kernel, entering, ("p_pairs", "p_programs"), flat)
            heights = sorted({layout.height(precision, config.d_model, 1000, n) for n in range(1, 64)})
            for i, height, trains, does in _launches(config, heights):
                constants = model.rows_constants(i, levels if trains else model.evaluation_levels(levels), height)
                constants |= dict.fromkeys(layout.FLAGS, False) | does | {"OWN": i in (1, config.n_layers)}
                what = " ".join(n.lower() for n in does) + ("" if trains else ", evaluation")
                add(f"rows {what}, level {i}, {height} a tile, {title}", kernels.rows_kernel, constants, index, flat)
            for chunks in (1, layout.MAX_CHUNKS):
                constants = model.weights_constants(chunks)
                add(f"weights, {chunks} chunks, {title}", kernels.weights_kernel, constants, ("p_programs",), flat)
        whole = ("p_programs", "p_start_a", "p_items_a", "p_start_b", "p_items_b")
        finish = model.finish_constants(config.d_model, layout.MAX_CHUNKS)
        add(f"finish, {name}", kernels.finish_kernel, finish, whole, flat)
    return configs


def _launches(config: TransformerConfig, heights: list[int]) -> Iterator[tuple[int, int, bool, dict[str, bool]]]:
    """Level, rows of a tile, whether it is a gradient's, and flags, of each kind of launch."""
    inner, n_layers, d = {"FORWARD": True, "PROJECT": True}, config.n_layers, config.d_model
    for height in heights:
        if n_layers > 1:
            yield 1, height, True, inner
            yield from ((1, height, True, does) for does in layout.launches(d, *layout.WAY_BACK))
        yield from ((n_layers, height, True, does) for does in layout.launches(d, *layout.LAST))
    if n_layers > 1:
        yield 1, layout.HEIGHTS[1], False, inner
    yield n_layers, layout.HEIGHTS[1], False, {"FORWARD": True, "CLASSIFY": True}
    yield 0, layout.ENTERING, True, {"ABOVE": True}
