"""How a step is cut into programs: plain functions of sizes, with neither Triton nor a GPU.

Tiles and chunks depend on the model and hardly on the number of rows, never on how many models there are: so a model's
sums have one order. How many programs share the chunks among them depends on the GPU, and changes no bit.
"""

from __future__ import annotations

from grokfast.ops.configurations import power_of_2

MAX_CHUNKS = 16
PIECES = {"ieee": 3, "tf32x3": 3, "tf32": 2, "bf16": 1}  # bf16 numbers that stand for one of a hidden unit's gradient


def cdiv(a: int, b: int) -> int:
    return -(-a // b)


def padded_classes(n_answers: int) -> int:
    """VS: the stride of the logits' gradient, 64 bytes or a multiple, so that it is read 16 bytes at a time."""
    return n_answers + -n_answers % 16


def tiles(
    kernel: str, precision: str, capability: int = 90, *, width: int, n_tokens: int, n_answers: int
) -> dict[str, int]:
    """The constants of "rows" or "gradient" that cut it into tiles, and its warps; none of these spills a register.

    capability: 80 for 8.0. From 9.0 to 10.x the tensor cores read shared memory, which leaves registers for more.
    """
    hidden, classes, tokens = (max(16, power_of_2(n)) for n in (width, n_answers, n_tokens))
    is_exact = precision in ("ieee", "tf32x3")
    if kernel == "rows":
        return {
            "BM": max(16, min(64, 64 * 128 // classes)),
            "BH": min(16 if is_exact else 32, hidden),
            "VP": classes,
            "num_warps": 8,
        }
    if is_exact:
        rows, units, step, rows_out, units_out = 32, 32, 16, 16 if precision == "ieee" else 32, 32
    elif 90 <= capability < 110:
        rows, units, step, rows_out, units_out = 64, 64, 64, 32, 128
    else:
        rows, units, step, rows_out, units_out = 32, 32, 32, 32, 64
    return {
        "BM": rows,
        "BH": min(units, hidden),
        "BT": min(128, tokens),
        "BK": min(step, classes),
        "BM_OUT": rows_out,
        "BH_OUT": min(units_out, hidden),
        "BV": min(128, classes),
        "num_warps": 8,
    }


def programs(tile: dict[str, int], *, width: int, n_tokens: int, n_answers: int) -> int:
    """Programs of "gradient" for one model and one split of its rows."""
    of_tables = cdiv(width, tile["BH"]) * cdiv(n_tokens, tile["BT"])
    return of_tables + cdiv(width, tile["BH_OUT"]) * cdiv(n_answers, tile["BV"])


def rows_per_chunk(n_programs: int, n_rows: int) -> int:
    """Of a model's rows: 40 for each program, so that one model of 5,000 rows fills a GPU of 128 processors.

    Up to MAX_CHUNKS of these chunks the number of rows does not matter, so that those which others of an ensemble have
    beyond its own change no sum of a model.
    """
    rows = max(128, 64 * cdiv(40 * n_programs, 64))
    while cdiv(n_rows, rows) > MAX_CHUNKS:
        rows *= 2
    return rows


def n_chunks(n_programs: int, n_rows: int) -> int:
    """Into how many chunks a model's rows go."""
    return max(1, cdiv(n_rows, rows_per_chunk(n_programs, n_rows)))


def n_splits(n_chunks: int, n_programs: int, n_models: int, n_processors: int) -> int:
    """A program for each chunk while processors would idle otherwise, else one program for all."""
    return n_chunks if n_programs * n_models < n_processors else 1


def splits_of(n_models: int, n_rows: int, precision: str, **sizes: int) -> int:
    """Partial gradients of a PairStep on an H200."""
    count = programs(tiles("gradient", precision, **sizes), **sizes)
    return n_splits(n_chunks(count, n_rows), count, n_models, 132)


def memory(n_models: int, n_batch: int, *, width: int, n_tokens: int, n_answers: int, precision: str = "ieee") -> int:
    """Bytes of scratch that a PairStep takes for models with biases, beside 24 bytes for each row of its data."""
    sizes = {"width": width, "n_tokens": n_tokens, "n_answers": n_answers}
    splits = splits_of(n_models, n_batch, precision, **sizes)
    parameters = (2 * n_tokens + 1 + n_answers) * width + n_answers
    partial = splits * (parameters + -parameters % 16) if splits > 1 else 0
    return 4 * n_models * (n_batch * (padded_classes(n_answers) + 2) + partial)
