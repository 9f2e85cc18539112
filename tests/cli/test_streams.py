"""Standard output that is closed, full, or of few characters."""

import json
import os
import subprocess
import sys

import pytest

from grokfast.cli.streams import CLOSED_PIPE
from grokfast.store import RunStore

GROKFAST = [sys.executable, "-m", "grokfast"]
ASCII = {"LC_ALL": "C", "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0", "COLUMNS": "40"}


def test_a_closed_pipe_ends_quietly():
    with subprocess.Popen(
        [*GROKFAST, "run", "nanda", "--help"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as done:
        done.stdout.close()  # before it has imported what the help needs
        assert done.stderr.read() == b""
    assert done.returncode == CLOSED_PIPE


def test_a_run_whose_output_nobody_reads_is_stored(tmp_path):
    command = [*GROKFAST, "run", "quick", "--task.p", "13", "--model.width", "16", "--steps", "40", "--out", tmp_path]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as done:
        done.stdout.close()
        assert b"Broken" not in done.stderr.read()
    assert done.returncode == CLOSED_PIPE
    with RunStore(tmp_path, create=False) as store:
        assert [run.status for run in store.list()] == ["finished"]


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="has no /dev/full")
@pytest.mark.parametrize("command", [["--help"], ["--version"]])
def test_a_full_disk_behind_the_output_is_a_message(command):
    with open("/dev/full", "w") as full:
        done = subprocess.run([*GROKFAST, *command], stdout=full, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 1
    assert done.stderr.startswith("grokfast: ")
    assert "No space left on device" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_list_whose_reader_has_enough_ends_quietly(tmp_path):
    with RunStore(tmp_path) as store:
        for seed in range(30):
            store.create({"seed": seed}, preset="quick", version="grokfast 0", device="cpu")
    with subprocess.Popen(
        [*GROKFAST, "list", "--out", tmp_path], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as done:
        done.stdout.close()
        assert done.stderr.read() == b""
    assert done.returncode == CLOSED_PIPE


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="has no /dev/full")
@pytest.mark.parametrize("is_pipe", [True, False])
def test_a_run_whose_messages_nobody_can_read_goes_on(tmp_path, is_pipe):
    arguments = ["run", "quick", "--task.p", "13", "--model.width", "16", "--steps", "40", "--json", "--out", tmp_path]
    reader, writer = os.pipe()
    os.close(reader)
    with open(writer if is_pipe else "/dev/full", "w") as nobody:
        done = subprocess.run([*GROKFAST, *arguments], stdout=subprocess.PIPE, stderr=nobody, text=True)
    if not is_pipe:
        os.close(writer)
    assert done.returncode == 0
    assert json.loads(done.stdout.splitlines()[-1])["status"] == "finished"


def test_without_standard_streams_it_works():
    done = subprocess.run(f"{sys.executable} -m grokfast --version >&- 2>&-", shell=True)
    assert done.returncode == 0


def test_a_warning_is_a_message():
    code = "import warnings; from grokfast.cli.streams import run; run(lambda: warnings.warn('take care') or 0)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr == "grokfast: take care\n"


def ascii_only(*arguments, **options):
    return subprocess.run(
        [*GROKFAST, *arguments], capture_output=True, text=True, env={**os.environ, **ASCII}, **options
    )


@pytest.mark.parametrize("arguments", [["--help"], ["run", "grokfast", "--help"], ["run", "quik"]])
def test_what_an_encoding_lacks_is_said_in_what_it_has(arguments):
    done = ascii_only(*arguments)
    assert done.returncode == (2 if "quik" in arguments else 0)
    assert "codec" not in done.stderr
    assert "?" not in done.stdout


def test_a_sentence_keeps_its_meaning_in_ascii():
    said = "16× later, T ≈ λ², 3 µs ▁█, ĝ"
    code = f"from grokfast.cli.streams import run; run(lambda: print({said!a}) or 0)"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ, **ASCII}, check=True
    )
    assert done.stdout == "16x later, T ~ lambda^2, 3 us _#, g\n"
