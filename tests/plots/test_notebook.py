"""Results at the end of a cell of a real notebook: what its kernel sends to be shown."""

from __future__ import annotations

from pathlib import Path

import pytest

nbclient = pytest.importorskip("nbclient", reason="needs nbclient and ipykernel: pip install 'grokfast[notebook]'")
pytest.importorskip("ipykernel")
ROOT = Path(__file__).parents[2]

SETUP = """
from grokfast import Experiment, ablate, sweep, train
from grokfast.sweeps import InProcess
tiny = Experiment.preset("quick").override(
    {"task.p": 7, "model.width": 8, "schedule.steps": 20, "criteria.sustain": 1, "probes": "norms", "device": "cpu"}
)
run = train(tiny)
options = {"store": %r, "runner": InProcess()}
"""
CELLS = {
    "setup": SETUP,
    "run": "run",
    "sweep": "swept = sweep(tiny, {'optimizer.weight_decay': [0.1, 1]}, **options); swept",
    "ablation": "ablated = ablate(tiny, 2, ['decay'], **options); ablated",
    "figure": "run.plot()",
    "tables": """
import pandas, polars
for curves in (run.curves, swept.curves(), swept.runs[0].curves, ablated.curves()):
    columns = {name: column.tolist() for name, column in curves.items()}
    assert any(name.startswith("norm") for name in columns), list(columns)
    assert pandas.DataFrame(curves).to_dict("list") == columns
    assert polars.DataFrame(curves).to_dict(as_series=False) == columns
for table in (swept.table(), ablated.table()):
    assert len(pandas.DataFrame(table)) == len(polars.DataFrame(table)) == len(table["run_id"])
""",
}


def test_results_show_themselves_in_a_notebook(tmp_path):
    from nbformat.v4 import new_code_cell, new_notebook

    codes = {name: code % str(tmp_path) if name == "setup" else code for name, code in CELLS.items()}
    notebook = new_notebook(cells=[new_code_cell(code) for code in codes.values()])
    nbclient.NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(ROOT)}}).execute()
    shown = {
        name: next((out["data"] for out in cell.outputs if out["output_type"] == "execute_result"), {})
        for name, cell in zip(CELLS, notebook.cells)
    }
    assert "memorise" in shown["run"]["text/html"]
    assert "2 runs, 2 finished" in shown["sweep"]["text/html"]
    assert "<td>decay</td>" in shown["ablation"]["text/html"]
    for name in ("run", "sweep", "ablation"):
        assert "data:image/png;base64," in shown[name]["text/html"]
        assert "<table>" in shown[name]["text/html"]
        assert "Result(" in shown[name]["text/plain"], "where there is no HTML"
    assert "image/png" in shown["figure"]
