"""What a PairStep's gradient asks of a GPU, launch by launch."""

from __future__ import annotations

from benchmarks.prediction.work import Launch, Use
from grokfast.ops.pair_step.plan import PIECES, cdiv, n_chunks, n_splits, padded_classes, programs, tiles


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

    row_tiles = cdiv(n_rows, rows["BM"])
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

    token_blocks, class_blocks = cdiv(n_tokens, grad["BT"]), cdiv(n_answers, grad["BV"])
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
        found.append(launch("reduce", cdiv(parameters, 1024), 0, 0, use("parts", splits * parameters), summed))
    return found
