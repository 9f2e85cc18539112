"""The page of a run: what its task and model have is there with its data, what they have not is left out with why."""

import sys

import numpy as np
import pytest

from grokfast import Experiment, RunStore, train
from grokfast.report.answers import right_pairs
from grokfast.report.material import gather
from grokfast.report.run import page
from grokfast.store import StoreError
from grokfast.store.errors import UnknownRunError
from tests.report.pages import asked_for, figures, notes

SMALL = {"schedule.steps": 60, "schedule.eval_every": 20, "device": "cpu"}
KEPT = {"schedule.snapshots": "0,20,40"}
MODULE = """
import torch


class Net(torch.nn.Module):
    def __init__(self, data):
        super().__init__()
        self.embedding = torch.nn.Embedding(data.n_tokens, 4)
        self.out = torch.nn.Linear(4 * data.seq_len, data.n_answers)

    def forward(self, tokens):
        return self.out(self.embedding(tokens).flatten(1))
"""
CASES = {
    "quick": {
        "task.p": 13, "model.width": 24, **SMALL, **KEPT,
        "probes": "norms,spectra,progress,local_complexity(n_points=2,n_vertices=4),spread",
    },
    "nanda": {"task.p": 7, "model.d_model": 16, "model.n_heads": 2, "model.d_mlp": 20, **SMALL, **KEPT},
    "parity": {"task.n": 12, "model.width": 20, **SMALL},
    "d30": {"task.group": "D5", "model.width": 16, **SMALL},
    "sort": {"task.n_train": 40, "task.n_test": 60, "model.d_model": 16, "model.d_mlp": 16, **SMALL},
}  # fmt: skip


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    with RunStore(tmp_path_factory.mktemp("runs")) as opened:
        yield opened


@pytest.fixture(scope="module")
def run_of(store):
    """The result of a case, trained once."""
    known = {}

    def one(name):
        if name not in known:
            known[name] = train(Experiment.preset(name).override(CASES[name]), store=store)
        return known[name]

    return one


@pytest.fixture(scope="module")
def page_of(store, run_of):
    """The page of a case, made once."""
    known = {}

    def one(name):
        if name not in known:
            known[name] = page(store, run_of(name).run_id)
        return known[name]

    return one


HAVE = {
    "quick": {
        "Accuracy and loss", "Which pairs are right", "Norms of the weights", "Parameters",
        "Periodicity while it trained", "Spectra of the neurons", "Waves of the sharpest neurons",
        "Sum of phases", "Idealised networks", "Progress measures while it trained", "Progress measures",
        "Key frequencies", "Local complexity while it trained", "Local complexity of each hidden layer",
        "train logit spread", "Setting", "Data",
    },
    "nanda": {
        "Accuracy and loss", "Which pairs are right", "Norms of the weights", "Norm of each parameter", "Parameters",
        "Spectra of the neurons", "Spectrum of the embedding", "Waves of the sharpest neurons", "Progress measures",
        "Key frequencies", "Attention to the first operand", "Clock or pizza", "Local complexity of each hidden layer",
        "Setting", "Data",
    },
    "parity": {
        "Accuracy and loss", "Norms of the weights", "Parameters", "Local complexity of each hidden layer", "Setting",
        "Data",
    },
    "d30": {
        "Accuracy and loss", "Which pairs are right", "Norms of the weights", "Parameters",
        "Irreducible representations", "Local complexity of each hidden layer", "Setting", "Data",
    },
    "sort": {
        "Accuracy and loss", "Answers by class", "Norms of the weights", "Parameters", "Attention",
        "Local complexity of each hidden layer", "accuracies", "Setting", "Data",
    },
}  # fmt: skip
LEFT_OUT = {
    "quick": {"attention maps: model must be a transformer"},
    "nanda": {"sum of phases, idealised networks: model must be a PairMLP of one hidden layer, got GrokTransformer"},
    "parity": {
        "picture of right pairs: task must be a table",
        "spectra, waves of neurons, sum of phases, idealised networks, progress measures: task must ask one answer",
        "attention maps: model must be a transformer",
    },
    "d30": {
        "spectra, waves of neurons, sum of phases, idealised networks: task must be a + b or a - b mod p",
        "attention maps: model must be a transformer",
    },
    "sort": {
        "picture of right pairs: task must be a table",
        "spectra, waves of neurons, sum of phases, idealised networks, progress measures: task must ask one answer",
    },
}


@pytest.mark.parametrize("name", CASES)
def test_a_page_has_what_the_run_has_and_says_what_it_has_not(name, page_of, run_of):
    html = page_of(name)
    shown = figures(html)
    assert {*shown} == HAVE[name]
    left = notes(html)
    assert len(left) == len(LEFT_OUT[name])
    assert all(any(note.startswith(own) for note in left) for own in LEFT_OUT[name])
    for figure in shown.values():
        assert len(figure.alt) > 30
        assert all(figure.data.values())
    assert asked_for(html) == []
    assert "http://" not in html
    assert "https://" not in html
    assert len(html) < 600_000
    run = run_of(name)
    assert run.sentence[1:] in html
    assert f"grokfast run {name} " in html


def test_the_data_of_curves_are_the_runs(page_of, run_of):
    curves, shown = run_of("quick").curves, figures(page_of("quick"))
    drawn = {"step"}
    for title in ("Accuracy and loss", "Norms of the weights", "Periodicity while it trained", "train logit spread",
                  "Progress measures while it trained", "Local complexity while it trained"):  # fmt: skip
        for name, column in shown[title].data.items():
            assert [float(own) for own in column] == pytest.approx(curves[name].tolist(), rel=1e-5, nan_ok=True)
            drawn.add(name)
    assert drawn == {*curves}


def test_right_pairs_are_those_of_the_recorded_accuracies(page_of, run_of):
    run, found = run_of("quick"), figures(page_of("quick"))["Which pairs are right"]
    assert len(found.data["a"]) == 13 * 13
    assert found.html.count('class="frame"') == 4
    a, b, answer = (np.array(found.data[name], dtype=int) for name in ("a", "b", "answer"))
    assert ((a + b) % 13 == answer).all()
    split = np.array(found.data["split"])
    for i, step in enumerate(run.curves["step"]):
        right = np.array(found.data[f"said at step {step}"], dtype=int) == answer
        for name in ("train", "test"):
            assert right[split == name].mean() == pytest.approx(run.curves[f"{name}_accuracy"][i])


def test_progress_and_losses_at_snapshots_are_the_recorded_ones(page_of, run_of):
    curves, shown = run_of("quick").curves, figures(page_of("quick"))["Progress measures"].data
    assert [int(step) for step in shown["step"]] == curves["step"].tolist()
    for split in ("train", "test"):
        assert [float(own) for own in shown[f"{split} loss"]] == pytest.approx(
            curves[f"{split}_loss"].tolist(), rel=1e-3
        )


def test_without_snapshots_it_says_that_it_is_the_end_alone(page_of):
    shown = figures(page_of("d30"))
    assert "the final weights only: the run has no snapshots" in shown["Which pairs are right"].html
    assert "<input" not in shown["Which pairs are right"].html
    assert "at the end alone: the run has no snapshots" in shown["Local complexity of each hidden layer"].html


def test_at_a_snapshot_it_is_as_it_was_then(store, run_of):
    run = run_of("quick")
    html = page(store, run.run_id, 20)
    shown = figures(html)
    assert "As it was after step 20." in html
    assert shown["Accuracy and loss"].data["step"] == ["0", "20"]
    assert "said at step 40" not in shown["Which pairs are right"].data
    assert shown["Which pairs are right"].html.count('class="frame"') == 2


def test_a_module_of_ones_own_has_what_needs_only_its_answers(store, tmp_path, monkeypatch):
    (tmp_path / "nets_of_mine.py").write_text(MODULE)
    monkeypatch.syspath_prepend(str(tmp_path))
    changes = {"model": "nets_of_mine:Net", "task.p": 7, "name": "mine", **SMALL}
    run = train(Experiment.preset("quick").override(changes), store=store)
    html = page(store, run.run_id)
    assert {*figures(html)} == {
        "Accuracy and loss", "Which pairs are right", "Norms of the weights", "Parameters", "Key frequencies",
        "Setting", "Data",
    }  # fmt: skip
    assert any(note.startswith("local complexity: the model must have `embedded`") for note in notes(html))
    monkeypatch.undo()
    monkeypatch.delitem(sys.modules, "nets_of_mine")
    html = page(store, run.run_id)  # without the module: what needs none
    assert {*figures(html)} == {"Accuracy and loss", "Norms of the weights", "Setting", "Data"}
    assert any("model.factory 'nets_of_mine:Net' is not there" in note for note in notes(html))


def test_digits_have_classes(store):
    pytest.importorskip("sklearn")
    changes = {"model.width": 8, "task.n_train": 50, **SMALL}
    run = train(Experiment.preset("digits").override(changes), store=store)
    found = figures(page(store, run.run_id))
    assert found["Answers by class"].data["class"] == [str(i) for i in range(10)]
    assert sum(map(int, found["Answers by class"].data["test rows"])) == 797
    assert "Which pairs are right" not in found


def test_a_run_without_weights_has_its_curves(store):
    (run,) = train([Experiment.preset("quick").override({"task.p": 7, "seed": 5, **SMALL})], store=store)
    (run.directory / "weights.safetensors").unlink()
    html = page(store, run.run_id)
    assert {*figures(html)} == {"Accuracy and loss", "Setting", "Data"}
    assert any("the run was stored without its last weights" in note for note in notes(html))


def test_long_curves_are_thinned_and_it_says_so(store, monkeypatch):
    monkeypatch.setattr("grokfast.report.material.ROWS", 6)
    run = train(Experiment.preset("quick").override({"task.p": 5, "model.width": 4, **SMALL, "schedule.eval_every": 2}),
                store=store)  # fmt: skip
    found = figures(page(store, run.run_id))["Accuracy and loss"]
    steps = [int(step) for step in found.data["step"]]
    assert len(steps) <= 6
    assert steps == sorted({*steps})
    assert (steps[0], steps[-1]) == (0, 60)
    assert "at most" in found.html


def test_what_is_not_there_is_named(store, run_of):
    run = run_of("quick")
    with pytest.raises(UnknownRunError, match=f"did you mean '{run.run_id}'"):
        page(store, run.run_id + "x")
    with pytest.raises(StoreError, match="no snapshot of step 30: those that it has are of 0, 20, 40"):
        page(store, run.run_id, 30)
    with pytest.raises(ValueError, match="at must be at least 0, got -1"):
        page(store, run.run_id, -1)
    begun = store.create(run.experiment.to_dict(), preset="begun", version="1", device="cpu")
    with pytest.raises(ValueError, match="has not ended"):
        page(store, begun)


def test_of_many_pairs_fewer_stages_are_shown_the_last_one_always(store, run_of, monkeypatch):
    run = run_of("quick")
    material = gather(store, run.run_id)
    for most, steps in ((4, [0, 20, 40, 60]), (2, [0, 60]), (1, [60]), (0, [60])):
        assert [stage.steps for stage in material.some_stages(most)] == steps
    monkeypatch.setattr("grokfast.report.answers.NUMBERS", 13**2)
    (found,) = right_pairs(material)
    assert "the final weights only: more would make the page too large" in found.caption
