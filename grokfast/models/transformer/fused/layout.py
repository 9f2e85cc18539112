"""How the fused step of a GrokTransformer is cut up: numbers of a row, tiles, chunks. Neither Triton nor a GPU.

Level 0 are the rows that enter the first layer, level l those that leave layer l. A row has its activations and their
gradients one after the other; nothing here depends on how many models there are, so that a model's sums have one order.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch

from grokfast.models.transformer.model import TransformerConfig
from grokfast.ops.configurations import power_of_2

MAX_CHUNKS = 8  # of rows, in the gradients of weights
LEAST_ROWS = 128  # of a chunk, but for the last ones
PROCESSORS = 132
READERS = 76  # processors that keep the L2 cache busy
FLAGS = ("FORWARD", "PROJECT", "CLASSIFY", "TURN", "ABOVE", "BACK")  # what rows_kernel may do
LAST = ("FORWARD",), ("CLASSIFY", "TURN"), ("BACK",)  # of the last level
WAY_BACK = ("ABOVE",), ("BACK",)  # of the others
HEIGHTS = 32, 64  # rows of a tile
WEIGHTS = 64  # rows of a tile that move as many bytes as the weights that it reads, about
ENTERING = 16  # of level 0, which has few rows and a short way
SIDE = 64  # of a tile of a weight that is transposed


def padded(n: int) -> int:
    """A multiple of 64 bytes, in fp32 numbers."""
    return n + -n % 16


@dataclass(frozen=True)
class Level:
    """Rows [E, n_rows, stride] of a level.

    Attributes:
        seq_len: S, how many rows of the level below each row attends to; 0 for level 0.
        places: by name, where in a row something begins. QKV of the layer above, and what its backward gives to them
            and, as a skip connection, to the row itself (OF_QKV); HEADS, STATS (largest score and sum), Y (attention
            and skip connection), MLP_IN, Z (hidden layer before its activation), X (what leaves the layer) and INNER
            (what the layer above or the unembedding reads); OF_ and a name: its gradient; WEIGHTS of attention and
            gradients of scores. Where there is no LayerNorm between two, they have one place; what only a backward
            reads, an evaluation has not, and what it reads no more makes room.
    """

    n_rows: int
    seq_len: int
    places: Mapping[str, int]
    stride: int

    @property
    def has_gradients(self) -> bool:
        return "OF_X" in self.places

    @classmethod
    def of(cls, config: TransformerConfig, level: int, n_rows: int, seq_len: int) -> Level:
        d, heads, has_norm = config.d_model, config.n_heads, config.norm != "none"
        is_table, is_last = level == 0, level == config.n_layers
        widths: dict[str, int | str] = {}
        if not is_table:
            widths |= {"HEADS": d, "STATS": 2 * heads, "Y": d, "MLP_IN": d if has_norm else "Y", "Z": config.d_mlp}
        widths |= {"X": d, "INNER": d if (config.norm in ("pre", "replace") if is_table else has_norm) else "X"}
        if not is_last:
            widths |= {"QKV": 3 * d, "OF_QKV": (3 + config.residual) * d}
        widths |= {"OF_INNER": d, "OF_X": "OF_INNER" if widths["INNER"] == "X" else d}
        if not is_table:
            widths |= {"OF_Z": config.d_mlp, "OF_MLP_IN": d, "OF_Y": d if has_norm else "OF_MLP_IN"}
            widths |= {"OF_HEADS": d, "OF_QUERY": d, "WEIGHTS": 2 * seq_len * heads}
        return cls._placed(n_rows, seq_len, widths)

    @classmethod
    def of_evaluation(
        cls, config: TransformerConfig, level: int, n_rows: int, seq_len: int, *, has_hidden: bool
    ) -> Level:
        """has_hidden: the MLP's two products are one after the other, and Z between them."""
        d, norm, is_last = config.d_model, config.norm, level == config.n_layers
        widths: dict[str, int | str] = {}
        if level == 0:
            widths = {"X": d, "INNER": d if norm in ("pre", "replace") else "X", "QKV": 3 * d}
            return cls._placed(n_rows, seq_len, widths)
        in_turn = {"Y": (norm == "post") * d, "Z": has_hidden * config.d_mlp, "QKV": (not is_last) * 3 * d}
        widths = {"HEADS": d, "IN_TURN": max(in_turn.values())} | {name: "IN_TURN" for name, n in in_turn.items() if n}
        widths |= {"Y": widths.get("Y", d)}  # which the MLP's result is added to, except where norm is "post"
        widths |= {"MLP_IN": "Y" if norm == "none" else d, "X": "HEADS"}
        widths |= {"INNER": "X" if norm == "none" else "MLP_IN"}
        return cls._placed(n_rows, seq_len, widths)

    @classmethod
    def _placed(cls, n_rows: int, seq_len: int, widths: Mapping[str, int | str]) -> Level:
        """Numbers one after the other, or where another name has its own."""
        places: dict[str, int] = {}
        stride = 0
        for name, width in widths.items():
            if isinstance(width, str):
                places[name] = places[width]
            else:
                places[name], stride = stride, stride + padded(width)
        return cls(n_rows, seq_len, places, stride)


class Product(NamedTuple):
    """A matrix's gradient: gradᵀ act(x), of rows of a level or of the logits' gradient; and its bias's."""

    weight: str
    bias: str | None
    level: int
    grad: str  # a place, or "logits"
    x: str
    n_out: int
    n_in: int
    is_hidden: bool  # x goes through the activation


def products(config: TransformerConfig, names: Sequence[str], n_outputs: int) -> list[Product]:
    """All of them, the longest sums first; `names` are the parameters there are."""
    d, hidden = config.d_model, config.d_mlp
    found: list[Product] = []

    def add(weight: str, *rest: object) -> None:
        bias = weight.replace("w_", "b_") if weight.startswith("blocks") else None
        found.append(Product(weight, bias if bias in names else None, *rest))  # type: ignore[arg-type]

    for level in range(config.n_layers, 0, -1):
        block = f"blocks.{level - 1}"
        add(f"{block}.w_out", level, "OF_X", "Z", d, hidden, True)
        add(f"{block}.w_in", level, "OF_Z", "MLP_IN", hidden, d, False)
        if level == config.n_layers:
            add("unembedding", level, "logits", "INNER", n_outputs, d, False)
        add(f"{block}.w_o", level, "OF_Y", "HEADS", d, d, False)
    for level in range(config.n_layers - 1, -1, -1):
        add(f"blocks.{level}.w_qkv", level, "OF_QKV", "INNER", 3 * d, d, False)
    return found


def unit(config: TransformerConfig) -> int:
    """Of rows' strides and widths, in numbers: what the compiler knows to divide them."""
    return 1 if config.d_model % 16 or config.d_mlp % 16 else 16


def transposes(precision: str, config: TransformerConfig) -> bool:
    """Whether weights are transposed once a step for the way back, not in every tile of rows.

    tf32 products of Hopper take matrices whose sums run along adjacent numbers, and on the way back weights have them
    the other way round. bf16 products take both.
    """
    return precision == "tf32" and unit(config) > 1


def transposed(products: Sequence[Product]) -> tuple[dict[str, int], int]:
    """Where the transpose of each matrix begins, [n_in, padded(n_out)], and how many numbers all have."""
    places, end = {}, 0
    for p in products:
        places[p.weight] = end
        end += p.n_in * padded(p.n_out)
    return places, end


def offsets(shapes: Mapping[str, torch.Size]) -> dict[str, int]:
    """Where each parameter begins in a model's row of `flat`."""
    places, end = {}, 0
    for name, shape in shapes.items():
        places[name] = end
        end += shape.numel()
    return places


def n_chunks(n_rows: int) -> int:
    """Into how many chunks the rows of the longest product go."""
    return max(1, min(MAX_CHUNKS, n_rows // LEAST_ROWS))


def n_splits(chunks: int, tiles: int, n_models: int) -> int:
    """A program for each chunk while processors would idle otherwise, else one program for all: the same bits."""
    return chunks if tiles * n_models < 4 * PROCESSORS else 1


def height(precision: str, d: int, n_rows: int, n_models: int) -> int:
    """Rows of a tile: that with which the processors, or the L2 cache that they read from, are done first.

    A tile takes as long as it moves bytes. A model has the same bits at any height: what is summed in a row, or over
    rows, is summed in blocks of HEIGHTS[0] rows.
    """
    is_exact = precision in ("ieee", "tf32x3")  # whose products take longer than their bytes

    def time(rows: int) -> float:
        tiles = -(-n_rows // rows) * n_models
        return max(-(-tiles // PROCESSORS), 0 if is_exact else tiles / READERS) * (rows + WEIGHTS)

    return min(reversed(HEIGHTS[precision == "tf32x3" :]), key=time)


def launches(d: int, *phases: Sequence[str]) -> list[dict[str, bool]]:
    """What each launch of a level does of these phases: all in one where that does not spill.

    Wide models go through fewer phases in a launch, which need fewer registers.
    """
    together = [[flag for flags in phases for flag in flags]] if d <= 128 else phases
    return [dict.fromkeys(flags, True) for flags in together]


def rows_per_chunk(n_rows: int, chunks: int, rows: int) -> int:
    """Whole tiles of `rows` rows."""
    return -(-n_rows // (chunks * rows)) * rows


def tiles(
    kernel: str,
    precision: str,
    config: TransformerConfig,
    n_outputs: int = 1,
    height: int = HEIGHTS[1],
    trains: bool = True,
) -> dict[str, int]:
    """What cuts "enter", "rows" or "weights" into tiles, and the warps; none of these spills 100 bytes.

    Those of "rows" have `height` rows; not `trains`: they are an evaluation's.
    """
    d, is_exact = config.d_model, precision in ("ieee", "tf32x3")
    width = max(16, power_of_2(d))
    warps = 4 if precision == "tf32x3" else 8  # Triton gives each 16 rows of three products in a row: more repeat them
    if kernel == "enter":
        columns = min(64, max(16, power_of_2(3 * d)))
        return {"BM": 16, "BN": columns, "BK": min(16 if is_exact else 32, width), "BD": width, "num_warps": 4}
    if kernel == "weights":
        is_odd = unit(config) == 1  # loads of single numbers need registers, too
        side = min(64 if is_exact or is_odd else 128, max(width, 16))
        return {"BM": 16, "BO": side, "BN": side, "num_warps": warps, "num_stages": 3 if precision == "tf32" else 2}
    head, heads = power_of_2(d // config.n_heads), power_of_2(config.n_heads)
    crowded = config.norm == "post" or (config.norm, precision) == ("replace", "tf32")  # registers are scarce on sm_80
    # Triton gives each warp 16 rows of a product whose result goes on into another: of more warps some repeat it.
    warps = warps if is_exact or d > 128 else 4
    # Columns of a product, and numbers of attention: 64 and 2,048 spill 252 bytes in post-norm rows on sm_100.
    columns, attended = (32, 1024) if config.norm == "post" and not is_exact else (64, 2048)
    return {
        "BM": height,
        "BN": min(columns, max(width, 16)),
        "BK": min(16 if is_exact or (d > 128 and not trains) else 32, width),
        "BV": min(64 if is_exact or d > 128 else 128, max(16, power_of_2(n_outputs))),
        # Hidden units of a block of both products of the MLP; 0: one product after the other.
        "BU": 0 if is_exact or d > 128 else min(16 if crowded else 32, max(16, power_of_2(config.d_mlp))),
        # Rows of a block of LayerNorm, of the loss, and of attention.
        "BR": min(height, HEIGHTS[0], max(1, 8192 // width)),
        "BL": min(height, HEIGHTS[0]),
        "BA": min(height, HEIGHTS[0], max(1, attended // (head * heads))),
        "BD": width,
        "BH": heads,
        "BC": head,
        "num_warps": warps,
        "maxnreg": 255,  # left to itself, ptxas takes 128 and spills some
    }
