"""The documentation's site, of Markdown pages and docstrings: `sphinx-build -W --keep-going docs site`."""

from __future__ import annotations

import re

project, author, copyright = "grokfast", "The grokfast authors", "The grokfast authors"
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode"]
source_suffix = {".md": "markdown"}
exclude_patterns = ["examples", "pictures"]
html_theme = "furo"
html_title = "grokfast"
myst_heading_anchors = 4
myst_enable_extensions = ["deflist"]
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_preserve_defaults = True
autodoc_default_options = {"members": True, "show-inheritance": True}
napoleon_numpy_docstring = False
napoleon_use_ivar = True
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 100
suppress_warnings = [
    "ref.python"
]  # a name such as `kind` is a field of many classes: the reference links to none of them


def as_rst(app, what, name, obj, options, lines: list[str]) -> None:
    """Docstrings are written in Markdown: `code`, and code blocks, which are indented. Here they become reST."""
    text = "\n".join(lines)
    text = re.sub(r"(?m)^(?! )(.*\S)\n\n(?= {4}\S)", r"\1\n\n::\n\n", text)  # a code block
    out, is_block = [], False
    for line in text.split("\n"):
        if line == "::":
            is_block = True
        elif line and not line.startswith(" "):
            is_block = False
        out.append(line if is_block else _escaped(line))
    lines[:] = out


def _escaped(line: str) -> str:
    """`code` as ``code``, and no other letter of reST's."""
    halves = line.split("`")
    if len(halves) % 2 == 0:  # a ` without its other
        return _plain(line)
    return "".join(f"``{half.strip()}``" if place % 2 else _plain(half) for place, half in enumerate(halves))


def _plain(text: str) -> str:
    return re.sub(r"[\\*|`]|_(?!\w)", r"\\\g<0>", text)


def setup(app) -> None:
    app.connect("autodoc-process-docstring", as_rst, priority=400)  # before napoleon, which reads "Args:" and its like
