"""Who may import whom: the contracts of pyproject.toml hold, and no module imports itself by a round-about way."""

from __future__ import annotations

import graphlib
import subprocess
import sys
import tomllib
from pathlib import Path

import grimp

ROOT = Path(__file__).parents[1]


def test_the_contracts_hold():
    program = "from importlinter.cli import lint_imports_command as lint_imports; lint_imports()"
    command = [sys.executable, "-c", program, "--no-cache", "--no-logo"]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert " 0 broken" in ran.stdout


def test_no_module_imports_itself_in_a_circle():
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    graph = grimp.build_graph("grokfast", exclude_type_checking_imports=True, cache_dir=None)
    for ignored in (line for contract in contracts for line in contract.get("ignore_imports", [])):
        importer, imported = ignored.split(" -> ")
        graph.remove_import(importer=importer, imported=imported)
    graphlib.TopologicalSorter({m: graph.find_modules_directly_imported_by(m) for m in graph.modules}).prepare()
