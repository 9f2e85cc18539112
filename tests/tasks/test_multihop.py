"""Facts of several hops: what follows from what, by definition; what is trained; and what each split is made of."""

import pytest
import torch

from grokfast import Experiment, train
from grokfast.tasks import MultihopTask
from tests.training.common import same_result
from tests.training.conftest import how, replayed  # noqa: F401

TASKS = [
    MultihopTask(),
    MultihopTask(n_entities=40, n_relations=12, out_degree=5, phi=2.0, n_test=100),
    MultihopTask(operation="comparison", n_entities=30, n_relations=4, n_values=5, phi=10.0),
]


def facts_of(task, data):
    """The atomic facts as a dict, from the tokens."""
    assert (data.splits["atomic"].inputs[:, 2] == task.n_entities + task.n_relations).all()
    assert (data.splits["atomic"].targets[:, 1] == -1).all()
    rows = zip(data.splits["atomic"].inputs.tolist(), data.splits["atomic"].targets.tolist())
    return {(h, r): t for (h, r, _), (t, _) in rows}


def inference(task, facts, row):
    """The two facts that a row of three tokens follows from, and its answer."""
    if task.operation == "composition":
        h, r1, r2 = row
        bridge = facts[h, r1]
        return {(h, r1), (bridge, r2)}, facts[bridge, r2]
    attribute, one, other = row
    a, b = facts[one, attribute], facts[other, attribute]
    return {(one, attribute), (other, attribute)}, task.n_values + (a > b) + (a >= b)


@pytest.mark.parametrize("task", TASKS, ids=str)
def test_inferred_facts_follow_and_no_test_row_is_trained(task):
    data = task.build(seed=5)
    facts = facts_of(task, data)
    assert len(facts) == task.n_atomic == task.n_entities * (task.out_degree or task.n_relations)
    seen, used = set(), {}
    for name in ("inferred", "test", "test_ood"):
        split, used[name] = data.splits[name], []
        assert (split.targets[:, 0] == -1).all()
        for row, (_, answer) in zip(split.inputs.tolist(), split.targets.tolist()):
            own, expected = inference(task, facts, row)
            assert answer == expected
            assert tuple(row) not in seen
            seen.add(tuple(row))
            used[name].append(own)
    assert len(data.splits["inferred"]) == int(task.phi * task.n_known)
    assert len(data.train) == task.n_rows()
    together = torch.cat([data.splits["atomic"].inputs, data.splits["inferred"].inputs])
    assert torch.equal(data.train.inputs, together)
    trained = set().union(*used["inferred"])
    for own in used["test_ood"]:  # nothing that follows from either fact is trained
        assert not own & trained
    known = trained | set().union(*used["test"])
    out = set().union(*used["test_ood"])
    assert not known & out
    assert len(known) <= task.n_known
    assert len(out) <= task.n_atomic - task.n_known


def test_sizes_are_those_of_the_graph():
    data = MultihopTask(n_test=10**6).build()
    facts = facts_of(MultihopTask(), data)
    assert (len(facts), MultihopTask().n_known, MultihopTask().n_inferred) == (1024, 820, 16_384)
    assert len(data.splits["inferred"]) == 7380  # nine for each of the 820
    assert 2600 < len(data.test) < 3600  # .8² of 16,384 is 10,500
    assert 450 < len(data.splits["test_ood"]) < 850  # .2²: 655
    assert MultihopTask(operation="comparison", n_entities=10, n_relations=3).n_inferred == 3 * 10 * 9


def test_shares_are_the_decimal_numbers_that_they_print_as():
    task = MultihopTask(n_entities=25, n_relations=4, ood_fraction=0.29, phi=1.1)  # 0.29 * 100 < 29 in binary
    assert (task.n_known, task.n_rows()) == (71, 100 + 78)


def test_the_seed_chooses_and_phi_only_how_many():
    few, many = (MultihopTask(phi=phi, split_seed=3).build() for phi in (2.0, 4.0))
    assert torch.equal(few.splits["atomic"].targets, many.splits["atomic"].targets)
    assert torch.equal(few.splits["test_ood"].inputs, many.splits["test_ood"].inputs)
    trained = [set(map(tuple, d.splits["inferred"].inputs.tolist())) for d in (few, many)]
    assert trained[0] < trained[1]
    assert torch.equal(
        MultihopTask().build(seed=3).train.targets, MultihopTask(split_seed=3).build(seed=8).train.targets
    )
    assert not torch.equal(MultihopTask().build(seed=3).train.targets, MultihopTask().build(seed=4).train.targets)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"operation": "negation"}, "operation must be one of 'composition', 'comparison'"),
        ({"out_degree": 17}, "out_degree must be between 1 and 16, got 17"),
        ({"operation": "comparison", "out_degree": 3}, "out_degree must be None for a comparison, got 3"),
        ({"n_entities": 1}, "n_entities must be between 2"),
        ({"ood_fraction": 0.0}, "ood_fraction must be"),
        ({"ood_fraction": 1e-4}, "ood_fraction must leave an atomic fact out of distribution, got 0.0001"),
        ({"phi": 0}, "phi must be"),
        ({"n_entities": 60_000, "n_relations": 100}, "at most 33,554,432 inferred facts, got 600,000,000"),
    ],
)
def test_bad_tasks_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        MultihopTask(**arguments)


def test_a_phi_beyond_what_there_is_says_what_there_is():
    with pytest.raises(
        ValueError, match=r"phi must leave an inferred fact in distribution to test: below 12\.\d+, got 18"
    ):
        MultihopTask(phi=18.0).build()


SMALL = Experiment.preset("nanda").override(
    {
        "task": MultihopTask(n_entities=10, n_relations=4, phi=1.5), "model.n_layers": 2, "model.d_model": 16,
        "model.d_mlp": 24, "model.n_heads": 2, "model.norm": "pre", "optimizer.decayed": "matrices",
        "criteria.memorize": "inferred", "schedule.steps": 12, "schedule.batch_size": 20, "schedule.eval_every": 4,
        "device": "cpu",
    }
)  # fmt: skip


def test_in_company_as_alone(how):  # noqa: F811
    experiments = [SMALL.override({"seed": 0}), SMALL.override({"seed": 1, "task.phi": 1.0})]
    for together, experiment in zip(train(experiments), experiments):
        same_result(together, train(experiment))
        assert {"test_ood_accuracy", "atomic_loss", "inferred_accuracy"} <= together.curves.keys()
        positions = sorted(name for name in together.curves if name[-1].isdigit())  # no others are asked
        assert positions == [
            "atomic_accuracy_1", "inferred_accuracy_2", "test_accuracy_2", "test_ood_accuracy_2", "train_accuracy_1",
            "train_accuracy_2",
        ]  # fmt: skip
