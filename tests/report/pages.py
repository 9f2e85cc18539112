"""What is in a page, for tests: its figures and their data."""

from __future__ import annotations

import csv
import io
import re
from html import unescape
from typing import NamedTuple


class Shown(NamedTuple):
    id: str
    title: str
    alt: str
    html: str
    data: dict[str, list[str]]  # columns of the CSV


def figures(page: str) -> dict[str, Shown]:
    """By title."""
    found = {}
    for html in re.findall(r"<figure .*?</figure>", page, re.DOTALL):
        (own_id,) = re.findall(r'<figure id="([^"]+)"', html)
        (title,) = re.findall(r"<h3[^>]*>(.*?)</h3>", html, re.DOTALL)
        (alt,) = re.findall(rf'<p class="hidden" id="{own_id}-alt">(.*?)</p>', html, re.DOTALL)
        (data,) = re.findall(r'<template class="csv">(.*?)</template>', html, re.DOTALL)
        names, *rows = csv.reader(io.StringIO(unescape(data)))
        assert all(len(row) == len(names) for row in rows)
        columns = {name: [row[i] for row in rows] for i, name in enumerate(names)}
        found[unescape(title)] = Shown(own_id, unescape(title), unescape(alt), html, columns)
    return found


def notes(page: str) -> list[str]:
    """What is said to be left out."""
    (footer,) = re.findall(r"<footer>(.*?)</footer>", page, re.DOTALL) or [""]
    return [unescape(own) for own in re.findall(r"<li>(.*?)</li>", footer, re.DOTALL)]


def asked_for(page: str) -> list[str]:
    """Every address that the page would load something from, but what lies in it."""
    addresses = re.findall(r"(?:src|href|srcset|action|poster)=\"([^\"]*)\"|url\(([^)]*)\)|@import\s+(\S+)", page)
    return [own for found in addresses for own in found if own and not own.startswith(("#", "data:", "'data:"))]
