"""The page of a sweep: what was varied and what happened, at every stage, with every run a click away."""

import re
import shlex
from contextlib import contextmanager

import numpy as np
import pytest

from grokfast import Experiment, RunStore, ablate, sweep
from grokfast.analysis import incidence, summarize
from grokfast.cli import _parsed, main
from grokfast.report import sweep as sweep_page
from grokfast.report import swept
from grokfast.report.figures import csv
from grokfast.report.sweep import page
from grokfast.report.tables import whole
from grokfast.store import StoreError
from grokfast.store.errors import UnknownRunError
from grokfast.sweeps import InProcess, plan
from tests.report.pages import asked_for, figures, notes

TINY = Experiment.preset("quick").override(
    {
        "task.p": 7,
        "model.width": 8,
        "schedule.steps": 20,
        "schedule.eval_every": 5,
        "criteria.sustain": 1,
        "criteria.threshold": 0.6,
        "criteria.generalize": "train",  # so that in a few steps some do, some do not
        "device": "cpu",
    }
)
DECAY, LR = "optimizer.weight_decay", "optimizer.lr"


def swept_over(root, grid, experiment=TINY, **options):
    return sweep(experiment, grid, store=root, runner=InProcess(), **options)


@contextmanager
def opened(root):
    with RunStore(root, create=False, read_only=True) as store:
        yield store


def made(result):
    with opened(result.root) as store:
        return page(store, result.sweep_id)


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """Two options, two seeds."""
    return swept_over(tmp_path_factory.mktemp("runs"), {DECAY: [0.1, 1.0], LR: [0.01, 0.05]}, seeds=2)


@pytest.fixture(scope="module")
def two_page(two):
    return made(two)


def test_the_page_has_what_a_sweep_over_two_options_has(two, two_page):
    found = figures(two_page)
    runs = [own for own in found if own.startswith("quick-")]
    assert [own for own in found if own not in runs] == [
        "Options and values", "Phase diagram", "Cells", f"Share that has generalised, by {DECAY}",
        f"Share that has generalised, by {LR}", "Scaling", "Accuracy", "Runs",
    ]  # fmt: skip
    assert len(runs) == 8
    assert notes(two_page) == []
    assert all(len(own.alt) > 10 and own.data for own in found.values())
    assert f"8 runs over {DECAY} and {LR}." in two_page
    assert len(two_page) < 1_000_000


def test_it_asks_for_nothing_beside_itself(two_page):
    assert asked_for(two_page) == []
    assert "http" not in re.sub(r"http-equiv", "", two_page)


def test_the_tables_are_those_of_the_store_and_of_the_analysis(two, two_page):
    table, found = two.table(), figures(two_page)
    runs = found["Runs"].data
    assert runs["run_id"] == table["run_id"].tolist()
    assert np.allclose([float(own) for own in runs["test_loss"]], table["test_loss"], rtol=1e-5)
    cells = summarize(table, by=[DECAY, LR])
    assert [float(own) for own in found["Cells"].data[DECAY]] == [cell.cell[DECAY] for cell in cells]
    assert [int(own) for own in found["Cells"].data["generalized"]] == [cell.generalized for cell in cells]
    assert found["Phase diagram"].data == found["Cells"].data
    assert 0 < sum(cell.generalized for cell in cells) < len(table["run_id"]), "else less is tested"


def test_the_shares_are_kaplan_and_meiers(two, two_page):
    curves = incidence(two.table(), by=DECAY)
    data = figures(two_page)[f"Share that has generalised, by {DECAY}"].data
    for name, curve in curves.items():
        said = data[f"{float(name):g}"]
        known = [curve.share[curve.steps <= float(step)][-1] for step in data["step"]]
        assert np.allclose([float(own) for own in said if own], known[: len([own for own in said if own])], atol=1e-3)


def test_steps_are_never_rounded():
    assert csv({"t": whole([1_234_567.0, np.nan])}).split() == ["t", "1234567", '""']


def test_every_run_is_linked_to_its_sentence_its_curves_and_its_last_values(two, two_page):
    found = figures(two_page)
    for run in two.runs:
        assert f'<a href="#run-{run.run_id}">' in found["Runs"].html
        (own,) = (one for title, one in found.items() if title.startswith(run.run_id))
        assert f"<summary>{run.sentence}</summary>" in own.html
        assert f'id="run-{run.run_id}"' in own.html
        assert own.data["step"] == [str(step) for step in run.curves["step"]]
        assert float(own.data["test_accuracy"][-1]) == pytest.approx(run.final["test_accuracy"], rel=1e-3)
        assert f"train {run.final['train_accuracy']:.1%}" in own.alt


def test_a_run_that_has_a_page_of_its_own_is_linked_to_it(two):
    run_id = two.runs.run_ids[0]
    own = two.root / run_id / "report.html"
    own.write_text("<p>")
    try:
        assert made(two).count(f'href="../{run_id}/report.html"') == 1
    finally:
        own.unlink()


@pytest.mark.parametrize(
    ("grid", "has_diagram"),
    [
        ({LR: [0.01, 0.02]}, False),
        ({"seed": [0, 1]}, False),
        ({"seed": [3]}, False),
        ({LR: [0.01, 0.02], DECAY: [1.0]}, False),
        ({LR: [0.01, 0.02], DECAY: [0.1, 1.0], "model.width": [4, 8]}, True),
        ({LR: [0.01, 0.02], DECAY: [0.1, 1.0], "model.width": [4, 8], "task.train_fraction": [0.4, 0.5]}, False),
    ],
)
def test_a_phase_diagram_is_of_two_or_three_options(grid, has_diagram, tmp_path):
    html = made(swept_over(tmp_path, grid, TINY.override({"schedule.steps": 1})))
    assert ("Phase diagram" in figures(html)) == has_diagram
    assert "Cells" in figures(html)
    assert notes(html) == []


def test_many_numbers_have_curves_in_bins_and_many_words_none(tmp_path):
    one = TINY.override({"schedule.steps": 1})
    html = made(swept_over(tmp_path, {LR: [0.001 * i for i in range(1, 9)]}, one))
    shares = figures(html)[f"Share that has generalised, by {LR}"]
    assert len(shares.data) == 1 + 7
    assert "The values are in bins" in shares.html
    words = made(swept_over(tmp_path, {"optimizer.betas": [(0.9, 0.9 + 0.01 * i) for i in range(8)]}, one))
    (why,) = notes(words)
    assert "optimizer.betas" in why
    assert "not all numbers" in why


def test_a_sweep_that_has_not_begun_has_its_runs_and_no_pictures(tmp_path):
    planned = plan(TINY, {LR: [0.01, 0.02]}, store=tmp_path)
    with opened(tmp_path) as store:
        html = page(store, planned.sweep_id)
    found = figures(html)
    assert [own for own in found if not own.startswith("quick-")] == ["Options and values", "Runs"]
    assert "2 runs over optimizer.lr, 2 pending." in html
    assert html.count("<summary>pending</summary>") == 2
    assert "No evaluation has been stored." in html


def test_runs_that_failed_diverged_or_are_not_finished_are_counted_apart(tmp_path):
    result = swept_over(tmp_path, {LR: [0.01, 1e12, 0.02, 0.03]})
    failed, interrupted = result.runs.run_ids[2:]
    with RunStore(tmp_path) as store:
        store.update(failed, status="failed")
        store.update(interrupted, status="interrupted")
    html = made(result)
    assert "4 runs over optimizer.lr, 1 diverged, 1 failed, 1 interrupted." in html
    assert " of the 2 that have ended generalised." in html
    assert "<summary>failed after 20 steps, " in html
    assert "<summary>interrupted after 20 steps, " in html
    assert "diverged at step" in html
    cells = figures(html)["Cells"].data
    assert cells["failed"] == ["0", "1", "0", "0"]
    assert cells["unfinished"] == ["0", "0", "1", "0"]


def test_runs_of_unlike_columns_each_have_their_own(tmp_path):
    result = swept_over(tmp_path, {"probes": ["none", "norms"]})
    found = figures(made(result))
    without, with_norms = (one for title, one in found.items() if title.startswith("quick-"))
    probed = set(with_norms.data) - set(without.data)
    assert probed
    assert all(name in found["Runs"].data for name in probed)


def test_of_a_large_sweep_the_first_runs_are_in_the_page(two, monkeypatch):
    monkeypatch.setattr(sweep_page, "RUNS", 3)
    html = made(two)
    assert html.count("<details") == 3
    assert html.count('<a href="#run-') == 3
    assert len(figures(html)["Runs"].data["run_id"]) == 8
    assert notes(html) == ["5 of 8 runs: the table has them, grokfast report RUN makes the page of one"]


def test_runs_of_another_version_are_there_without_their_words(two, monkeypatch):
    def refuse(*_):
        raise StoreError("another version")

    monkeypatch.setattr(swept, "stored_experiment", refuse)
    monkeypatch.setattr(swept.Experiment, "from_dict", refuse)
    html = made(two)
    assert html.count("finished after 20 steps, of an experiment that cannot be read here</summary>") == 8
    assert f"<code>grokfast sweep --resume {two.sweep_id}</code>" in html


def test_an_unknown_sweep_is_refused_with_the_nearest(two):
    with opened(two.root) as store, pytest.raises(UnknownRunError, match=f"did you mean '{two.sweep_id}'"):
        page(store, f"{two.sweep_id[:-1]}x")


def test_an_ablation_is_known_by_its_arms(tmp_path):
    result = ablate(TINY, 2, ["decay", "mse"], store=tmp_path, runner=InProcess())
    html = made(result)
    found = figures(html)
    assert [own for own in found if not own.startswith("quick-")] == [
        "Options and values", "Forest plot", "Arms", "Share that has generalised, by arm", "Runs"
    ]  # fmt: skip
    assert found["Arms"].data["arm"] == found["Forest plot"].data["arm"] == ["base", "decay", "mse"]
    assert found["Options and values"].data["what differs"][:2] == ["", "optimizer.weight_decay = 0"]
    assert found["Runs"].data["arm"] == result.table()["arm"].tolist()
    line = re.search(r"<code>(.*?)</code>", html)[1]
    planned = _parsed(shlex.split(line)[1:]).args[0]
    ablation = planned.func.__self__
    assert (ablation.experiment, ablation.seeds, list(ablation.arms)) == (TINY, 2, ["base", "decay", "mse"])


def test_options_that_vary_together_are_no_ablation(tmp_path):
    html = made(swept_over(tmp_path, {LR: [0.01, 0.02], DECAY: [1.0, 0.0]}, zip=True, seeds=1))
    assert "Arms" not in figures(html)
    assert "The first values of all options together" in html


@pytest.mark.parametrize(
    ("grid", "options"),
    [
        ({DECAY: [0.1, 1.0], LR: [0.01, 0.05]}, {"seeds": 2}),
        ({"filter": ["none", "ema(lamb=1.0)"], "seed": [1, 5]}, {}),
        ({"optimizer.betas": [(0.9, 0.95), (0.9, 0.98)], "model.bias": [True, False]}, {"zip": True}),
        ({LR: [0.01, 0.02], "schedule.stop_after": [None, 5]}, {"random": 3}),
        ({"task": ["modular(p=7)", "modular(p=5,operation='sub')"]}, {}),
    ],
)
def test_the_command_repeats_the_sweep(grid, options, tmp_path):
    experiment = TINY.override({"filter": "ema", "model.activation": "gelu"})
    planned = plan(experiment, grid, store=tmp_path, **options)
    with opened(tmp_path) as store:
        line = re.search(r"<code>(.*?)</code>", page(store, planned.sweep_id))[1]
    words = shlex.split(line.replace("&#39;", "'").replace("&#34;", '"'))
    again = _parsed([*words[1:], "--out", str(tmp_path)]).args[0]()
    assert again.sweep_id == planned.sweep_id
    assert list(again.runs) == list(planned.runs)


def test_the_command_line_writes_the_page_into_the_sweeps_directory(two, capsys):
    assert main(["report", two.sweep_id, "--out", str(two.root)]) == 0
    path = two.directory / "report.html"
    assert str(path) in capsys.readouterr().out.replace("\n", "")
    assert two.sweep_id in path.read_text(encoding="utf-8")
    assert main(["report", two.sweep_id, "--at", "5", "--out", str(two.root)]) == 2
