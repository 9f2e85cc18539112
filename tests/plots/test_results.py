"""Results in a notebook: one line, a picture, a small table; whatever fails, nothing is raised."""

import base64
import re
import subprocess
import sys
from dataclasses import replace

import pandas
import polars
import pytest
from matplotlib.figure import Figure

from grokfast import Experiment, ablate, sweep, train
from grokfast.sweeps import InProcess, plan
from grokfast.sweeps.result import SweepResult

TINY = Experiment.preset("quick").override(
    {"task.p": 7, "model.width": 8, "schedule.steps": 20, "criteria.sustain": 1, "device": "cpu"}
)
PNG = b"\x89PNG\r\n\x1a\n"


def picture_in(html):
    """The bytes of the only picture."""
    (found,) = re.findall(r'src="data:image/png;base64,([^"]+)"', html)
    return base64.b64decode(found)


def cells_in(html):
    """The rows of the table, the head first."""
    rows = re.findall(r"<tr>(.*?)</tr>", html)
    return [re.findall(r"<t[hd]>(.*?)</t[hd]>", row) for row in rows]


@pytest.fixture(scope="module")
def run():
    return train(TINY)


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
    axes = {"optimizer.weight_decay": [0.1, 1], "seed": [0, 1]}
    return sweep(TINY, axes, store=tmp_path_factory.mktemp("runs"), runner=InProcess())


@pytest.fixture(scope="module")
def ablated(tmp_path_factory):
    return ablate(TINY, 2, ["decay"], store=tmp_path_factory.mktemp("runs"), runner=InProcess())


def test_a_run_is_one_line(run):
    said = repr(run)
    assert said == f"RunResult(quick: {run.phase}, {run.sentence})"
    assert len(said) < 120
    hostile = replace(run, run_id="a\x1b[2J\nb")
    assert repr(hostile).isprintable()


def test_a_sweep_is_one_line_also_without_its_store(swept, ablated, tmp_path):
    assert repr(swept) == f"SweepResult({swept.sweep_id} over optimizer.weight_decay, seed, in {swept.root})"
    assert repr(ablated).startswith(f"AblationResult({ablated.sweep_id} over ")
    gone = SweepResult(sweep_id="x", root=tmp_path / "gone", axes=[])
    assert repr(gone) == f"SweepResult(x, in {tmp_path / 'gone'})"
    assert gone._repr_html_() is None


def test_a_run_in_a_notebook_is_its_sentence_its_curves_and_its_last_values(run):
    html = run._repr_html_()
    assert run.sentence in html
    assert picture_in(html).startswith(PNG)
    head, *rows = cells_in(html)
    assert head == ["", "at the end"]
    assert [name for name, _ in rows] == ["step", *run.final.values]
    assert dict(rows)["test_accuracy"] == f"{run.final['test_accuracy']:.6g}"


def test_a_sweep_in_a_notebook_is_its_counts_a_picture_and_its_cells(swept):
    html = swept._repr_html_()
    assert f"{swept.sweep_id}: 4 runs, 4 finished" in html
    assert picture_in(html).startswith(PNG)
    head, *rows = cells_in(html)
    assert head == ["optimizer.weight_decay", "generalised", "share", "median step", "phase"]
    assert [row[0] for row in rows] == ["0.1", "1"]
    assert all(row[1].endswith(" of 2") for row in rows)


def test_an_ablation_in_a_notebook_is_its_arms(ablated):
    html = ablated._repr_html_()
    assert picture_in(html).startswith(PNG)
    head, *rows = cells_in(html)
    assert head[:2] == ["arm", "generalised"]
    assert [row[0] for row in rows] == ["base", "decay"]
    assert list(dict.fromkeys(ablated.arm_of.values())) == ["base", "decay"]


def test_what_a_run_is_called_is_text_in_a_notebook(run):
    html = replace(run, run_id="<script>x</script>")._repr_html_()
    assert "<script>" not in html
    assert "&lt;script&gt;" in html


def test_a_notebook_falls_back_to_the_line_where_anything_fails(run, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    monkeypatch.delitem(sys.modules, "grokfast.plots.picture", raising=False)
    assert run._repr_html_() is None
    with pytest.raises(ImportError):
        run.plot()


def test_plot_is_the_figure(run, swept, ablated):
    for result, panels in ((run, 2), (swept, 1), (ablated, 1)):
        figure = result.plot()
        assert isinstance(figure, Figure)
        assert len(figure.axes) == panels
        assert figure._repr_png_().startswith(PNG)
    assert swept.plot("scaling").axes[0].get_xlabel() == "optimizer.weight_decay"
    with pytest.raises(ValueError, match=r"what must be one of .scaling., .curves., got 'phase diagram'"):
        swept.plot("phase diagram")


def test_a_sweep_that_has_not_begun_has_nothing_to_draw_but_shows_itself(tmp_path):
    planned = plan(TINY, {"seed": [0, 1]}, store=tmp_path)
    result = SweepResult(sweep_id=planned.sweep_id, root=tmp_path, axes=["seed"])
    with pytest.raises(ValueError, match="there is nothing to draw: no run has ended"):
        result.plot()
    html = result._repr_html_()
    assert "2 runs, 2 pending" in html
    assert "<img" not in html


def test_two_axes_are_a_phase_diagram(tmp_path):
    axes = {"optimizer.weight_decay": [0.1, 1], "optimizer.lr": [0.01, 0.02]}
    swept = sweep(TINY.override({"schedule.steps": 1}), axes, store=tmp_path, runner=InProcess())
    figure = swept.plot()
    assert figure.axes[0].get_xlabel() == "optimizer.lr"
    assert figure.axes[0].get_ylabel() == "optimizer.weight_decay"


def test_curves_are_a_table_in_one_line(run):
    table = pandas.DataFrame(run.curves)
    assert table["step"].tolist() == [0, 10, 20]
    assert polars.DataFrame(run.curves)["test_loss"].to_list() == table["test_loss"].tolist()


def test_training_loads_no_matplotlib():
    code = """
import sys
from grokfast import Experiment, train
run = train(Experiment.preset("quick").override({"task.p": 5, "model.width": 4, "schedule.steps": 1, "device": "cpu"}))
repr(run)
assert not {"matplotlib", "grokfast.plots"} & sys.modules.keys()
run.plot()
assert "matplotlib" in sys.modules and "matplotlib.pyplot" not in sys.modules
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
