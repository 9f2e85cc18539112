"""`Tensors`: from Python and from files, checked at the door, and there again wherever its runs go on."""

import pickle
import zipfile

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from grokfast import Experiment, RunStore, sweep, train
from grokfast.store import StoreError
from grokfast.sweeps import Processes, plan_stored
from grokfast.tasks import ModularTask, Tensors
from grokfast.tasks import tensors as module
from grokfast.training import Interrupted, resume
from grokfast.training.result import stored_experiment, stored_result
from tests.training.common import StopAt, same_result

DATA = ModularTask(p=11, train_fraction=0.5).build(seed=0)
ARRAYS = {
    "x": DATA.train.inputs, "y": DATA.train.targets, "x_test": DATA.test.inputs, "y_test": DATA.test.targets
}  # fmt: skip
QUICK = Experiment.preset("quick").override(
    {"model.width": 16, "schedule.steps": 40, "schedule.eval_every": 5, "schedule.stop_after": None, "device": "cpu"}
)


def write(folder, form, arrays=ARRAYS):
    path = folder / f"set.{form}"
    if form == "npz":
        np.savez(path, **{name: np.asarray(array) for name, array in arrays.items()})
    else:
        save_file({name: torch.as_tensor(array).contiguous() for name, array in arrays.items()}, path)
    return path


@pytest.fixture
def forgotten(monkeypatch):
    """As another process, which has read nothing yet."""

    def forget():
        monkeypatch.setattr(module, "_KNOWN", {})
        monkeypatch.setattr(module, "_PLACES", {})

    return forget


@pytest.mark.parametrize("form", ["npz", "safetensors"])
def test_a_file_has_what_python_has(tmp_path, form):
    given, read = Tensors(*ARRAYS.values()), Tensors(path=write(tmp_path, form))
    assert given == read
    assert hash(given) == hash(read)
    assert (read.path, read.source, given.source) == ("", str(tmp_path / f"set.{form}"), "")
    for task in (given, read):
        data = task.build()
        assert (data.n_tokens, data.n_answers, task.seq_len, task.n_rows()) == (11, 11, 2, len(DATA.train))
        for name in ("train", "test"):
            assert torch.equal(data.splits[name].inputs, DATA.splits[name].inputs)
            assert torch.equal(data.splits[name].targets, DATA.splits[name].targets)


def test_a_run_learns_them_as_it_would_the_task(tmp_path):
    by_task = QUICK.override({"task": ModularTask(p=11, train_fraction=0.5)})
    same = train(by_task, task=Tensors(*ARRAYS.values()))
    same_result(same, train(by_task))


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        (np.int8, torch.int64), (np.uint32, torch.int64), (">i4", torch.int64), (bool, torch.int64),
        (np.float16, torch.float32), (">f4", torch.float32), (np.float64, torch.float64),
        (torch.int32, torch.int64), (torch.bfloat16, torch.float32), (torch.float64, torch.float64),
    ],
)  # fmt: skip
def test_types(kind, expected):
    numbers = torch.randint(0, 2, (6, 3), generator=torch.Generator().manual_seed(0))
    x = numbers.to(kind) if isinstance(kind, torch.dtype) else numbers.numpy().astype(kind)
    task = Tensors(x, [0, 1, 0, 1, 0, 1], train_fraction=0.5, split_seed=3)
    data = task.build()
    assert data.train.inputs.dtype is expected
    assert task.seq_len == (3 if expected is torch.int64 else None)
    rows = torch.cat([data.train.inputs, data.test.inputs]).long()
    assert sorted(rows.tolist()) == sorted(numbers.tolist())


def test_what_is_given_can_be_changed_afterwards():
    x = torch.zeros(4, 2, dtype=torch.int64)
    task = Tensors(x, [0, 1, 0, 1], train_fraction=0.5)
    x.fill_(9)
    assert task.build().train.inputs.max() == 0


def test_targets_of_every_kind_and_further_splits():
    x, rows = torch.rand(8, 3), torch.arange(8)
    data = Tensors(x, rows.float(), x[:3], rows[:3].float(), x_b=x[:2], y_b=rows[:2].float(), x_a=x, y_a=rows.float())
    built = data.build()
    assert list(built.splits) == ["train", "test", "a", "b"]
    assert (built.is_real, built.n_answers, built.n_tokens) == (True, 1, 0)
    several = Tensors(x, torch.stack([rows, rows], 1), x, torch.stack([rows, rows], 1), n_answers=20).build()
    assert (several.n_positions, several.n_answers) == (2, 20)


def test_a_split_by_the_seed_or_by_its_own():
    task = Tensors(torch.arange(40).reshape(20, 2), torch.arange(20) % 2, train_fraction=0.3)
    one, same, other = (task.build(seed=seed).train.inputs for seed in (1, 1, 2))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    pinned = Tensors(torch.arange(40).reshape(20, 2), torch.arange(20) % 2, train_fraction=0.3, split_seed=1)
    assert torch.equal(pinned.build(seed=5).train.inputs, one)
    assert (task.n_rows(), len(one)) == (6, 6)
    fractions = sorted(QUICK.override({"task": task}).varying() & {"task.train_fraction", "task.split_seed"})
    assert fractions == ["task.split_seed", "task.train_fraction"]


def test_it_goes_on_without_the_file(tmp_path, forgotten, set_threads):
    set_threads(1)
    path, root = write(tmp_path, "npz"), tmp_path / "runs"
    with RunStore(root) as store:
        whole = train(QUICK, task=f"tensors(path='{path}')", store=store)
        with pytest.raises(Interrupted) as stopped:
            train(QUICK, task=Tensors(path=path), store=store, observers=[StopAt(17)])
        (run_id,) = stopped.value.run_ids
    path.unlink()
    forgotten()
    with RunStore(root) as store:
        same_result(resume(run_id, store), whole)
        assert stored_result(store, run_id).experiment.task == whole.experiment.task
        assert [file.name for file in (root / ".data").iterdir()] == [f"{whole.experiment.task.sha256}.safetensors"]


def test_a_sweep_has_them_in_every_process(tmp_path, forgotten):
    path = write(tmp_path, "safetensors")
    grid = {"task": [f"tensors(path='{path}')", Tensors(ARRAYS["x"], ARRAYS["y"], train_fraction=0.5)], "seed": [0, 1]}
    found = sweep(QUICK, grid, store=tmp_path / "runs", runner=Processes(2))
    assert found.errors == {}
    assert found.table()["status"].tolist() == ["finished"] * 4
    path.unlink()
    forgotten()
    again = plan_stored(found.sweep_id, store=tmp_path / "runs")
    assert again.todo == 0
    assert found.runs[0].experiment.task.build().n_tokens == 11


def test_the_name_of_the_file_is_in_no_hash(tmp_path):
    from grokfast.sweeps.grid import identity

    one, other = (QUICK.override({"task": Tensors(path=write(tmp_path, form))}) for form in ("npz", "safetensors"))
    assert one.task.source != other.task.source
    assert identity(one) == identity(other)
    assert one == other


@pytest.mark.parametrize(
    ("arrays", "error", "message"),
    [
        ({"y": ARRAYS["y"][:-1]}, ValueError, r"x and y must have as many rows, got x \[60, 2\] and y \[59\]"),
        ({"y_test": None}, ValueError, "y_test is missing: there are x, x_test, y"),
        ({"x": None}, ValueError, "x is missing: there are x_test, y, y_test"),
        ({"x_test": None, "y_test": None}, ValueError, "there must be a test split, x_test and y_test, or a train_fr"),
        ({"n_answers": 10}, ValueError, r"train must have classes in 0..9, got 0 to 10|test must have classes"),
        ({"n_tokens": 10}, ValueError, r"must have token ids in 0..9, got 0 to 10"),
        ({"y": -ARRAYS["y"]}, ValueError, r"train must have classes in 0..10, got -10 to 0"),
        ({"x": ARRAYS["x"].float()}, TypeError, "test must have floating-point features, as n_tokens is 0"),
        ({"x_test": ARRAYS["x_test"].repeat(1, 2)}, ValueError, r"test must have rows like those of train, got"),
        ({"x": ARRAYS["x"][None]}, ValueError, "x and y must have as many rows"),
        ({"x": "abc"}, TypeError, "x must be an array of integers or real numbers, got <U3"),
        ({"x": np.array([{}])}, TypeError, "x must be an array of integers or real numbers, got object"),
        ({"x": torch.ones(3, 2) * 1j}, TypeError, "x must be a dense tensor of integers or real"),
        ({"z": ARRAYS["x"]}, ValueError, "arrays must be called x, y, x_test, y_test, or x_NAME and y_NAME, got 'z'"),
        ({"x_": ARRAYS["x"]}, ValueError, "arrays must be called .* got 'x_'"),
        ({"x_train": ARRAYS["x"]}, ValueError, "x must be given once, got x and x_train"),
        ({"train_fraction": 0.5}, ValueError, "train_fraction must be None where there is a test split, got 0.5"),
        ({"train_fraction": 1.0}, ValueError, "train_fraction must be in"),
        ({"path": "set.npz"}, ValueError, "path must be empty where arrays are given, got 'set.npz'"),
        ({"x": np.zeros((0, 2), int), "y": np.zeros(0, int)}, ValueError, r"train must have inputs .* got \[0, 2\]"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused(arrays, error, message):
    with pytest.raises(error, match=message):
        Tensors(**{name: value for name, value in {**ARRAYS, **arrays}.items() if value is not None})


class Trap:
    """Leaves a trace where it is unpickled."""

    def __reduce__(self):
        return (open, ("trace", "w"))


def test_pickled_objects_are_not_opened(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    np.savez("objects.npz", x=np.array([Trap()], dtype=object), y=np.zeros(1))
    with open("pickle.npz", "wb") as file:
        pickle.dump(Trap(), file)
    for name in ("objects.npz", "pickle.npz"):
        with pytest.raises(ValueError, match=f"path '{name}' is refused: it holds pickled objects"):
            Tensors(path=name)
    assert not (tmp_path / "trace").exists()


def test_files_that_are_none_are_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.npz").write_bytes(b"PK\x03\x04 cut short")
    (tmp_path / "a.safetensors").write_bytes(b"\xff" * 20)
    (tmp_path / "empty.npz").write_bytes(b"")
    with zipfile.ZipFile("other.npz", "w") as file:
        file.writestr("readme.txt", "hello")
    np.save("one.npy", np.zeros(3))
    (tmp_path / "one.npy").rename(tmp_path / "one.npz")
    for name, why in {
        "a.npz": "is refused", "empty.npz": "is refused", "other.npz": "readme", "one.npz": "one array without a name",
        "a.safetensors": "is no safetensors file", "a.csv": "must end in .npz or .safetensors",
    }.items():  # fmt: skip
        with pytest.raises((ValueError, TypeError), match=why):
            Tensors(path=name)
    with pytest.raises(FileNotFoundError, match=r"nowhere\.npz"):
        Tensors(path="nowhere.npz")


def test_where_they_are_not_that_is_said(tmp_path, forgotten):
    with pytest.raises(
        ValueError, match=r"path must name a file, \.npz or \.safetensors, with x, y, x_test and y_test"
    ):
        Tensors().build()
    with pytest.raises(ValueError, match="sha256 must be 64 hexadecimal digits, got 'abc'"):
        Tensors(sha256="abc")
    with pytest.raises(ValueError, match=r"the tensors 111111111111 \(given in Python\) are not here: path must name"):
        Tensors(sha256="1" * 64).build()
    with RunStore(tmp_path) as store:
        run = train(QUICK, task=Tensors(*ARRAYS.values()), store=store)
        file = tmp_path / ".data" / f"{run.experiment.task.sha256}.safetensors"
        forgotten()
        whole = file.read_bytes()
        file.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
        with pytest.raises(StoreError, match="is damaged"):
            stored_experiment(store.get(run.run_id)).task.build()
        file.unlink()
        with pytest.raises(StoreError, match="does not exist"):
            resume(run.run_id, store, steps=50)


def test_a_model_that_does_not_take_them_is_named():
    with pytest.raises(ValueError, match=r"task.layout must be 'pair' for a PairMLP: two tokens, not 3"):
        QUICK.override({"task": Tensors(torch.zeros(4, 3, dtype=torch.int64), [0, 1, 0, 1], train_fraction=0.5)})
    with pytest.raises(ValueError, match=r"a PairMLP takes inputs \[N, 2\] of tokens and targets \[N\], the data have"):
        train(QUICK, task=Tensors(torch.rand(4, 3), [0, 1, 0, 1], train_fraction=0.5))
