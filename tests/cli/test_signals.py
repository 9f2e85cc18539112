"""What a run and a sweep do when they are told to stop, however often and by which signal."""

import signal
import subprocess
import sys
import time

import pytest

from grokfast.store import RunStore

TINY = ["quick", "--task.p", "13", "--model.width", "16", "--device", "cpu", "--schedule.stop-after", "None"]
COMMANDS = {
    "run": ["run", *TINY, "--steps", "10000000"],
    "sweep": ["sweep", *TINY, "--steps", "10000000", "--seeds", "2", "--processes", "2"],
}
pytestmark = pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="no SIGHUP here")


def begun(command, out, ignoring=None):
    """The command's process, once each of its workers has stored an evaluation."""
    prepare = None if ignoring is None else lambda: signal.signal(ignoring, signal.SIG_IGN)
    arguments = [sys.executable, "-m", "grokfast", *COMMANDS[command], "--out", str(out)]
    process = subprocess.Popen(arguments, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, preexec_fn=prepare)
    while not (out / "grokfast.sqlite").exists():
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.05)
    with RunStore(out, create=False) as store:
        while not (runs := store.list()) or not all(len(store.curves(run.run_id)["step"]) for run in runs):
            assert process.poll() is None, process.stderr.read()
            time.sleep(0.05)
    return process


def check_saved(process, out):
    said = process.communicate(timeout=120)[1]
    assert process.returncode == 130, said
    assert "Traceback" not in said
    assert "Stopped and saved. Go on with: grokfast " in said
    with RunStore(out, create=False) as store:
        for run in store.list():
            assert run.status == "interrupted"
            assert store.load_checkpoint(run.run_id)[1]["steps"] > 0


@pytest.mark.parametrize("command", COMMANDS)
def test_five_times_ctrl_c_within_a_tenth_of_a_second_saves(tmp_path, command):
    process = begun(command, tmp_path)
    for _ in range(5):
        process.send_signal(signal.SIGINT)
        time.sleep(0.02)
    check_saved(process, tmp_path)


@pytest.mark.slow
def test_a_terminal_that_goes_saves(tmp_path):
    process = begun("sweep", tmp_path)
    process.send_signal(signal.SIGHUP)
    check_saved(process, tmp_path)


def test_under_nohup_it_goes_on(tmp_path):
    process = begun("run", tmp_path, ignoring=signal.SIGHUP)
    with RunStore(tmp_path, create=False) as store:
        before = {run.run_id: store.curves(run.run_id)["step"][-1] for run in store.list()}
        process.send_signal(signal.SIGHUP)
        while not all(store.curves(run_id)["step"][-1] > step for run_id, step in before.items()):
            assert process.poll() is None
            time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    check_saved(process, tmp_path)
