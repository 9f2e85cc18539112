"""docs/map.md: what stands where, in the words of the packages' own docstrings. `python docs/make_map.py` makes it."""

from __future__ import annotations

import ast
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "map.md"
BEGIN = """# A map of the code

Made by `python docs/make_map.py` of the first line of every docstring. A package may import those that come after it
here, and no other way (`lint-imports`). Tests mirror these folders; C++ and CUDA sources are in `csrc/`, each of which
opens with what it computes.
"""


def first_line(path: Path) -> str:
    """The first sentence or line of what the file says of itself."""
    said = ast.get_docstring(ast.parse(path.read_text())) or ""
    return " ".join(said.split("\n\n")[0].split()).replace("|", r"\|")


def order() -> list[str]:
    """Packages and modules from above to below, as the contract in pyproject.toml has them."""
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    layers = next(contract["layers"] for contract in contracts if contract["type"] == "layers")
    return [name.strip() for layer in layers for name in layer.replace(":", "|").split("|")]


def page() -> str:
    lines = [BEGIN]
    for name in order():
        package = ROOT / "grokfast" / name
        if not package.is_dir():
            lines += [f"## {name}", "", first_line(package.with_suffix(".py")), ""]
            continue
        lines += [f"## {name}/", "", first_line(package / "__init__.py"), "", "| file | what |", "|---|---|"]
        for path in sorted(package.rglob("*.py")):
            inner = path.relative_to(package)
            if inner.name == "__init__.py":
                if inner.parent == Path("."):
                    continue
                inner = inner.parent
            said = first_line(path)
            if said:
                lines.append(f"| `{inner}{'/' if path.name == '__init__.py' else ''}` | {said} |")
        lines.append("")
    return "\n".join(lines).rstrip() + "\n"


if __name__ == "__main__":
    PAGE.write_text(page())
