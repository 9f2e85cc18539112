"""benchmarks.gpu: a part that fails or hangs is said, and costs nothing but itself."""

import json
import sys
import time
from pathlib import Path

import pytest
import torch

from benchmarks import gpu, interleave


def script(text):
    return [sys.executable, "-c", text]


@pytest.fixture
def some_parts(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(gpu, "machine", lambda: {"device": "none"})
    row = {"name": "eager", "median_ms": 1.5, "ratio": 1.0}
    content = json.dumps({"title": "Steps", "sections": {"one model": [row]}})
    writes = script(f"open('{{out}}/gpu-steps.json', 'w').write({content!r})".replace("{", "{{").replace("}", "}}"))
    writes[-1] = writes[-1].replace("{{out}}", "{out}")
    child = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'import time; time.sleep(60)'])"
    parts = {
        "fails": (script("print('why'); raise SystemExit(3)"), 60),
        "hangs": (script(f"print('begun'); {child}"), 2),
        "works": (writes, 60),
    }
    monkeypatch.setattr(gpu, "parts", lambda: parts)


def call(monkeypatch, out, *arguments):
    monkeypatch.setattr(sys, "argv", ["gpu", "--out", str(out), *arguments])
    return gpu.main()


def test_the_parts_that_fail_do_not_stop_the_others(some_parts, tmp_path, monkeypatch):
    begun = time.monotonic()
    assert call(monkeypatch, tmp_path) == 1
    assert time.monotonic() - begun < 30
    report = (tmp_path / "gpu.md").read_text()
    assert "- fails: failed (3), " in report
    assert "- hangs: failed (stopped after 2 s), " in report
    assert "- works: passed, " in report
    assert "| eager | 1.5 |" in report
    assert (tmp_path / "fails.txt").read_text() == "why\n"
    assert (tmp_path / "hangs.txt").read_text() == "begun\n"


def test_another_call_adds_to_the_report_and_no_part_begins_without_time(some_parts, tmp_path, monkeypatch):
    assert call(monkeypatch, tmp_path, "--parts", "works") == 0
    assert call(monkeypatch, tmp_path, "--parts", "fails", "--minutes", "0") == 1
    report = (tmp_path / "gpu.md").read_text()
    assert "- works: passed, " in report
    assert "- fails: failed (no time)" in report


def test_a_profile_has_a_table_of_its_own(tmp_path):
    row = {"name": "weights", "calls": 1, "median_us": 7.1, "share": 0.2, "predicted_us": 6.0, "bound": "L2"}
    sections = {"one model, tf32": [row, {"name": "gaps", "calls": 9, "median_us": 12.0}]}
    (tmp_path / "gpu-profile-nanda.json").write_text(json.dumps({"title": "nanda profile", "sections": sections}))
    (tmp_path / "gpu-torn.json").write_text('{"title": ')
    lines = gpu.tables(tmp_path)
    assert "## nanda profile: one model, tf32" in lines
    assert "| weights | 1 | 7.1 | 0.2 | 6.0 | L2 |  |  |" in lines
    assert "| gaps | 9 | 12.0 |  |  |  |  |  |" in lines


def test_each_part_is_a_module_within_five_minutes_and_the_tests_exist():
    assert all((Path(__file__).parent / name).exists() for name in gpu.TESTS)
    for command, seconds in gpu.parts().values():
        assert command[:2] == [sys.executable, "-m"]
        assert seconds <= 300


def test_a_contender_that_cannot_be_had_is_left_out(capsys, tmp_path):
    def broken():
        raise torch.OutOfMemoryError("no memory\nfor it")

    def one():
        return interleave.Contender(lambda: None)

    rows = interleave.compare({"broken": broken, "one": one, "two": one}, rounds=2, warmup=0)
    assert [row["name"] for row in rows] == ["one", "two"]
    assert "broken: left out, OutOfMemoryError: no memory" in capsys.readouterr().out
    assert interleave.compare({"broken": broken}, rounds=2) == []
    interleave.write("Some", {"a": rows}, tmp_path / "deep" / "some.json")
    assert json.loads((tmp_path / "deep" / "some.json").read_text())["sections"]["a"] == rows
