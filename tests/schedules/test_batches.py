"""Which rows are shown at a step, and how."""

import dataclasses
import itertools
from dataclasses import dataclass

import pytest
import torch

from grokfast.schedules import Change, Curriculum, PacedCurriculum, SwapOperands
from grokfast.schedules.batches import augmented, is_augmented, shown
from grokfast.schedules.swap_operands import uniform
from grokfast.store.records import Record
from grokfast.tasks import GroupTask, ModularTask
from grokfast.training import Experiment
from grokfast.training.batches import Orders
from grokfast.training.ensemble import Ensemble

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


@pytest.mark.parametrize("operation", ["add", "mul"])
def test_a_curriculum_by_difficulty_shows_what_goes_round_least_first(operation):
    data = ModularTask(p=7, operation=operation, train_fraction=0.8).build()
    rounds = torch.tensor([(a + b if operation == "add" else a * b) // 7 for a, b in data.train.inputs.tolist()])
    assert rounds.unique().tolist() == ([0, 1] if operation == "add" else [0, 1, 2, 3, 4, 5])
    rows = Curriculum(steps=20, by="difficulty").rows(0, 20, data)
    for of_step in rows:
        assert rounds[of_step].max() <= rounds[~of_step].min()
        level = (rounds == rounds[of_step].max()).nonzero()[:, 0]  # within one as the task has them
        assert of_step[level].tolist() == sorted(of_step[level].tolist(), reverse=True)
    with pytest.raises(ValueError, match=r"curriculum.by must be .* for a task without a difficulty of rows"):
        Curriculum(steps=3, by="difficulty").check(GroupTask(group="C5").build())
    with pytest.raises(ValueError, match=r"paced_curriculum.by must be"):
        PacedCurriculum(by="difficulty").check(GroupTask(group="C5").build())


def test_a_random_curriculum_is_of_its_seed():
    one, same, other = (Curriculum(steps=20, by="random", seed=seed).rows(0, 20, DATA) for seed in (3, 3, 4))
    assert torch.equal(one, same)
    assert not torch.equal(one[10], other[10])
    assert one.sum(1).tolist() == other.sum(1).tolist() == Curriculum(steps=20).rows(0, 20, DATA).sum(1).tolist()
    for before, after in itertools.pairwise(one):
        assert not (before & ~after).any()
    first = [Curriculum(steps=20, by="random", seed=s, start=0.5).rows(0, 1, DATA)[0] for s in range(200)]
    share = torch.stack(first).double().mean(0)
    assert (share - 0.5).abs().max() < 0.18  # every row as often: 5 standard deviations


def test_a_curriculum_that_never_shows_all_rows_is_refused_before_a_step_but_can_be_read():
    base = Experiment.preset("quick").override(
        {"task.p": 7, "schedule.steps": 10, "schedule.eval_every": 3, "device": "cpu"}
    )

    def built(change, **fields):
        experiment = base.override({"schedule.changes": (change,), **fields})
        assert Experiment.from_dict(experiment.to_dict()) == experiment
        return Ensemble([experiment])

    with pytest.raises(ValueError, match=r"curriculum.steps must be below schedule.steps, 10, .* got 10"):
        built(Curriculum(steps=10))
    built(Curriculum(steps=10, start=1.0))
    built(Curriculum(steps=9))
    assert Curriculum(steps=9).rows(9, 10, DATA).all()
    with pytest.raises(
        ValueError, match=r"paced_curriculum.increment must .* got 0.2: from 0.1 on 4 evaluations .* 0.9"
    ):
        built(PacedCurriculum(increment=0.2))
    built(PacedCurriculum(increment=0.225))


def test_a_paced_curriculum_rises_with_accuracy_on_what_it_shows():
    change = PacedCurriculum(start=0.2, increment=0.3, threshold=0.9)
    shares = []
    for accuracy in (0.17, float("nan"), 0.18, 0.44, 0.46, 0.71, 0.72, 1.0):
        change = change.following(Record(0, {"train_accuracy": accuracy}))
        shares.append(change.start)
        assert int(change.rows(0, 1, DATA).sum()) == -(-round(10 * change.start) * N // 10)
    assert shares == [0.2, 0.2, 0.5, 0.5, 0.8, 0.8, 1.0, 1.0]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"increment": 0.0}, r"paced_curriculum.increment must be in \(0, 1\]"),
        ({"threshold": 1.5}, r"paced_curriculum.threshold must be in \(0, 1\]"),
        ({"by": "ease"}, "paced_curriculum.by|by must be one of"),
        ({"seed": -1}, "paced_curriculum.seed"),
    ],
)
def test_bad_paces_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        PacedCurriculum(**fields)


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
