import dataclasses
import hashlib
import itertools
import math

import pytest
import torch

from grokfast import Experiment, RunStore, parts, train
from grokfast.seeds import generator
from grokfast.sweeps.grid import identity
from grokfast.tasks import OPERATIONS, GroupTask, ModularTask
from grokfast.tasks.modular import MAX_P, answers
from grokfast.tasks.split import corrupt_labels, stratified_split, train_size
from grokfast.tasks.table import LAYOUTS

PRIMES = (2, 3, 7, 13)


def oracle(operation, a, b, p):
    """The answer in Python integers; a quotient is found by trial."""

    def quotient():
        return next(c for c in range(p) if c * b % p == a)

    return {
        "add": lambda: a + b,
        "sub": lambda: a - b,
        "mul": lambda: a * b,
        "div": quotient,
        "a2+b2": lambda: a * a + b * b,
        "a2+ab+b2": lambda: a * a + a * b + b * b,
        "a2+ab+b2+a": lambda: a * a + a * b + b * b + a,
        "a3+ab": lambda: a * a * a + a * b,
        "a3+ab2+b": lambda: a * a * a + a * b * b + b,
        "conditional": lambda: quotient() if b % 2 else a - b,
    }[operation]() % p


def table(data):
    """{(a, b): answer} of every row, training rows first; two-token layouts only."""
    rows = torch.cat([data.train.inputs, data.test.inputs]).tolist()
    return dict(zip(map(tuple, rows), torch.cat([data.train.targets, data.test.targets]).tolist()))


def cases():
    for operation in OPERATIONS:
        for p in (*PRIMES, 12):
            if p in PRIMES or operation not in ("div", "conditional"):
                yield operation, p


@pytest.mark.parametrize(("operation", "p"), list(cases()))
def test_answers_match_python_integers(operation, p):
    data = ModularTask(operation=operation, p=p).build()
    pairs = [(a, b) for a in range(p) for b in range(int(operation == "div"), p)]
    assert table(data) == {(a, b): oracle(operation, a, b, p) for a, b in pairs}
    assert len(data.train.targets) + len(data.test.targets) == len(pairs)


@pytest.mark.parametrize("p", [*PRIMES, 97])
def test_division_is_exact(p):
    for (a, b), answer in table(ModularTask(operation="div", p=p).build()).items():
        assert answer * b % p == a
    for (a, b), answer in table(ModularTask(operation="conditional", p=p).build()).items():
        assert (answer * b if b % 2 else answer + b) % p == a


@pytest.mark.parametrize("operation", OPERATIONS)
def test_nothing_overflows_near_the_largest_p(operation):
    p = 8191 if operation in ("div", "conditional") else MAX_P
    a = torch.tensor([p - 1, p - 1, p - 2, 1, 0, p // 2])
    b = torch.tensor([p - 1, 1, p - 2, p - 1, p - 1, p // 2])
    quick = {"div": lambda a, b: a * pow(b, -1, p) % p}
    quick["conditional"] = lambda a, b: quick["div"](a, b) if b % 2 else (a - b) % p
    expected = [
        quick.get(operation, lambda a, b: oracle(operation, a, b, p))(x, y) for x, y in zip(a.tolist(), b.tolist())
    ]
    assert answers(operation, torch.stack([a, b], 1), p).tolist() == expected


def test_split_is_a_sorted_partition_of_the_pairs():
    data = ModularTask(p=13, train_fraction=0.3).build(seed=4)
    train, test = (inputs[:, 0] * 13 + inputs[:, 1] for inputs in (data.train.inputs, data.test.inputs))
    assert torch.equal(torch.cat([train, test]).sort().values, torch.arange(169))
    for rows in (train, test):
        assert (rows.diff() > 0).all()
    assert not torch.equal(train, torch.arange(len(train)))


@pytest.mark.parametrize(
    ("task", "n_train", "n_test"),
    [
        (ModularTask(p=113, train_fraction=0.3, layout="equals"), 3830, 8939),  # Nanda et al.
        (ModularTask(p=97, operation="mul", b_nonzero=True), 4656, 4656),  # Lee et al.
        (ModularTask(p=97, operation="div"), 4656, 4656),
        (ModularTask(p=10, train_fraction=0.29), 29, 71),  # 0.29 * 100 is 28.999999999999996 in floating point
        (ModularTask(p=3, train_fraction=0.999), 8, 1),
        (ModularTask(p=2, operation="div"), 1, 1),
    ],
)
@pytest.mark.parametrize("stratified", [False, True])
def test_split_sizes(task, n_train, n_test, stratified):
    data = dataclasses.replace(task, stratified=stratified).build()
    assert (len(data.train.inputs), len(data.train.targets), len(data.corrupted)) == (n_train,) * 3
    assert (len(data.test.inputs), len(data.test.targets)) == (n_test,) * 2
    assert task.n_pairs == n_train + n_test


@pytest.mark.parametrize("operation", ["add", "mul", "a2+b2"])
def test_stratified_split_balances_the_answers(operation):
    task = ModularTask(operation=operation, p=12, train_fraction=0.3, stratified=True)
    data = task.build(seed=1)
    in_train, in_test = (torch.bincount(t, minlength=12) for t in (data.train.targets, data.test.targets))
    sizes = in_train + in_test
    assert ((in_train - 0.3 * sizes).abs() < 1).all()
    assert in_train.sum() == int(0.3 * 144)
    assert not torch.equal(data.train.inputs, task.build(seed=2).train.inputs)


def test_stratified_remainder_goes_to_the_largest_then_the_lowest_class():
    targets = torch.tensor(
        [0] * 5 + [2] * 5 + [3] * 7 + [4] * 5
    )  # at 0.5: 2.5, 2.5, 3.5, 2.5 -> 2 more rows to hand out
    train, test = stratified_split(targets, 0.5, generator(0, "split"))
    assert torch.bincount(targets[train], minlength=5).tolist() == [3, 0, 3, 3, 2]
    targets = torch.tensor([0] * 4 + [1] * 7)  # at 0.4: 1.6, 2.8 of 4.4 -> one more row, to class 1
    train, test = stratified_split(targets, 0.4, generator(0, "split"))
    assert torch.bincount(targets[train]).tolist() == [1, 3]
    assert torch.equal(torch.cat([train, test]).sort().values, torch.arange(11))


@pytest.mark.parametrize("share", [0.0, 0.01, 0.3, 1.0])
def test_label_noise_is_exact_and_always_wrong(share):
    clean = ModularTask(p=31, train_fraction=0.4).build(seed=3)
    noisy = ModularTask(p=31, train_fraction=0.4, label_noise=share).build(seed=3)
    n_train = train_size(31 * 31, 0.4)
    assert noisy.corrupted.sum() == round(share * n_train)
    assert torch.equal(noisy.train.targets != clean.train.targets, noisy.corrupted)
    assert noisy.train.targets.min() >= 0
    assert noisy.train.targets.max() < 31
    assert torch.equal(noisy.test.targets, clean.test.targets)
    assert torch.equal(noisy.train.inputs, clean.train.inputs)


def test_wrong_answers_are_uniform():
    wrong, corrupted = corrupt_labels(torch.full((40_000,), 3), 1.0, 5, generator(0, "label_noise"))
    counts = torch.bincount(wrong, minlength=5)
    assert corrupted.all()
    assert counts[3] == 0
    assert ((counts[[0, 1, 2, 4]] - 10_000).abs() < 500).all()  # 5.8 standard deviations


def test_more_noise_keeps_the_noise_there_was():
    less, more = (ModularTask(p=13, label_noise=share).build() for share in (0.1, 0.2))
    assert (more.corrupted | ~less.corrupted).all()
    assert torch.equal(less.train.targets[less.corrupted], more.train.targets[less.corrupted])


def test_seeds_are_separate_and_default_to_the_experiments():
    def parts(seed=0, **seeds):
        data = ModularTask(p=13, label_noise=0.3, **seeds).build(seed=seed)
        return data.train.inputs, data.corrupted, data.train.targets

    split, noise, targets = parts()
    assert all(map(torch.equal, parts(), (split, noise, targets)))
    assert all(map(torch.equal, parts(seed=9, split_seed=0, noise_seed=0), (split, noise, targets)))

    other = parts(noise_seed=5)
    assert torch.equal(other[0], split)
    assert not torch.equal(other[1], noise)

    other = parts(split_seed=5)
    assert not torch.equal(other[0], split)
    assert torch.equal(other[1], noise)  # the same places in the sorted training set

    other = parts(seed=5)
    assert not torch.equal(other[0], split)
    assert not torch.equal(other[1], noise)


@pytest.mark.parametrize(
    ("layout", "columns", "n_tokens"),
    [("pair", ["a", "b"], 7), ("equals", ["a", "b", 7], 8), ("operator", ["a", 8, "b", 7], 9)],
)
def test_layouts(layout, columns, n_tokens):
    pair, data = (ModularTask(p=7, layout=name).build(seed=2) for name in ("pair", layout))
    assert (data.n_tokens, data.n_answers, data.seq_len) == (n_tokens, 7, len(columns))
    for plain, laid_out in ((pair.train.inputs, data.train.inputs), (pair.test.inputs, data.test.inputs)):
        operands = {"a": plain[:, 0], "b": plain[:, 1]}
        for i, column in enumerate(columns):
            assert (laid_out[:, i] == operands.get(column, column)).all()
    assert torch.equal(pair.train.targets, data.train.targets)
    assert {t.dtype for t in (data.train.inputs, data.train.targets, data.test.inputs, data.test.targets)} == {
        torch.int64
    }
    assert data.corrupted.dtype == torch.bool


def test_b_nonzero_leaves_zero_out():
    assert 0 not in {b for _, b in table(ModularTask(operation="mul", p=7, b_nonzero=True).build())}
    assert 0 in {b for _, b in table(ModularTask(operation="mul", p=7).build())}


def test_choices_can_be_listed():
    assert LAYOUTS == ("pair", "equals", "operator")


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"operation": "ad"}, ValueError, "operation .*'ad'.*did you mean 'add'"),
        ({"operation": None}, TypeError, "operation"),
        ({"p": 1}, ValueError, "p must be between 2 and 8192, got 1"),
        ({"p": 8193}, ValueError, "p must be between 2 and 8192, got 8193"),
        ({"p": 97.0}, TypeError, "p must be an integer"),
        ({"p": 12, "operation": "div"}, ValueError, "p must be prime.*'div'.*p=12"),
        ({"p": 91, "operation": "conditional"}, ValueError, "p must be prime.*'conditional'.*p=91"),
        ({"train_fraction": 0.0}, ValueError, "train_fraction"),
        ({"train_fraction": 1}, ValueError, "train_fraction"),
        ({"train_fraction": float("nan")}, ValueError, "train_fraction"),
        ({"train_fraction": "half"}, TypeError, "train_fraction"),
        ({"train_fraction": 0.1, "p": 3}, ValueError, "at least one training pair, got 0.1 of 9 pairs"),
        ({"split_seed": -1}, ValueError, "split_seed"),
        ({"noise_seed": 0.5}, TypeError, "noise_seed"),
        ({"label_noise": 1.01}, ValueError, "label_noise"),
        ({"label_noise": -0.1}, ValueError, "label_noise"),
        ({"layout": "triple"}, ValueError, "layout"),
        ({"stratified": 1}, TypeError, "stratified"),
        ({"b_nonzero": "no"}, TypeError, "b_nonzero"),
        ({"n_operands": 1}, ValueError, "n_operands must be between 2 and 8, got 1"),
        ({"n_operands": 3, "p": 409}, ValueError, r"must make at most 67,108,864 rows, .*: 68,417,929 rows, 2\.19 GB"),
        ({"operation": "add,mul", "layout": "operator", "p": 8000}, ValueError, "'add,mul': 128,000,000 rows"),
        ({"n_operands": 3, "operation": "sub"}, ValueError, "for n_operands=3 must be one of 'add', 'mul', or a polyn"),
        (
            {"n_operands": 3, "operation": "a+d"},
            ValueError,
            "a polynomial in a, b and c such as .*'a[+]d' .'d' is none",
        ),
        ({"operation": "a+c"}, ValueError, "a polynomial in a and b such as"),
        ({"p_b": 1}, ValueError, "p_b must be between 2 and 8192, got 1"),
        ({"p_b": 101, "operation": "div"}, ValueError, "p_b must be at most p=97 for operation 'div'.*got 101"),
        ({"operation": "add,mul"}, ValueError, "layout must be 'operator' for several operations.*got 'pair'"),
        (
            {"operation": "add,add", "layout": "operator"},
            ValueError,
            "operation must have each one once, got 'add,add'",
        ),
        ({"operation": "add,div", "layout": "operator", "p": 12}, ValueError, "p must be prime for operation 'div'"),
        ({"operation": "add,", "layout": "operator"}, ValueError, "operation must be one of 'add'"),
        ({"operation": "add,ad", "layout": "operator"}, ValueError, "operation must be one of .*'ad'.*did you mean"),
    ],
)
def test_bad_tasks_are_refused(arguments, error, message):
    with pytest.raises(error, match=message):
        ModularTask(**arguments)


def test_build_refuses_bad_arguments():
    with pytest.raises(ValueError, match="seed must be between"):
        ModularTask(p=5).build(seed=-1)
    with pytest.raises(ValueError, match="operation must be a polynomial"):
        answers("pow", torch.tensor([[1, 1]]), 5)


@pytest.mark.parametrize(
    ("task", "digest"),  # of 0.2's rows
    [
        (ModularTask(p=97, train_fraction=0.4), "e36be8259aa0ff3f"),
        (ModularTask(operation="div", p=13, layout="operator", label_noise=0.2), "58d01dc6dc95de3b"),
        (
            ModularTask(operation="a^2+3*a*b+1", p=12, layout="equals", stratified=True, label_noise=0.1),
            "fc7f52650f9df88c",
        ),
        (ModularTask(operation="mul", p=11, b_nonzero=True, split_seed=4), "035a705ffe1e5b3d"),
        (ModularTask(operation="conditional", p=7, noise_seed=1, label_noise=0.5), "21d4845d4b579cbe"),
        (GroupTask(group="S4", stratified=True, label_noise=0.1), "f9128378bdccf462"),
        (GroupTask(group="D5", operation="conjugation", layout="operator"), "2c2fabeca6adc6bc"),
    ],
)
def test_rows_stay_what_they_were(task, digest):
    data, found = task.build(seed=3), hashlib.sha256()
    for name, split in data.splits.items():
        found.update(name.encode() + split.inputs.numpy().tobytes() + split.targets.numpy().tobytes())
    found.update(data.corrupted.numpy().tobytes() + f"{data.n_tokens} {data.n_answers}".encode())
    assert found.hexdigest()[:16] == digest


def test_fields_that_came_later_are_in_no_hash_at_their_defaults():
    base = Experiment.preset("quick")
    assert not {"augment", "n_operands", "p_b"} & set(identity(base)["task"])
    assert identity(base.override({"task.n_operands": 3, "model": "mlp"}))["task"]["n_operands"] == 3


@pytest.mark.parametrize(
    ("operation", "value"),
    [("add", sum), ("mul", math.prod), ("a^2*c - b + 2", lambda t: t[0] ** 2 * t[2] - t[1] + 2)],
)
@pytest.mark.parametrize(("p", "k"), [(5, 3), (4, 3), (3, 5)])
def test_more_operands(operation, value, p, k):
    task = ModularTask(operation=operation, p=p, n_operands=k, train_fraction=0.3)
    data = task.build(seed=1)
    assert table(data) == {row: value(row) % p for row in itertools.product(range(p), repeat=k)}
    assert (
        (len(data.train), len(data.train) + len(data.test)) == (int(0.3 * p**k), p**k) == (task.n_rows(), task.n_pairs)
    )
    without_zero = ModularTask(operation=operation, p=p, n_operands=k, b_nonzero=True)
    assert without_zero.n_pairs == len(table(without_zero.build())) == p ** (k - 1) * (p - 1)
    assert all(row[1] for row in table(without_zero.build()))


@pytest.mark.parametrize(
    ("layout", "columns", "n_tokens"),
    [("pair", "abc", 5), ("equals", "abc=", 6), ("operator", "aoboc=", 7)],
)
def test_layouts_of_three_operands(layout, columns, n_tokens):
    pair, data = (ModularTask(p=5, n_operands=3, layout=name).build() for name in ("pair", layout))
    task = ModularTask(p=5, n_operands=3, layout=layout)
    assert (data.n_tokens, data.n_answers, data.seq_len, task.seq_len) == (n_tokens, 5, len(columns), len(columns))
    own = {**dict(zip("abc", pair.train.inputs.T)), "=": torch.tensor(5), "o": torch.tensor(6)}
    for column, tokens in zip(columns, data.train.inputs.T):
        assert (tokens == own[column]).all()


@pytest.mark.parametrize(("operation", "p", "p_b"), [("add", 7, 4), ("mul", 5, 12), ("div", 7, 5), ("sub", 4, 9)])
def test_operands_of_two_moduli(operation, p, p_b):
    task = ModularTask(operation=operation, p=p, p_b=p_b, layout="equals", label_noise=1.0)
    data = task.build()
    low = int(operation == "div")
    pairs = [(a, b, max(p, p_b)) for a, b in itertools.product(range(p), range(low, p_b))]
    assert sorted(map(tuple, torch.cat([data.train.inputs, data.test.inputs]).tolist())) == pairs
    assert task.n_pairs == len(pairs) == p * (p_b - low)
    assert (data.n_tokens, data.n_answers) == (max(p, p_b) + 1, p)
    assert data.test.targets.tolist() == [oracle(operation, a, b, p) for a, b, _ in data.test.inputs.tolist()]
    wrong = zip(data.train.targets.tolist(), data.train.inputs.tolist())
    assert all(0 <= label < p and label != oracle(operation, a, b, p) for label, (a, b, _) in wrong)


@pytest.mark.parametrize("stratified", [False, True])
@pytest.mark.parametrize("said", ["add,div,a^2+b", "(add, div, a**2 + b)"])
def test_several_operations_in_one_data_set(said, stratified):
    p, values = 5, {6: lambda a, b: a + b, 7: lambda a, b: a * pow(b, -1, 5), 8: lambda a, b: a * a + b}
    fields = {"p": p, "layout": "operator", "train_fraction": 0.4, "stratified": stratified}
    task = ModularTask(operation=said, **fields)
    data = task.build(seed=2)
    assert task.operation == "add,div,a^2+b"
    assert [*data.splits] == ["train", "test", "test_add", "test_div", "test_a^2+b"]
    assert (data.n_tokens, data.n_answers, data.seq_len, task.n_pairs) == (9, 5, 4, 25 + 20 + 25)
    rows = torch.cat([data.train.inputs, data.test.inputs]).tolist()
    assert len({*map(tuple, rows)}) == len(rows) == task.n_pairs
    for a, operator, b, equals, answer in torch.cat(
        [torch.cat([split.inputs, split.targets[:, None]], 1) for split in data.splits.values()]
    ).tolist():
        assert (equals, answer) == (5, values[operator](a, b) % 5)
    assert torch.bincount(data.train.inputs[:, 1]).tolist()[6:] == [10, 8, 10]
    assert len(data.train) == task.n_rows() == 28
    for operator, name in zip((6, 7, 8), task.operation.split(",")):
        assert torch.equal(data.test.inputs[data.test.inputs[:, 1] == operator], data.splits[f"test_{name}"].inputs)
    first = ModularTask(operation="add", **fields).build(seed=2)
    assert torch.equal(data.train.inputs[:10], first.train.inputs)
    assert torch.equal(data.splits["test_add"].inputs, first.test.inputs)


def test_each_operation_is_split_by_its_own_draw():
    data = ModularTask(operation="add,sub", p=13, layout="operator").build()
    add, sub = (data.splits[name].inputs[:, [0, 2]] for name in ("test_add", "test_sub"))
    assert len(add) == len(sub)
    assert not torch.equal(add, sub)


def test_noise_is_a_share_of_each_operation():
    data = ModularTask(operation="add,mul", p=7, layout="operator", label_noise=0.25).build()
    of_add = data.train.inputs[:, 1] == 8
    assert [int(data.corrupted[rows].sum()) for rows in (of_add, ~of_add)] == [6, 6]


@pytest.mark.parametrize("operation", ["add", "sub", "mul", "div", "conditional", "a2+ab+b2", "a^3 - 7*b"])
def test_difficulty_is_how_often_the_integers_go_round(operation):
    p = 7
    data = ModularTask(operation=operation, p=p).build()
    for (a, b), answer, found in zip(data.train.inputs.tolist(), data.train.targets.tolist(), data.difficulty.tolist()):
        divides = operation == "div" or (operation == "conditional" and b % 2)
        integer = {"add": a + b, "mul": a * b, "a2+ab+b2": a * a + a * b + b * b, "a^3 - 7*b": a**3 - 7 * b}
        value = answer * b if divides else integer.get(operation, a - b)
        assert found == abs(value // p)


def test_difficulty_of_what_is_too_large_to_count():
    difficulty = ModularTask(operation="a^1000 - b^1000", p=5).build().difficulty
    assert torch.isfinite(difficulty).all()
    assert difficulty.max() == 2**53


def test_several_operations_are_trained_and_stored_with_an_accuracy_each(tmp_path):
    experiment = Experiment.preset("nanda").override({
        "task": ModularTask(operation="add,a^2+b", p=5, layout="operator"), "model.d_model": 16, "model.n_heads": 2,
        "model.d_mlp": 16, "schedule.steps": 4, "schedule.eval_every": 2, "criteria.generalize": "test_a^2+b",
    })  # fmt: skip
    run = train(experiment, store=RunStore(tmp_path))
    assert Experiment.from_dict(experiment.to_dict()) == experiment
    assert parts.chosen("task", parts.shown(experiment.task)) == experiment.task
    curves = RunStore(tmp_path).curves(run.run_id)
    assert {"test_accuracy", "test_add_accuracy", "test_a^2+b_accuracy"} <= curves.keys()
    both = (curves["test_add_accuracy"] * 13 + curves["test_a^2+b_accuracy"] * 13) / 26
    assert curves["test_accuracy"] == pytest.approx(both)
