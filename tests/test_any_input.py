"""Whatever is given to experiments, grids, files and the command line: it works, or is refused in a line that says why.

Drawn by hypothesis, always the same examples. What is refused must be so by ValueError, TypeError or one of the errors
that the command line knows; nothing lasts, and nothing is written outside of the store's directory.
"""

import json
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from grokfast import EMA, MA, Experiment, RunStore, train
from grokfast.cli import COMMANDS, main
from grokfast.models import TransformerConfig
from grokfast.sweeps import grid as grids
from grokfast.sweeps import plan
from grokfast.sweeps.grid import expand
from grokfast.sweeps.text import parse_axes
from grokfast.sweeps.toml import read_sweep
from grokfast.tasks import ModularTask
from grokfast.training import PRESETS
from grokfast.training.ensemble import resolve_device

EXAMPLES = 80
bounded = settings(
    max_examples=EXAMPLES, derandomize=True, deadline=None, database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)  # fmt: skip

TINY = Experiment.preset("quick").override({"task.p": 7, "model.width": 4, "schedule.steps": 2, "device": "cpu"})
BASES = [
    TINY,
    TINY.override({"filter": EMA()}),
    TINY.override(
        {
            "filter": MA(),
            "task": ModularTask(p=5, layout="equals"),
            "model": TransformerConfig(d_model=4, n_heads=2, d_mlp=4),
        }
    ),
]
FIELDS = {name: value for base in BASES for name, value in base.flat().items()}
PATHS = sorted({*FIELDS, "task", "model", "filter", "optimizer"})
ODD_NAMES = ["", ".", "task.", "task.p.q", "override", "__class__", "sed", "filter.x"]
NAMES = st.sampled_from(PATHS) | st.sampled_from(PATHS) | st.sampled_from(ODD_NAMES)
CHOICES = [
    "add", "div", "pair", "equals", "adamw", "sgd", "relu", "torch", "mse", "float64", "tf32", "cpu", "hpu", "meta",
    "auto", "none", "ema", "ma", "reference", "../x", "/ABSOLUTE", "$x$", "[/red]", "=1+1", "\x1b[31m", "None", "nan",
]  # fmt: skip
WHOLE = [0, 1, 2, 5, 7, 13, -1, 2**31, 2**53 - 1, 2**53, 2**63 - 1, 2**63, 10**20]
NUMBERS = [*WHOLE, 0.1, 0.5, 0.9, 1.0, 1e-300, 1e39, 1e308]
INTEGERS = st.sampled_from([0, 1, 2, 3, 7]).flatmap(lambda n: st.sampled_from([n, np.int64(n), np.uint8(n)]))
REALS = st.sampled_from(NUMBERS) | st.sampled_from([np.float32(0.5), np.float64(0.25), Fraction(1, 3), np.int64(1)])
SCALARS = (
    st.sampled_from(CHOICES)
    | REALS
    | st.sampled_from([None, True, False, float("nan"), float("inf")])
    | st.text(max_size=5)
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=4,
)
SIZES = {
    "p": 13, "width": 64, "depth": 3, "d_model": 64, "d_mlp": 64, "n_layers": 2, "n_positions": 64, "window_size": 99,
}  # fmt: skip


def near(name):
    """Values of a field's type, most of which it takes, of any kind of number."""
    usual = FIELDS.get(name, "")
    if isinstance(usual, bool):
        return st.booleans()
    if usual is None or isinstance(usual, int):
        return INTEGERS | st.sampled_from(WHOLE)
    if isinstance(usual, float):
        return REALS
    return st.tuples(REALS, REALS) if isinstance(usual, tuple) else st.sampled_from(CHOICES)


CHANGE = NAMES.flatmap(lambda name: st.tuples(st.just(name), near(name) | near(name) | VALUES))


def refused(call, *arguments, **options):
    """What the call returns; None where it refuses its arguments as it should."""
    try:
        return call(*arguments, **options)
    except (TypeError, ValueError) as error:
        said = str(error)
        assert said.strip()
        assert "\n" not in said
        assert len(said) < 1500
        return None


@bounded
@given(st.sampled_from(BASES), st.lists(CHANGE, min_size=1, max_size=3))
def test_any_change_of_an_experiment(base, changes):
    made = refused(base.override, dict(changes))
    if made is not None:
        assert Experiment.from_dict(json.loads(json.dumps(made.to_dict()))) == made


@bounded
@given(st.sampled_from(BASES), NAMES, st.sampled_from(["kind", "p", "lr", "x", "betas"]), VALUES)
def test_any_stored_experiment(base, path, name, value):
    stored = base.to_dict()
    part = path.partition(".")[0]
    if isinstance(stored.get(part), dict):
        stored[part][name] = value
    else:
        stored[part] = value
    refused(Experiment.from_dict, stored)
    refused(Experiment.from_dict, value)


@bounded
@given(st.sampled_from(BASES), st.lists(CHANGE, max_size=3))
def test_any_experiment_that_is_made_can_be_trained(base, changes):
    for path, value in changes:
        base = refused(base.override, {path: value}) or base
    sizes = {path.rpartition(".")[2]: value for path, value in base.flat().items()}
    if any((sizes.get(name) or 0) > most for name, most in SIZES.items()):
        return
    result = refused(train, base.override({"schedule.steps": min(base.schedule.steps, 3)}))
    assert result is None or result.status in ("finished", "diverged")


@pytest.fixture
def few(monkeypatch):
    """A sweep has at most 50 runs."""
    monkeypatch.setattr(grids, "MAX_CELLS", 50)


LONG = st.sampled_from([range(10**9), range(10**30), np.zeros((2, 2)), "seed"])
AXIS = NAMES.flatmap(lambda name: st.tuples(st.just(name), st.lists(near(name), max_size=3) | VALUES | LONG))
COUNTS = st.sampled_from([None, None, None, 1, 2, 0, -1, 2**53, 10**30, 1.5, "2", True])


@bounded
@given(st.sampled_from(BASES), st.lists(AXIS | st.just((3, [1])), max_size=2), st.booleans(), COUNTS, COUNTS)
def test_any_grid(few, base, grid, zip, random, seeds):
    cells = refused(expand, base, dict(grid), zip=zip, random=random, seeds=seeds)
    assert cells is None or 1 <= len(cells) <= 50


ODD_WORDS = ["(0.9,0.98)", "(({1:2},0.9))", "((((", "-'a'", "9" * 5000]
WORDS = st.sampled_from([*CHOICES, *map(str, NUMBERS), *ODD_WORDS])
COUNT = st.sampled_from(["0", "1", "2", "3", "400000001", "9" * 5000, "3log", "2log"])
RANGES = st.tuples(st.sampled_from(NUMBERS).map(str), st.sampled_from(NUMBERS).map(str), COUNT).map(":".join)
PARTS = NAMES.flatmap(
    lambda name: st.tuples(st.just(name), st.lists(near(name).map(str) | RANGES | WORDS, min_size=1, max_size=2))
)
TEXTS = PARTS.map(lambda axis: f"{axis[0]}={','.join(axis[1])}") | st.text(max_size=5)


@bounded
@given(st.sampled_from(BASES), st.lists(TEXTS, max_size=3))
def test_any_grid_in_words(few, base, texts):
    axes = refused(parse_axes, base, texts)
    if axes is not None:
        refused(expand, base, axes)


TOML = ["1", "0.5", "-1", "9" * 5000, "1e400", "nan", "true", "1979-05-27", "07:32:00", "[]", "[1, 2]", "[0.5, 'x']"]
TOML += ["'ema'", "'0:3:4'", "'9:1:99999999999'", "'../x'", '"\\u0000"', "'''a\nb'''", "'\udcff'"]
TOML += ["{kind = 'ma'}", "{kind = 3}", "[{kind = 'ema', lamb = 1}]", "[[1], {a = 1}]", "[" * 2000, "{a = " * 2000]
HEADS = ["[experiment]", "[grid]", "[sweep]", "[experiment.filter]", "[[grid]]", "[x]", "[a.b.c]", "["]
KEYS = NAMES.map(lambda name: name or '""')
KEYS |= st.sampled_from(["preset", "zip", "random", "seeds", "a." * 2000 + "b", "'a b'"])
LINES = st.sampled_from(HEADS) | st.tuples(KEYS, st.sampled_from(TOML)).map(" = ".join) | st.text(max_size=9)


@bounded
@given(
    st.lists(LINES.map(lambda line: line.encode(errors="surrogateescape")), max_size=6).map(b"\n".join) | st.binary()
)
def test_any_file(few, tmp_path, written):
    path = tmp_path / "sweep.toml"
    path.write_bytes(written)
    read = refused(read_sweep, path)
    if read is not None:
        refused(expand, read.experiment, read.grid, **read.options)


@pytest.fixture
def place(tmp_path, monkeypatch, few):
    """A store with a run and a sweep, and their ids; the command line trains, times and draws nothing there."""
    root = tmp_path / "runs"
    with RunStore(root) as store:
        kept = {"schedule.snapshots": "1", "schedule.full_snapshots": True}
        run = train(TINY.override(kept), store=store).run_id
        sweep = plan(TINY, {"seed": [0, 1]}, store=store).sweep_id
    for what in ("run._run", "sweep.train", "branch.train", "ablate.train", "bench._bench", "doctor._doctor"):
        monkeypatch.setattr(f"grokfast.cli.{what}", _pretended)
    monkeypatch.chdir(root)
    monkeypatch.setattr("rich.prompt.Confirm.ask", lambda *_, **__: False)
    monkeypatch.setenv("COLUMNS", "100")
    return root, {"RUN": run, "SWEEP": sweep, "/ABSOLUTE": str(tmp_path / "absolute")}


def _pretended(*arguments, **_):
    """Everything but training."""
    for argument in arguments:
        if callable(argument):  # a sweep's plan, which is stored
            argument()
        if isinstance(argument, Experiment):
            resolve_device(argument.device)
    return 0


OPTIONS = [f"--{path}" for path in PATHS] + [f"--{path.replace('_', '-')}" for path in PATHS]
OPTIONS += ["--seeds", "--random", "--zip", "--grid", "--steps", "--json", "--resume", "--processes", "--ensemble"]
OPTIONS += ["--checkpoint-every", "--no-weights", "--status", "--limit", "--sweep", "--preset", "--picture", "--curves"]
OPTIONS += ["--at", "--set", "--arms"]
OPTIONS += ["--format", "--models", "--seconds", "--help", "-h", "--filter", "--filter.x", "-", "--", "---"]


GOOD = [f"--{path}={value}" for path, value in TINY.flat().items() if isinstance(value, (int, float, str))]
GOOD = [option for option in GOOD if not option.endswith(("True", "False"))]
GOOD += ["--grid", "task.p=5,7", "--grid=seed=0:3:4", "--seeds=2", "--filter=ema", "--filter=ma", "--steps=2", "--zip"]

WORD = st.sampled_from([*PRESETS, "RUN", "SWEEP"]) | WORDS | TEXTS | st.text(max_size=6)
CHANGED = CHANGE.map(lambda change: f"--{change[0]}={change[1]}")
OPTION = CHANGED | TEXTS.map("--grid={}".format) | TEXTS.map("--set={}".format) | st.sampled_from(OPTIONS) | WORD
OPTION |= st.tuples(st.sampled_from(OPTIONS), WORD).map("=".join)
FITTING = [["run"], ["run", "quick"], ["sweep", "quick"], ["sweep", "quick", "--seeds=2"], ["show", "RUN"]]
FITTING += [["show", "SWEEP"], ["list"], ["list", "--limit=1"], ["rm", "RUN"], ["rm", "SWEEP"], ["doctor"]]
FITTING += [["branch", "RUN", "--at=1"], ["branch", "RUN", "--at=1", "--set"], ["show", "RUN", "--at=1"]]
FITTING += [["ablate", "quick", "--arms=l2,mse"], ["ablate", "quick", "--arms=mse", "--set"]]
FITTING += [["show", "SWEEP", "--json"], ["export", "SWEEP"], ["export", "--curves"], ["bench"]]
BEGIN = st.sampled_from(FITTING) | st.tuples(st.sampled_from([*COMMANDS]) | st.text(max_size=3), WORD).map(list)


@bounded
@given(BEGIN, st.lists(st.sampled_from(GOOD), max_size=2), st.lists(OPTION, max_size=1) | st.lists(OPTION, max_size=3))
def test_any_command_line(place, capsys, command, good, others):
    argv = [*command, *(good if command[0] in ("run", "sweep") else []), *others]
    root, known = place
    argv = [known.get(word, word) for word in argv]
    before = sorted(root.parent.iterdir())
    try:
        status = main(argv if command[0] in ("bench", "doctor") else [*argv, "--out", str(root)])
    except SystemExit as stopped:  # tyro's
        status = stopped.code
    said = capsys.readouterr().err
    assert status in (0, 1, 2)
    assert "Traceback" not in said
    assert "GROKFAST_DEBUG=1" not in said  # of what is raised by mistake
    if "grokfast: " in said:
        assert said.splitlines()[-1].startswith("grokfast: ")
    assert sorted(root.parent.iterdir()) == before
