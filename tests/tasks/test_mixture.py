"""Two tasks in one training set: rows by definition, tokens kept apart, written and stored in every way."""

import dataclasses
import json

import pytest
import torch

from grokfast import Experiment, RunStore, parts, train
from grokfast.cli import main
from grokfast.sweeps.grid import expand, identity
from grokfast.sweeps.text import parse_axes
from grokfast.tasks import GroupTask, MixtureTask, ModularTask, MultihopTask, ParityTask, SequenceTask, Tensors
from grokfast.training import resume
from grokfast.training.ensemble import Ensemble
from tests.training.common import same_result

ADD, MUL = ModularTask(p=7), ModularTask(p=5, operation="mul", label_noise=0.25)
MIXTURE = MixtureTask(first=ADD, second=MUL, ratio=0.25)
QUICK = Experiment.preset("quick").override({
    "task": MIXTURE, "model.width": 16, "schedule.steps": 8, "schedule.eval_every": 4, "device": "cpu"
})  # fmt: skip


def rows(split):
    return [(*row, answer) for row, answer in zip(split.inputs.tolist(), split.targets.tolist())]


@pytest.mark.parametrize("seed", [0, 5])
def test_rows_of_the_second_follow_those_of_the_first(seed):
    data, first, second = (task.build(seed=seed) for task in (MIXTURE, ADD, MUL))
    n = len(first.train)
    more = round(0.25 * n)
    assert rows(data.train)[:n] == rows(first.train)
    assert (len(data.train), MIXTURE.n_rows()) == (n + more, n + more)
    shifted = [(a + 7, b + 7, answer + 7) for a, b, answer in rows(second.train)]
    drawn = rows(data.train)[n:]
    assert drawn == [row for row in shifted if row in drawn]  # each once, in its order
    assert len({*drawn}) == more
    wrong = dict(zip(shifted, second.corrupted.tolist()))
    assert data.corrupted.tolist() == first.corrupted.tolist() + [wrong[row] for row in drawn]
    assert [*data.splits] == ["train", "test", "test_second"]
    assert rows(data.test) == rows(first.test)
    assert rows(data.splits["test_second"]) == [(a + 7, b + 7, y + 7) for a, b, y in rows(second.test)]
    assert (data.n_tokens, data.n_answers, data.seq_len, MIXTURE.seq_len) == (12, 12, 2, 2)


def test_what_is_mixed_in_is_of_its_seed():
    def drawn(seed=0, **fields):
        task = MixtureTask(first=ModularTask(p=7, split_seed=1), second=ModularTask(p=7, split_seed=2), **fields)
        data = task.build(seed=seed)
        return rows(data.train)[24:]

    assert drawn() == drawn(seed=4, mix_seed=0) != drawn(seed=4)
    assert drawn(mix_seed=1) != drawn(mix_seed=2)
    assert len(drawn(ratio=1.0)) == 24
    counts = torch.zeros(24)
    everything = drawn(ratio=1.0)
    for seed in range(200):
        for row in drawn(mix_seed=seed):
            counts[everything.index(row)] += 1
    assert ((counts - 100).abs() < 5 * 50**0.5).all()


def test_it_nests_and_keeps_what_is_known_of_the_first():
    augmented = ModularTask(p=7, augment="swap")
    mixed = MixtureTask(first=augmented, second=MUL, ratio=0.2)
    assert mixed.build().coverage == augmented.build().coverage
    assert mixed.n_rows() == 0
    outer = MixtureTask(first=GroupTask(group="C4"), second=MIXTURE)
    assert [*outer.build().splits] == ["train", "test", "test_second", "test_second_second"]
    assert outer.build().n_tokens == 4 + 12
    with pytest.raises(ValueError, match="first must have no split 'test_second', which is the second's"):
        MixtureTask(first=MIXTURE, second=ADD).build()


def test_sequences_and_tensors_mix():
    first, second = SequenceTask(length=3, n_symbols=6, n_train=60, n_test=40), SequenceTask(
        operation="reverse", length=3, n_symbols=5, n_train=50, n_test=40
    )  # fmt: skip
    data = MixtureTask(first=first, second=second).build()
    assert (len(data.train), data.n_positions, data.n_tokens, data.n_answers) == (90, 3, 13, 11)
    assert data.train.targets[60:].min() >= 6
    x = torch.randint(0, 4, (20, 2))
    own = Tensors(x, x[:, 0], x, x[:, 1])
    mixed = MixtureTask(first=ADD, second=own, ratio=0.5)
    assert mixed.attachments() == own.attachments()
    assert len(mixed.attachments()) > 0
    assert mixed.build().n_tokens == 7 + own.build().n_tokens


@pytest.mark.parametrize(
    "said",
    [
        "mixture(first=modular(p=7),second=modular(p=5,operation=mul,label_noise=0.25),ratio=0.25)",
        "mixture(first='modular(p=7)', second='modular(p=5, operation=mul, label_noise=0.25)', ratio=0.25)",
        {"kind": "mixture", "first": "modular(p=7)", "second": MUL, "ratio": 0.25},
        {"kind": "mixture", "first": {"kind": "modular", "p": 7}, "ratio": 0.25,
         "second": {"kind": "modular", "p": 5, "operation": "mul", "label_noise": 0.25}},
    ],
)  # fmt: skip
def test_it_is_written_in_every_way(said):
    assert parts.chosen("task", said) == MIXTURE
    assert parts.chosen("task", parts.shown(MIXTURE)) == MIXTURE
    several = MixtureTask(
        first=ModularTask(operation="add,(a+b)*a", layout="operator"), second=ModularTask(layout="operator")
    )
    assert parts.chosen("task", parts.shown(several)) == several
    assert parts.from_plain("task", json.loads(json.dumps(parts.to_plain(MIXTURE))), "task") == MIXTURE


def test_it_is_overridden_by_dotted_names_and_stored(tmp_path):
    assert Experiment.from_dict(json.loads(json.dumps(QUICK.to_dict()))) == QUICK
    other = QUICK.override({"task.first.p": 11, "task.second.label_noise": 0.5, "task.ratio": 0.1})
    assert other.task == MixtureTask(
        first=ModularTask(p=11), second=dataclasses.replace(MUL, label_noise=0.5), ratio=0.1
    )
    assert QUICK.override({"task.second": "group(group=S3)"}).task.second == GroupTask(group="S3")
    assert {"task.first.train_fraction", "task.second.noise_seed", "task.ratio"} <= {*QUICK.varying()}
    assert "augment" not in identity(QUICK)["task"]["first"]
    with pytest.raises(ValueError, match=r"unknown option 'task.first.q'"):
        QUICK.override({"task.first.q": 3})
    run = train(QUICK, store=RunStore(tmp_path))
    longer = resume(run.run_id, store=RunStore(tmp_path), steps=12)
    same_result(longer, train(QUICK.override({"schedule.steps": 12})))
    assert "test_second_accuracy" in longer.curves


def test_it_is_an_axis_of_a_grid():
    text = "task=modular(p=7),mixture(ratio=0.5,first=modular(p=7),second=modular(p=5)),parity"
    axes = parse_axes(QUICK, [text])
    assert axes["task"] == [ADD, MixtureTask(first=ADD, second=ModularTask(p=5)), ParityTask()]
    cells = expand(QUICK, parse_axes(QUICK, ["task.first.p=5,7", "task.ratio=0.25,0.5"]))
    assert [(c.experiment.task.first.p, c.experiment.task.ratio) for c in cells] == [
        (5, 0.25), (5, 0.5), (7, 0.25), (7, 0.5)
    ]  # fmt: skip


def test_runs_of_other_ratios_train_together():
    experiments = [QUICK.override({"task.ratio": ratio, "seed": i}) for i, ratio in enumerate((0.25, 0.5))]
    together = Ensemble(experiments)
    together.step()
    for i, experiment in enumerate(experiments):
        alone = Ensemble([experiment])
        alone.step()
        torch.testing.assert_close(together.flat[i], alone.flat[0])


def test_the_command_line_takes_it(tmp_path, capsys):
    arguments = [
        "run", "quick", "--task", "mixture(first=modular(p=7),second=modular(p=5,operation=mul))", "--task.first.p",
        "11", "--task.second.label-noise", "0.5", "--task.ratio", "0.15", "--steps", "4", "--out", str(tmp_path),
        "--json",
    ]  # fmt: skip
    assert main(arguments) == 0
    (run,) = RunStore(tmp_path).list()
    stored = Experiment.from_dict(run.config).task
    assert (stored.first.p, stored.second.p, stored.second.label_noise, stored.ratio) == (11, 5, 0.5, 0.15)


@pytest.mark.parametrize(
    ("fields", "error", "message"),
    [
        ({"first": "none"}, TypeError, "first must be a task, got 'none'"),
        ({"first": 3}, TypeError, "first must be a task"),
        ({"second": "modullar"}, ValueError, "second must be one of .*did you mean 'modular'"),
        ({"second": "modular(p=1)"}, ValueError, "second.*p must be between 2 and 8192, got 1"),
        ({"ratio": 0}, ValueError, r"ratio must be in \(0"),
        ({"ratio": 0.01}, ValueError, "ratio must make at least one row .* got 0.01: 0 to 24 of the first"),
        ({"ratio": 2.0}, ValueError, "at most the 24 that second has for training, got 2.0: 48 to 24 of the first"),
        ({"mix_seed": -1}, ValueError, "mix_seed must be between"),
        ({"second": ModularTask(p=7, layout="equals")}, ValueError, "second must have rows of 2 tokens, .* got 3"),
    ],
)
def test_bad_mixtures_are_refused(fields, error, message):
    with pytest.raises(error, match=message):
        MixtureTask(**{"first": ADD, "second": ADD, **fields})


@pytest.mark.parametrize(
    ("first", "second", "message"),
    [
        (ADD, ParityTask(n=4, k=2, n_train=20, n_test=5), "second must have token ids as inputs and classes"),
        (ParityTask(n=4, k=2, n_train=20, n_test=5), ADD, "first must have token ids as inputs and classes"),
        (
            ModularTask(p=7, layout="operator"),
            SequenceTask(length=2, n_symbols=5, n_train=12, n_test=5),
            r"second must have inputs \[N, 4\] and targets \[N\], as first has, .* targets \[N, 2\]",
        ),
    ],
)
def test_tasks_that_do_not_match_are_refused_when_built(first, second, message):
    with pytest.raises(ValueError, match=message):
        MixtureTask(first=first, second=second).build()


def test_answers_that_are_not_asked_stay_so():
    facts = MultihopTask(n_entities=8, n_relations=3, phi=1.0)
    data = MixtureTask(first=facts, second=facts, ratio=0.5, mix_seed=0).build(seed=1)
    own = len(facts.build(seed=1).train)
    more = data.train.targets[own:]
    assert ((more < 0).sum(1) == 1).all()
    assert (more.max(1).values >= 8).all()
