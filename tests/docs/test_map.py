"""docs/map.md is what the docstrings say."""

import importlib.util
from pathlib import Path

DOCS = Path(__file__).parents[2] / "docs"


def test_the_map_is_that_of_the_code():
    spec = importlib.util.spec_from_file_location("make_map", DOCS / "make_map.py")
    made = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(made)
    assert (DOCS / "map.md").read_text() == made.page(), "python docs/make_map.py"
