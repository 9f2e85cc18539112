"""docs/tour.ipynb, from its first cell to its last, with few steps."""

from __future__ import annotations

from pathlib import Path

import pytest

nbclient = pytest.importorskip("nbclient", reason="needs nbclient and ipykernel: pip install 'grokfast[notebook]'")
pytest.importorskip("ipykernel")
ROOT = Path(__file__).parents[2]


def test_the_notebook_runs_and_shows_its_results(tmp_path, monkeypatch):
    import nbformat

    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    notebook = nbformat.read(ROOT / "docs" / "tour.ipynb", as_version=4)
    nbformat.validate(notebook)
    codes = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert sum("STEPS = 3000" in cell.source for cell in codes) == 1
    for cell in codes:
        cell.source = cell.source.replace("STEPS = 3000", "STEPS = 30")
    nbclient.NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}}).execute()
    shown = [output["data"] for cell in codes for output in cell.outputs if output["output_type"] == "execute_result"]
    assert len(shown) == 5
    assert "memorise" in shown[0]["text/html"]
    assert "image/png" in shown[1]
    assert "4 runs, 4 finished" in shown[3]["text/html"]
