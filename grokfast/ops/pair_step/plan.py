"""How a step is cut into programs, and what it costs: plain functions of sizes, with neither Triton nor a GPU.

Tiles and chunks depend on the model and hardly on the number of rows, never on how many models there are: so a model's
sums have one order. How many programs share the chunks among them depends on the GPU, and changes no bit.
"""

from __future__ import annotations

from grokfast.ops.work import Launch, Use

MAX_CHUNKS = 16
PIECES = {"ieee": 3, "tf32x3": 3, "tf32": 2, "bf16": 1}  # bf16 numbers that stand for one of a hidden unit's gradient


def _power_of_2(n: int) -> int:
    return 1 << (n - 1).bit_length()


def _cdiv(a: int, b: int) -> int:
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
    hidden, classes, tokens = (max(16, _power_of_2(n)) for n in (width, n_answers, n_tokens))
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
    of_tables = _cdiv(width, tile["BH"]) * _cdiv(n_tokens, tile["BT"])
    return of_tables + _cdiv(width, tile["BH_OUT"]) * _cdiv(n_answers, tile["BV"])


def rows_per_chunk(n_programs: int, n_rows: int) -> int:
    """Of a model's rows: 40 for each program, so that one model of 5,000 rows fills a GPU of 128 processors.

    Up to MAX_CHUNKS of these chunks the number of rows does not matter, so that those which others of an ensemble have
    beyond its own change no sum of a model.
    """
    rows = max(128, 64 * _cdiv(40 * n_programs, 64))
    while _cdiv(n_rows, rows) > MAX_CHUNKS:
        rows *= 2
    return rows


def n_chunks(n_programs: int, n_rows: int) -> int:
    """Into how many chunks a model's rows go."""
    return max(1, _cdiv(n_rows, rows_per_chunk(n_programs, n_rows)))


def n_splits(n_chunks: int, n_programs: int, n_models: int, n_processors: int) -> int:
    """A program for each chunk while processors would idle otherwise, else one program for all."""
    return n_chunks if n_programs * n_models < n_processors else 1


def cost(
    n_models: int,
    n_rows: int,
    *,
    width: int,
    n_tokens: int,
    n_answers: int,
    precision: str = "ieee",
    n_processors: int = 132,
    partial: bool = False,
    minibatch: bool = False,
) -> list[Launch]:
    """Counted from the kernels, for the gradient of a step; the optimizer's launches are not among them.

    partial: the optimizer sums the partial gradients of one model's splits, which is then not among them either.
    minibatch: rows are drawn from more, and so in no order; a whole data set's are sorted by their first operand.
    Bytes are those that every program asks for once, whichever cache answers; what a program reads again is taken to
    be in its own. FLOPs are those of the products, padding included; a product in three passes counts three times, and
    so do the bf16 ones that sum a token's rows. Arrays: "tables" are w_a, w_b and b_in, "classifier" weight and bias.
    """
    sizes = {"width": width, "n_tokens": n_tokens, "n_answers": n_answers}
    rows, grad = (tiles(kernel, precision, **sizes) for kernel in ("rows", "gradient"))
    n_programs = programs(grad, **sizes)
    chunks = n_chunks(n_programs, n_rows)
    splits = n_splits(chunks, n_programs, n_models, n_processors)
    tables, classifier = (2 * n_tokens + 1) * width, n_answers * (width + 1)
    parameters, logits = tables + classifier, n_rows * padded_classes(n_answers)
    passes, out = 3 if precision == "tf32x3" else 1, "parts" if splits > 1 else "grad"

    def use(array: str, size: int, asked: int | None = None, loads: bool = True, stores: bool = False) -> Use:
        return Use(array, 4 * n_models * size, 4 * n_models * (size if asked is None else asked), loads, stores)

    def launch(name: str, count: int, products: int, of_bf16: int, *uses: Use, largest: float = 1.0) -> Launch:
        flops, bf16 = (2 * n_models * of for of in (products + of_bf16, of_bf16))
        return Launch(name, f"{name}_kernel", count * n_models, (uses,), flops, bf16, largest=largest)

    row_tiles = _cdiv(n_rows, rows["BM"])
    of_b = row_tiles * min(rows["BM"], n_tokens)  # different rows of w_b that tiles read
    of_a = of_b if minibatch else min(of_b, n_tokens + row_tiles)
    products = row_tiles * rows["BM"] * rows["VP"] * (width + -width % rows["BH"]) * passes
    found = [
        launch(
            "rows", row_tiles, products, 0,
            use("tables", tables, (of_a + of_b) * width), use("classifier", classifier, row_tiles * classifier),
            use("rows", 3 * n_rows), use("loss of rows", 2 * n_rows, loads=False, stores=True),
            use("logits", logits, loads=False, stores=True),
        )
    ]  # fmt: skip

    token_blocks, class_blocks = _cdiv(n_tokens, grad["BT"]), _cdiv(n_answers, grad["BV"])
    of_tables, of_classes = (width + -width % grad[units] for units in ("BH", "BH_OUT"))
    # Every program of the tables reads all of the logits, those of the classifier the ones of their classes.
    read = (of_tables // grad["BH"] * token_blocks + of_classes // grad["BH_OUT"]) * logits
    k = n_answers + -n_answers % grad["BK"]
    products_of_tables = n_rows * of_tables * token_blocks * k * passes
    products_of_classes = n_rows * of_classes * class_blocks * grad["BV"] * passes
    of_bf16 = n_rows * of_tables * token_blocks * 2 * grad["BT"] * PIECES[precision]
    # A program of the tables multiplies more than one of the classifier.
    table_programs = of_tables // grad["BH"] * token_blocks
    share = (products_of_tables + of_bf16) / (products_of_tables + of_bf16 + products_of_classes)
    found.append(
        launch(
            "gradient", n_programs * splits, products_of_tables + products_of_classes, of_bf16,
            use("logits", logits, read), use("rows", 3 * n_rows, 3 * n_rows * n_programs),
            use("tables", tables, chunks * (token_blocks + class_blocks) * tables),
            use("classifier", classifier, chunks * token_blocks * classifier), use("loss of rows", 2 * n_rows),
            # What earlier chunks left is read again.
            use(out, splits * parameters, (chunks if splits > 1 else 2 * chunks - 1) * parameters, False, True),
            largest=max(1.0, share * n_programs / table_programs),
        )
    )  # fmt: skip
    if splits > 1 and not partial:
        summed = use("grad", parameters, loads=False, stores=True)
        found.append(launch("reduce", _cdiv(parameters, 1024), 0, 0, use("parts", splits * parameters), summed))
    return found


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
