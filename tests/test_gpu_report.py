"""benchmarks.gpu: a part that fails or hangs is said and costs nothing but itself; what one call found the next has."""

import importlib
import json
import os
import random
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import pytest
import torch

from benchmarks import gpu, gpu_pack, gpu_parts, interleave
from benchmarks.gpu_parts import CALLS, MINUTES, Part, parts, plan
from benchmarks.gpu_report import clocks, report, tables

FILES = {"gpu.md", gpu_pack.RESULTS, gpu_pack.KERNELS, gpu_pack.BUILD}


def script(text):
    return [sys.executable, "-c", text]


@pytest.fixture
def some_parts(monkeypatch):
    """Parts of two calls, on a machine that says that it has a GPU."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(gpu, "machine", lambda: {"device": "none"})
    monkeypatch.setattr(gpu, "GRACE", 1.0)
    monkeypatch.setattr(gpu, "RESERVE", 0.0)
    row = {"name": "eager", "median_ms": 1.5, "ratio": 1.0}
    content = json.dumps({"title": "Steps", "machine": {"gpu": "some GPU"}, "sections": {"one model": [row]}})
    content = content.replace("{", "{{").replace("}", "}}")
    caches = "import os; from pathlib import Path; p = Path(os.environ['TRITON_CACHE_DIR'], 'HASH'); "
    caches += "p.mkdir(parents=True); [Path(p, f'k.{{of}}').write_text(of) for of in ('cubin', 'json', 'ttir')]; "
    child = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'import time; time.sleep(60)'])"
    stubborn = "import signal, time; signal.signal(signal.SIGINT, signal.SIG_IGN); print('begun'); time.sleep(60)"
    polite = "import time\ntry:\n    print('begun'); time.sleep(60)\nexcept KeyboardInterrupt:\n    print('had this')\n"
    found = [
        Part("fails", 1, script("print('why'); raise SystemExit(3)"), 1, 60),
        Part("hangs", 1, script(f"print('begun'); {child}"), 1, 2),
        Part("stubborn", 1, script(stubborn), 1, 2),
        Part("polite", 1, script(polite), 1, 2),
        Part("works", 2, script(f"{caches}open('{{out}}/gpu-works.json', 'w').write({content!r})"), 1, 60),
    ]
    monkeypatch.setattr(gpu, "parts", lambda: found)
    monkeypatch.setattr(gpu_parts, "parts", lambda: found)


@pytest.fixture
def call(monkeypatch, tmp_path):
    def call(*arguments, out="out", work="work"):
        some = ["--work", str(tmp_path / work)] + ([] if out is None else ["--out", str(tmp_path / out)])
        monkeypatch.setattr(sys, "argv", ["gpu", *arguments, *some])
        before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
        try:
            return gpu.main()
        finally:
            for number, handler in zip((signal.SIGINT, signal.SIGTERM), before):
                signal.signal(number, handler)

    return call


def texts(archive):
    with tarfile.open(archive) as tar:
        return {member.name: tar.extractfile(member).read().decode() for member in tar.getmembers()}


def test_the_parts_that_fail_do_not_stop_the_others(some_parts, call, tmp_path):
    begun = time.monotonic()
    assert call() == 1
    assert time.monotonic() - begun < 60
    said = (tmp_path / "out" / "gpu.md").read_text()
    assert "- fails: failed (3), " in said
    assert "- hangs: failed (stopped after 2 s), " in said
    assert "- stubborn: failed (stopped after 2 s, killed), " in said
    assert "- polite: failed (stopped after 2 s), " in said
    assert "- works: passed, " in said
    assert "| eager | 1.5 |" in said
    assert {file.name for file in (tmp_path / "out").iterdir()} <= FILES
    logs = texts(tmp_path / "out" / gpu_pack.RESULTS)
    assert logs["fails.txt"] == "why\n"
    assert logs["hangs.txt"].startswith("begun\n")
    assert logs["stubborn.txt"] == "begun\n"
    assert logs["polite.txt"] == "begun\nhad this\n"


def test_nothing_of_a_part_goes_on(some_parts, tmp_path):
    child = "import time, os; open({file!r}, 'w').write(str(os.getpid())); time.sleep(60)"
    file = tmp_path / "pid"
    command = script(
        f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child.format(file=str(file))!r}])"
    )
    said = gpu.run(Part("p", 1, command, 1, 3), 4, gpu.Work(tmp_path / "work"))
    assert said.startswith("failed (stopped after 4 s")
    for _ in range(50):
        if not _runs(int(file.read_text())):
            return
        time.sleep(0.1)
    raise AssertionError("its child goes on")


def _runs(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_a_part_gets_sigint_though_we_were_begun_in_a_background_shell(tmp_path):
    """Whose children ignore it, and theirs."""
    text = f"""
import sys, torch, time
from pathlib import Path
from benchmarks import gpu, gpu_parts
polite = "import time\\ntry:\\n    print('begun'); time.sleep(60)\\nexcept KeyboardInterrupt:\\n    print('had this')"
some = [gpu_parts.Part("polite", 1, [sys.executable, "-c", polite], 1, 2)]
gpu.parts = gpu_parts.parts = lambda: some
gpu.machine = dict
torch.cuda.is_available = lambda: True
sys.argv = ["gpu", "--out", {str(tmp_path / "out")!r}, "--work", {str(tmp_path / "work")!r}]
gpu.main()
"""
    ignoring = lambda: signal.signal(signal.SIGINT, signal.SIG_IGN)  # noqa: E731
    subprocess.run([sys.executable, "-c", text], cwd=gpu.ROOT, preexec_fn=ignoring, check=True, timeout=120)
    assert texts(tmp_path / "out" / gpu_pack.RESULTS)["polite.txt"] == "begun\nhad this\n"


def test_another_machine_goes_on_from_what_one_left(some_parts, call, tmp_path):
    assert call("--parts", "works", "fails") == 1
    assert call("--call", "2", "--from", str(tmp_path / "out"), out="second", work="other") == 1
    said = (tmp_path / "second" / "gpu.md").read_text()
    assert [line.partition(":")[0] for line in said.splitlines() if line.startswith("- ")] == [
        "- device", "- works", "- fails", "- hangs", "- stubborn", "- polite",
    ]  # fmt: skip
    assert "| eager | 1.5 |" in said
    assert "| some GPU" not in said
    assert "some GPU" in said
    kept = tmp_path / "other" / "caches" / "triton" / "HASH"
    assert sorted(file.name for file in kept.iterdir()) == ["k.cubin", "k.json"]


def test_what_was_not_begun_comes_first_the_next_time(monkeypatch):
    found = [Part(name, n, [], 1, 1) for name, n in (("a", 1), ("b", 1), ("c", 2), ("d", 2), ("e", 3))]
    monkeypatch.setattr(gpu_parts, "parts", lambda: found)

    def names(*about):
        return "".join(part.name for part in plan(*about))

    assert names(None, None, set()) == "abcde"
    assert names(1, None, set()) == "ab"
    assert names(2, None, set()) == "cd"
    assert names(2, None, {"a"}) == "bcd"
    assert names(3, None, {"a", "c"}) == "bde"
    assert names(1, None, {"a"}) == "ab"
    assert names(None, ["d", "a"], {"a"}) == "da"


def test_no_part_begins_without_time(some_parts, call, tmp_path, capsys):
    assert call("--parts", "works", "--minutes", "0.05") == 1
    assert "works: not begun, no time" in capsys.readouterr().out
    assert not (tmp_path / "out").exists()


def test_a_part_is_stopped_when_the_call_is_over(some_parts, call, capsys):
    begun = time.monotonic()
    assert call("--parts", "polite", "works", "--minutes", "0.1") == 1
    assert time.monotonic() - begun < 30
    said = capsys.readouterr().out
    assert "polite: failed (stopped after 2 s)" in said
    assert "works: not begun, no time" in said


def test_a_torn_pack_is_said_and_the_rest_of_it_taken(some_parts, call, tmp_path, capsys):
    assert call("--parts", "works") == 0
    whole = (tmp_path / "out" / gpu_pack.KERNELS).read_bytes()
    (tmp_path / "out" / gpu_pack.KERNELS).write_bytes(whole[: len(whole) // 2])
    capsys.readouterr()
    assert call("--dry-run", "--from", str(tmp_path / "out"), out=None) == 0
    call("--parts", "fails", "--from", str(tmp_path / "out"), out="second", work="other")
    said = capsys.readouterr().out
    assert f"{gpu_pack.RESULTS}: taken" in said
    assert f"{gpu_pack.KERNELS}: left out, " in said
    assert "- works: passed, " in (tmp_path / "second" / "gpu.md").read_text()
    with pytest.raises(ValueError, match=r"--from must be a folder with gpu-results\.tar\.gz, got"):
        call("--from", str(tmp_path / "nowhere"))


def test_an_extension_of_other_sources_is_not_taken(tmp_path, monkeypatch):
    work, pack = gpu.Work(tmp_path / "work"), tmp_path / "pack"
    monkeypatch.setattr(gpu, "ROOT", tmp_path / "root")
    monkeypatch.setattr(gpu, "machine", lambda: {})
    for name in ("csrc/a.cpp", "setup.py", "grokfast/_C.so", "grokfast/_build_info.json"):
        (tmp_path / "root" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "root" / name).write_text("first")
    work.note("build", said="passed, 1 s", sources=gpu.sources())
    assert work.save(pack) == []
    (tmp_path / "root" / "grokfast" / "_C.so").unlink()
    assert f"{gpu_pack.BUILD}: taken" in list(gpu.Work(tmp_path / "second").restore(pack))
    assert (tmp_path / "root" / "grokfast" / "_C.so").read_text() == "first"
    (tmp_path / "root" / "csrc" / "a.cpp").write_text("changed")
    third = gpu.Work(tmp_path / "third")
    assert f"{gpu_pack.BUILD}: left out, it is of other sources" in list(third.restore(pack))
    assert "build" not in third.begun()


def test_an_archive_ends_before_it_is_too_large_and_is_whole(tmp_path):
    numbers = random.Random(0)
    for i in range(20):
        (tmp_path / f"{i:02}").write_bytes(numbers.randbytes(100_000))
    files, archive = sorted(tmp_path.iterdir()), tmp_path / "some.tar.xz"
    packed = gpu_pack.pack(files, tmp_path, archive, limit=1_000_000)
    assert 3 <= packed < 20
    assert archive.stat().st_size <= 1_100_000
    assert gpu_pack.unpack(archive, tmp_path / "again")
    for i in range(packed):
        assert (tmp_path / "again" / f"{i:02}").read_bytes() == (tmp_path / f"{i:02}").read_bytes()
    assert not (tmp_path / f".{archive.name}").exists()
    assert not gpu_pack.unpack(tmp_path / "none.tar.gz", tmp_path)


def test_of_a_compiled_kernel_what_is_loaded_is_packed_the_first_made_first(tmp_path):
    for i, name in enumerate(("late", "early")):
        for of in ("cubin", "json", "ptx", "ttir", "llir", "source"):
            file = tmp_path / "triton" / name / f"k.{of}"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(of)
            os.utime(file, (100 - i, 100 - i))
    (tmp_path / "inductor" / "ab").mkdir(parents=True)
    (tmp_path / "inductor" / "ab" / "code.py").write_text("")
    found = [file.relative_to(tmp_path).as_posix() for file in gpu_pack.kernels(tmp_path)]
    assert found[:3] == [f"triton/early/k.{of}" for of in ("cubin", "json", "ptx")]
    assert found[-1] == "inductor/ab/code.py"
    assert len(found) == 7


def test_of_a_long_log_the_end_is_kept(tmp_path):
    (tmp_path / "log").write_text("a" * 50 + "b" * 50)
    gpu_pack.shorten(tmp_path / "log", 60)
    assert (tmp_path / "log").read_text() == "...\n" + "a" * 10 + "b" * 50
    gpu_pack.shorten(tmp_path / "log", 100)
    assert (tmp_path / "log").read_text().endswith("b" * 50)


def test_clocks_are_sampled_while_a_part_runs(tmp_path, monkeypatch):
    tool = tmp_path / "bin" / "nvidia-smi"
    tool.parent.mkdir()
    tool.write_text("#!/bin/sh\nwhile true; do echo '1980, 3201, 350.5, 45, 90'; sleep 0.1; done\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tool.parent}:{os.environ['PATH']}")
    work = gpu.Work(tmp_path / "work")
    assert gpu.run(Part("p", 1, script("import time; time.sleep(1)"), 1, 9), 9, work).startswith("passed")
    said = clocks(work.results / "p-clocks.csv")
    assert said.startswith("SM clock 1980 MHz (1980 to 1980), memory 3201 MHz, up to 350 W and 45 °C, busy in ")


def test_clocks_are_those_of_when_it_was_busy(tmp_path):
    file = tmp_path / "clocks.csv"
    file.write_text("345, 2619, 80.1, 30, 0\n1980, 3201, 500, 50, 99\n1500, 3201, 600, 61, 100\n1965, 3201, 50")
    assert clocks(file) == (
        "SM clock 1740 MHz (1500 to 1980), memory 3201 MHz, up to 600 W and 61 °C, busy in 2 of 3 seconds"
    )
    file.write_text("345, 2619, 80.1, 30, 0\n")
    assert clocks(file) == "idle in all of 1 seconds"
    file.write_text("345, 2619, [N/A], 30, 0\n")
    assert clocks(file) == clocks(tmp_path / "none") == ""


def test_every_table_names_device_clocks_and_versions(tmp_path):
    row = {"name": "weights", "calls": 1, "median_us": 7.1, "share": 0.2, "at_least_us": 6.0, "bound": "L2"}
    sections = {"one model, tf32": [row, {"name": "gaps", "calls": 9, "median_us": 12.0}]}
    about = {"gpu": "NVIDIA H200, sm_90", "driver": "580", "torch": "2.11", "date": "2026-12-01", "threads": 4}
    content = {"title": "nanda profile", "machine": about, "sections": sections}
    (tmp_path / "gpu-profile-nanda.json").write_text(json.dumps(content))
    (tmp_path / "gpu-torn.json").write_text('{"title": ')
    lines = tables(tmp_path, {"profile": {"said": "passed", "clocks": "SM clock 1980 MHz"}, "pro": {"clocks": "no"}})
    at = lines.index("## nanda profile: one model, tf32")
    assert lines[at + 2] == "gpu NVIDIA H200, sm_90, driver 580, torch 2.11, date 2026-12-01; SM clock 1980 MHz"
    assert "| weights | 1 | 7.1 | 0.2 | 6.0 | L2 |  |  |  |" in lines
    assert "| gaps | 9 | 12.0 |  |  |  |  |  |  |" in lines


def test_times_of_kernels_that_are_wrong_are_not_to_be_quoted(tmp_path):
    passed = {"said": "passed, 3 s"}
    for name in ("gradients", "tests"):
        assert f"**{name} did not pass" in report(tmp_path, {"nanda": passed, name: {"said": "failed (1), 3 s"}}, {})
        assert "did not pass" not in report(tmp_path, {"nanda": passed, name: passed}, {})


def test_a_call_is_expected_to_take_nine_minutes_and_no_part_much_of_it():
    """The sums are of guesses: what they leave out comes first in the next call."""
    found = parts()
    assert len({part.name for part in found}) == len(found)
    assert [part.call for part in found] == sorted(part.call for part in found)
    for n in CALLS:
        expected = sum(part.seconds for part in found if part.call == n)
        assert 300 < expected <= 60 * MINUTES - gpu.RESERVE
    for part in found:
        assert part.command[:2] == [sys.executable, "-m"]
        assert part.seconds < part.limit <= 200
        assert all(word.count("{") == word.count("{out}") for word in part.command)
    assert all((Path(__file__).parent / name).exists() for name in gpu_parts.TESTS)


def test_what_must_hold_comes_before_times_and_ours_before_the_baselines():
    names = [part.name for part in parts()]
    assert names[:3] == ["build", "compile", "gradients"]
    assert "tests" in [part.name for part in parts() if part.call == 1]
    for ours, others in (("nanda", "nanda-baselines"), ("mlp", "mlp-baselines"), ("power", "power-baselines")):
        assert names.index(ours) < names.index(others)
    assert names.index("mlp-baselines") < names.index("mlp-compiled")
    assert names.index("nanda-baselines") < names.index("nanda-compiled")
    for part in parts():
        if part.name in ("compile", "gradients"):
            continue
        assert {"--only", "others"} <= {*part.command} or "baselines" not in part.name


def test_a_dry_run_needs_no_gpu_and_takes_every_parts_arguments(capsys, call):
    """Each module knows the options that it is given: it refuses for want of a GPU, not for what it does not know."""
    assert call("--dry-run", out=None) == 0
    said = capsys.readouterr().out.splitlines()
    assert len(said) == len(parts()) + 2
    assert "guesses, not measured" in said[-1]
    for part, line in zip(parts(), said[1:]):
        assert line.split()[:4] == [str(part.call), part.name, str(part.seconds), str(part.limit)]


@pytest.mark.parametrize(
    "part", [part for part in parts() if part.command[2] not in ("pytest", "benchmarks.gpu_build")]
)
def test_parts_know_their_options(part, monkeypatch, capsys):
    pytest.importorskip("triton")
    module = importlib.import_module(part.command[2])
    monkeypatch.setattr(sys, "argv", [part.name, *part.command[3:], "--no-such-option"])
    with pytest.raises(SystemExit):
        module.main()
    assert capsys.readouterr().err.endswith("unrecognized arguments: --no-such-option\n")


def test_without_a_gpu_it_says_so(call, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit, match="needs an NVIDIA GPU"):
        call("--call", "1")
    with pytest.raises(SystemExit, match="--out is missing"):
        call("--call", "1", out=None)


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
