"""Which rows are shown at a step, and how."""

import dataclasses
from dataclasses import dataclass

import pytest
import torch

from grokfast.schedules import Change, Curriculum, SwapOperands
from grokfast.schedules.batches import augmented, is_augmented, shown
from grokfast.schedules.swap_operands import uniform
from grokfast.tasks import ModularTask
from grokfast.training import Experiment
from grokfast.training.batches import Orders

DATA = ModularTask(p=7, operation="add").build()
N = len(DATA.train.targets)


def test_a_curriculum_grows_from_the_smallest_operands():
    rows = Curriculum(steps=10, start=0.25).rows(0, 12, DATA)
    counts = rows.sum(1).tolist()
    assert counts[0] == -(-N // 4)
    assert counts == sorted(counts)
    assert counts[10:] == [N, N]
    size = DATA.train.inputs.sum(1)
    for of_step in rows[:10]:
        assert size[of_step].max() <= size[~of_step].min() if not of_step.all() else True
    assert torch.equal(Curriculum(steps=10, start=0.25).rows(3, 5, DATA), rows[3:5])
    assert Curriculum(steps=4, by="order").rows(0, 1, DATA)[0].tolist() == [i < -(-N // 10) for i in range(N)]


@pytest.mark.parametrize("size", [5, N])
def test_batches_are_of_the_rows_that_are_shown(size):
    curriculum = Curriculum(steps=20, start=0.2)
    experiments = [Experiment(seed=i) for i in range(2)]
    orders = Orders(experiments, [N, N], size, [shown([curriculum], DATA), None])
    plain = Orders(experiments, [N, N], size)
    batches = orders.batches(0, 30)
    assert torch.equal(batches[:, 1], plain.batches(0, 30)[:, 1])
    for step, batch in enumerate(batches[:, 0]):
        allowed = curriculum.rows(step, step + 1, DATA)[0]
        taken = batch[batch >= 0].tolist()
        assert len(set(taken)) == len(taken) == min(size, int(allowed.sum()))
        assert allowed[taken].all()
        assert batch[: len(taken)].min() >= 0  # gaps are at the end
    assert torch.equal(orders.batches(7, 12), batches[7:12])


@dataclass(frozen=True)
class Nothing(Change):
    wrong: bool = False

    def rows(self, begin, end, data):
        return torch.zeros(end - begin, 1 if self.wrong else N, dtype=torch.bool)


def test_a_step_without_rows_is_refused():
    orders = Orders([Experiment()], [N], 5, [shown([Curriculum(steps=5), Nothing()], DATA)])
    with pytest.raises(ValueError, match=r"schedule.changes leave no row of the training set at step 3"):
        orders.batches(3, 4)
    with pytest.raises(ValueError, match=rf"Nothing.rows must be bool \[2, {N}\], got torch.bool \[2, 1\]"):
        shown([Nothing(wrong=True)], DATA)(0, 2)
    assert shown([SwapOperands()], DATA) is None


@pytest.mark.parametrize(("layout", "second"), [("pair", 1), ("equals", 1), ("operator", 2)])
def test_swapped_operands_are_a_share_of_the_rows(layout, second):
    data = ModularTask(p=31, layout=layout).build()
    inputs, targets = (t.expand(2, *t.shape) for t in (data.train.inputs, data.train.targets))
    step, seeds = torch.tensor([5, 5]), torch.tensor([0, 1])
    swapped, same = augmented([SwapOperands(share=0.25)], inputs, targets, step, seeds)
    assert same is targets
    order = list(range(inputs.shape[2]))
    order[0], order[second] = second, 0
    is_swapped = (swapped == inputs[..., order]).all(2) & (swapped != inputs).any(2)
    assert ((swapped == inputs).all(2) | is_swapped).all()
    assert torch.allclose(is_swapped.double().mean(1), torch.tensor(0.25).double(), atol=0.06)
    assert not torch.equal(is_swapped[0], is_swapped[1])
    alone, _ = augmented([SwapOperands(share=0.25)], inputs[1:], targets[1:], step[1:], seeds[1:])
    assert torch.equal(alone[0], swapped[1])
    later, _ = augmented([SwapOperands(share=0.25)], inputs, targets, step + 1, seeds)
    assert not torch.equal(later, swapped)


def test_numbers_of_counters_are_uniform_and_unlike():
    drawn = uniform(torch.arange(100)[:, None], torch.arange(1000))
    assert ((drawn >= 0) & (drawn < 1)).all()
    assert len(drawn.unique()) == drawn.numel()
    assert abs(drawn.mean() - 0.5) < 0.005
    histogram = torch.histc(drawn.float(), 20)
    assert ((histogram - 5000).abs() < 5 * 5000**0.5).all()
    assert torch.corrcoef(drawn[:20]).sub(torch.eye(20)).abs().max() < 0.15


def test_swapping_needs_an_answer_that_does_not_depend_on_the_order():
    SwapOperands().check(ModularTask(p=7, operation="mul", augment="swap").build())
    SwapOperands().check(ModularTask(p=7, operation="add", label_noise=0.5, augment="swap").build())
    mixed = ModularTask(p=7, operation="add,mul", layout="operator", augment="swap").build()
    SwapOperands().check(mixed)
    with pytest.raises(ValueError, match="swap_operands needs a task whose answer does not depend on the order: "):
        SwapOperands().check(ModularTask(p=7, operation="sub", train_fraction=0.9).build())


@pytest.mark.parametrize("layout", ["pair", "equals", "operator"])
def test_swapping_shows_no_row_of_the_test_set(layout):
    task = ModularTask(p=7, operation="mul", layout=layout)
    data = task.build()
    pairs = [{(row[0], row[2 if layout == "operator" else 1]) for row in split.inputs.tolist()}
             for split in (data.train, data.test)]  # fmt: skip
    met = {(b, a) for a, b in pairs[0]} & pairs[1]
    expected = f"rows of 'test' in training, {len(met)} of {len(data.test)}, such as {min(met)[0]}, {min(met)[1]}: "
    with pytest.raises(ValueError, match=f"swap_operands shows {expected}with task.augment=swap"):
        SwapOperands().check(data)
    SwapOperands(share=0).check(data)
    SwapOperands().check(dataclasses.replace(task, augment="swap").build())


def test_who_changes_rows_is_known():
    assert is_augmented([Curriculum(steps=3), SwapOperands()])
    assert not is_augmented([Curriculum(steps=3)])


@dataclass(frozen=True)
class Longer(Change):
    def augment(self, inputs, targets, step, seeds):
        return torch.cat([inputs, inputs], 1), targets


def test_augmenting_keeps_shapes():
    with pytest.raises(ValueError, match=r"Longer.augment must keep shapes .*, it made \[\[1, 6"):
        augmented([Longer()], torch.zeros(1, 3, 2), torch.zeros(1, 3), torch.zeros(1), torch.zeros(1))
