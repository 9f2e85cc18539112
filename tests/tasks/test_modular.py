import dataclasses

import pytest
import torch

from grokfast.seeds import generator
from grokfast.tasks import OPERATIONS, ModularTask
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
