"""Augmentation of tables, against sets of pairs."""

import dataclasses

import pytest
import torch

from grokfast import Experiment, train
from grokfast.tasks import GroupTask, ModularTask
from grokfast.tasks.group import composition
from grokfast.training.ensemble import Ensemble
from tests.training.common import same_result


def rows(split):
    """{operands: answer}"""
    return dict(zip(map(tuple, split.inputs.tolist()), split.targets.tolist()))


def orbit(pair, augment, p):
    """All pairs that augmentation makes of one, and whether each has the negative answer."""
    a, b = pair
    found = {(pair, False)}
    if "swap" in augment:
        found |= {((b, a), False)}
    if "negate" in augment:
        found |= {((-x % p, -y % p), True) for (x, y), _ in found}
    return found


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize(("operation", "p"), [("add", 13), ("add", 8), ("a^3+b^3", 11), ("a^3*b^2+a^2*b^3", 7)])
@pytest.mark.parametrize("augment", ["swap", "negate", "swap+negate"])
@pytest.mark.parametrize("stratified", [False, True])
def test_the_training_set_is_the_orbits_of_the_drawn_pairs(operation, p, augment, stratified, seed):
    task = ModularTask(operation=operation, p=p, train_fraction=0.4, stratified=stratified)
    plain, data = task.build(seed=seed), dataclasses.replace(task, augment=augment).build(seed=seed)
    table = {**rows(plain.train), **rows(plain.test)}
    expected = {pair for drawn in rows(plain.train) for pair, _ in orbit(drawn, augment, p)}
    shown = rows(data.train)
    assert set(shown) == expected
    assert len(shown) == len(data.train) == len(data.corrupted)
    assert set(rows(data.test)) == set(table) - expected
    assert {**shown, **rows(data.test)} == table  # the answers of the whole table, none wrong
    assert list(shown) == sorted(shown)
    assert list(rows(data.test)) == sorted(rows(data.test))
    assert data.coverage == len(expected) / p**2
    assert plain.coverage is None
    test = set(rows(data.test))
    assert not any(pair in test for drawn in shown for pair, _ in orbit(drawn, augment, p))


def test_swapping_covers_what_chance_says():
    data = ModularTask(p=97, train_fraction=0.4, augment="swap").build()
    assert data.coverage == pytest.approx(1 - 0.6**2, abs=0.01)
    control = ModularTask(p=97, train_fraction=data.coverage).build()
    assert abs(len(control.train) - len(data.train)) <= 1
    assert not torch.equal(control.train.inputs, data.train.inputs)


@pytest.mark.parametrize("augment", ["swap", "negate", "swap+negate"])
def test_a_made_row_has_the_label_of_a_training_row_wrong_or_not(augment):
    task = ModularTask(p=13, train_fraction=0.3, label_noise=0.3)
    plain, data = task.build(seed=2), dataclasses.replace(task, augment=augment).build(seed=2)
    drawn = rows(plain.train)
    wrong = dict(zip(drawn, plain.corrupted.tolist()))
    n_made = 0
    for (pair, label), is_wrong in zip(rows(data.train).items(), data.corrupted.tolist()):
        assert is_wrong == (label != sum(pair) % 13)
        if pair in drawn:
            assert (label, is_wrong) == (drawn[pair], wrong[pair])
            continue
        n_made += 1
        sources = sorted((other, negated) for other, negated in orbit(pair, augment, 13) if other in drawn)
        source, is_negated = sources[0]
        assert label == (-drawn[source] % 13 if is_negated else drawn[source])
        assert is_wrong == wrong[source]
    assert n_made > 10
    assert int(plain.corrupted.sum()) == round(0.3 * len(plain.train))  # of what was drawn


def test_pairs_that_the_table_leaves_out_are_not_made():
    data = ModularTask(operation="mul", p=7, b_nonzero=True, augment="swap", train_fraction=0.3).build()
    everything = {**rows(data.train), **rows(data.test)}
    assert len(everything) == 42
    assert all(b for _, b in everything)
    both = ModularTask(p=5, p_b=11, augment="swap", train_fraction=0.3).build()
    shown = rows(both.train)
    assert len({**shown, **rows(both.test)}) == 55
    assert all((b, a) in shown for a, b in shown if b < 5)
    assert any(b >= 5 for _, b in shown)


def test_three_operands_come_in_every_order():
    data = ModularTask(p=5, n_operands=3, augment="swap", train_fraction=0.1).build()
    drawn = rows(ModularTask(p=5, n_operands=3, train_fraction=0.1).build().train)
    kinds = {tuple(sorted(row)) for row in drawn}
    assert {tuple(sorted(row)) for row in rows(data.train)} == kinds
    assert not kinds & {tuple(sorted(row)) for row in rows(data.test)}
    assert all(sum(row) % 5 == answer for row, answer in rows(data.train).items())


@pytest.mark.parametrize(("group", "augment"), [("C2xC6", "swap+negate"), ("C7", "negate")])
def test_in_a_group_negatives_are_inverses(group, augment):
    task = GroupTask(group=group, train_fraction=0.2)
    plain, data = task.build(), dataclasses.replace(task, augment=augment).build()
    products = composition(group)
    inverse = [row.tolist().index(0) for row in products]
    expected = set()
    for a, b in rows(plain.train):
        expected |= {(a, b), (inverse[a], inverse[b])}
        expected |= {(b, a), (inverse[b], inverse[a])} if "swap" in augment else set()
    assert set(rows(data.train)) == expected
    assert all(products[pair] == answer for pair, answer in rows(data.train).items())


def test_layouts_are_those_of_the_same_pairs():
    pair, data = (ModularTask(p=7, augment="swap", layout=name).build() for name in ("pair", "operator"))
    assert torch.equal(data.train.inputs[:, [0, 2]], pair.train.inputs)
    assert torch.equal(data.train.targets, pair.train.targets)


@pytest.mark.parametrize(
    ("kind", "fields", "message"),
    [
        (ModularTask, {"operation": "sub", "augment": "swap"}, "'swap' needs .* any order.*: of 'sub' 0, 1 is 6, 1, 0"),
        (ModularTask, {"operation": "mul", "augment": "negate"}, "'negate' needs .* of 'mul' .*6, 6 is 1, 1, 1 is 1"),
        (ModularTask, {"operation": "a+b+1", "augment": "negate"}, "of 'a[+]b[+]1' 0, 0 is 1, 0, 0 is 1"),
        (ModularTask, {"operation": "a^2+b^2", "augment": "swap+negate"}, "augment 'negate' needs"),
        (ModularTask, {"operation": "add,sub", "layout": "operator", "augment": "swap"}, "of 'sub'"),
        (
            ModularTask,
            {"p_b": 5, "augment": "negate"},
            "'negate' takes operands of one modulus, got p=7, p_b=5",
        ),
        (ModularTask, {"augment": "swop"}, "augment must be one of 'none', 'swap'.*did you mean 'swap'"),
        (GroupTask, {"group": "S3", "augment": "swap"}, "augment 'swap' needs"),
        (GroupTask, {"group": "S3", "augment": "negate"}, "augment 'negate' needs"),
    ],
)
def test_an_operation_that_does_not_suit_is_refused_with_a_pair(kind, fields, message):
    with pytest.raises(ValueError, match=message):
        kind(**({"p": 7} if kind is ModularTask else {}), **fields)


def test_a_training_set_that_leaves_no_test_row_is_refused():
    task = ModularTask(p=2, train_fraction=0.75, augment="swap", split_seed=0)
    seeds = [seed for seed in range(20) if _leaves_none(dataclasses.replace(task, split_seed=seed))]
    assert 0 < len(seeds) < 20  # where 0, 1 or 1, 0 was kept from training
    with pytest.raises(ValueError, match=r"train_fraction must leave a test row, got 0.75: .*'swap' .* all 4 pairs"):
        dataclasses.replace(task, split_seed=seeds[0]).build()


def _leaves_none(task):
    (kept,) = rows(dataclasses.replace(task, augment="none").build().test)
    return kept in {(0, 1), (1, 0)}


QUICK = Experiment.preset("quick").override({
    "task.p": 7, "model.width": 16, "schedule.steps": 8, "schedule.eval_every": 4, "device": "cpu"
})  # fmt: skip


def test_augmented_runs_train_in_company_with_others():
    experiments = [QUICK.override({"task.augment": own, "seed": 1}) for own in ("none", "swap", "swap+negate")]
    ensemble = Ensemble(experiments)
    assert ensemble.coverage == experiments[0].task.build(seed=1).coverage
    ensemble.step()
    alone = Ensemble(experiments[1:2])
    alone.step()
    torch.testing.assert_close(ensemble.flat[1], alone.flat[0])
    assert Ensemble(experiments[2:]).coverage == experiments[2].task.build(seed=1).coverage
    same_result(train(experiments[1]), train(Experiment.from_dict(experiments[1].to_dict())))
