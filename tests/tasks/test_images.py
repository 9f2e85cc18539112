"""Images from files as Keras, MNIST and MNIST-1D have them: the same contents, their rows, and what is refused."""

import gzip
import struct

import numpy as np
import pytest
import torch

from grokfast import Experiment, RunStore, train
from grokfast.losses import MSE
from grokfast.models import MLPConfig
from grokfast.tasks import DigitsTask, ImagesTask
from grokfast.tasks import tensors as module
from grokfast.training import Interrupted, resume
from tests.training.common import StopAt, same_result

DRAWN = np.random.default_rng(0)
ARRAYS = {
    "x_train": DRAWN.integers(0, 256, (40, 5, 4), dtype=np.uint8), "y_train": np.arange(40, dtype=np.uint8) % 10,
    "x_test": DRAWN.integers(0, 256, (20, 5, 4), dtype=np.uint8), "y_test": np.arange(20, dtype=np.uint8) % 10,
}  # fmt: skip
IDX = {
    "x_train": "train-images-idx3-ubyte", "y_train": "train-labels-idx1-ubyte",
    "x_test": "t10k-images-idx3-ubyte", "y_test": "t10k-labels-idx1-ubyte",
}  # fmt: skip
SMALL = Experiment(
    name="small", task=DigitsTask(), model=MLPConfig(width=8), loss=MSE(), device="cpu"
).override({"schedule.steps": 30, "schedule.eval_every": 10})  # fmt: skip


def npz(folder, arrays=ARRAYS, name="set.npz"):
    np.savez(folder / name, **arrays)
    return str(folder / name)


def idx(array):
    return struct.pack(f">{1 + array.ndim}I", 0x800 + array.ndim, *array.shape) + array.tobytes()


def write_idx(folder, is_packed, dot="-"):
    folder.mkdir(exist_ok=True)
    for name, file in IDX.items():
        data, file = idx(ARRAYS[name]), file.replace("-idx", f"{dot}idx")
        (folder / f"{file}{'.gz' * is_packed}").write_bytes(gzip.compress(data) if is_packed else data)
    return str(folder)


@pytest.fixture
def forgotten(monkeypatch):
    """As another process, which has read nothing yet."""

    def forget():
        monkeypatch.setattr(module, "_KNOWN", {})
        monkeypatch.setattr(module, "_PLACES", {})

    return forget


def test_all_files_have_the_same_contents(tmp_path):
    by_keras = ImagesTask(path=npz(tmp_path), n_train=7)
    others = [
        write_idx(tmp_path / "plain", False),
        write_idx(tmp_path / "gz", True),
        write_idx(tmp_path / "b", True, "."),
    ]
    wide = {name: array.astype(np.int32) for name, array in ARRAYS.items()}
    for path in [*others, npz(tmp_path, wide, "wide.npz")]:
        task = ImagesTask(path=path, n_train=7)
        assert (task, hash(task), task.path, task.source) == (by_keras, hash(by_keras), "", path)
        assert torch.equal(task.build(seed=3).train.inputs, by_keras.build(seed=3).train.inputs)


def test_rows_are_the_files(tmp_path):
    data = ImagesTask(path=npz(tmp_path), n_train=30, n_test=15, label_noise=0.2).build(seed=1)
    assert (len(data.train), len(data.test), data.seq_len, data.n_answers, data.n_tokens) == (30, 15, 20, 10, 0)
    assert int(data.corrupted.sum()) == 6
    for split, name in ((data.train, "train"), (data.test, "test")):
        known = {
            (x.reshape(-1) / np.float32(255)).tobytes(): int(y)
            for x, y in zip(ARRAYS[f"x_{name}"], ARRAYS[f"y_{name}"])
        }
        rows = [row.tobytes() for row in split.inputs.numpy()]
        assert len(set(rows)) == len(split)
        wrong = [known[row] != target for row, target in zip(rows, split.targets.tolist())]
        assert wrong == (data.corrupted.tolist() if name == "train" else [False] * 15)


def test_the_split_follows_its_seed(tmp_path):
    path = npz(tmp_path)
    task, pinned = ImagesTask(path=path, n_train=10), ImagesTask(path=path, n_train=10, split_seed=1, noise_seed=0)
    assert not torch.equal(task.build(seed=1).train.inputs, task.build(seed=2).train.inputs)
    assert torch.equal(pinned.build(seed=2).train.inputs, task.build(seed=1).train.inputs)
    assert sorted(task.build(seed=1).test.targets.tolist()) == sorted(ARRAYS["y_test"].tolist())


@pytest.mark.parametrize("n_test", [None, 3])
def test_numbers_without_a_test_set(tmp_path, n_test):
    x = DRAWN.normal(size=(30, 40))
    path = npz(tmp_path, {"x": x, "y": np.arange(30) % 3, "t": np.linspace(0, 1, 40)})
    data = ImagesTask(path=path, n_train=20, n_test=n_test).build()
    assert (len(data.train), len(data.test), data.seq_len, data.n_answers) == (20, n_test or 10, 40, 3)
    rows = torch.cat([data.train.inputs, data.test.inputs])
    assert rows.dtype is torch.float64
    found = {row.numpy().tobytes() for row in rows}
    assert len(found) == 20 + (n_test or 10)
    assert found <= {row.tobytes() for row in x}


def test_classes_as_real_numbers(tmp_path):
    path = npz(tmp_path)
    classes, real = (
        ImagesTask(path=path, n_train=40, targets=t, label_noise=0.5).build(seed=4) for t in ("class", "real")
    )
    assert (real.n_answers, real.is_real) == (1, True)
    assert torch.equal(real.corrupted, classes.corrupted)
    torch.testing.assert_close(real.train.targets[:, 0] * 8.25**0.5 + 4.5, classes.train.targets.float())
    assert real.test.targets.mean().item() == pytest.approx(0, abs=1e-6)
    assert real.test.targets.square().mean().item() == pytest.approx(1)
    digits = [DigitsTask(targets=t) for t in ("class", "real")]
    pytest.importorskip("sklearn.datasets", reason="needs scikit-learn: pip install 'grokfast[data]'")
    one, other = (task.build(seed=1) for task in digits)
    torch.testing.assert_close(other.test.targets[:, 0] * 8.25**0.5 + 4.5, one.test.targets.float())
    assert torch.equal(one.test.inputs, other.test.inputs)


def test_a_run_goes_on_without_the_file(tmp_path, forgotten, set_threads):
    set_threads(1)
    path, root = npz(tmp_path), tmp_path / "runs"
    with RunStore(root) as store:
        whole = train(SMALL, task=f"images(path='{path}',n_train=25)", store=store)
        with pytest.raises(Interrupted) as stopped:
            train(SMALL, task=ImagesTask(path=path, n_train=25), store=store, observers=[StopAt(11)])
        (run_id,) = stopped.value.run_ids
    (tmp_path / "set.npz").unlink()
    forgotten()
    with RunStore(root) as store:
        same_result(resume(run_id, store), whole)
        assert [file.name for file in (root / ".data").iterdir()] == [f"{whole.experiment.task.sha256}.safetensors"]


def test_several_sizes_are_learned_together(tmp_path):
    task = ImagesTask(path=npz(tmp_path), n_train=40, targets="real")
    experiments = [SMALL.override({"task": task}).override({"task.n_train": n, "seed": n}) for n in (40, 20)]
    for together, experiment in zip(train(experiments), experiments):
        same_result(together, train(experiment))


X, Y = ARRAYS["x_train"], ARRAYS["y_train"]


@pytest.mark.parametrize(
    ("changes", "options", "error", "message"),
    [
        ({"x_train": None}, {}, ValueError, r"x is missing: .* \(it holds y_train, x_test, y_test\)"),
        ({"y_test": None}, {}, ValueError, "y_test is missing: there are x, x_test, y"),
        ({"y_train": Y[:-1]}, {}, ValueError, r"x and y must have as many rows, got x \[40, 20\] and y \[39\]"),
        ({"y_train": Y / 2}, {}, TypeError, r"y_train must be classes, integers \[N\], got \[40\] float64"),
        ({"y_train": np.eye(40, dtype=int)}, {}, TypeError, r"y_train must be classes, integers \[N\], got \[40, 40\]"),
        ({"y_train": np.arange(40) - 1}, {}, ValueError, r"y_train must be classes 0\.\.999, got -1 to 38"),
        ({"y_train": 0 * Y, "y_test": 0 * Y[:20]}, {}, ValueError, "y must have at least two classes"),
        ({"x_train": X[:, 0, 0]}, {}, ValueError, r"x_train must be images \[N, D\] .* got \[40\] uint8"),
        ({"x_train": X.astype(int) + 1}, {}, ValueError, r"x_train must have pixels 0\.\.255, got 1 to 256"),
        ({"x_train": X * np.nan}, {}, ValueError, "x_train must have finite numbers, got NaN or infinity"),
        ({"x_test": X[:20, :4]}, {}, ValueError, r"x_test must have images like those of x, got x \[N, 20\] .*N, 16\]"),
        ({"x_train": np.array(["a"])}, {}, TypeError, "x_train must be an array of integers or real numbers"),
        ({}, {"n_train": 41}, ValueError, "n_train must be at most 40: there are 40 images, got 41"),
        ({}, {"n_train": 10, "n_test": 21}, ValueError, "n_test must be at most 20, the images for testing, got 21"),
        ({}, {"targets": "one-hot"}, ValueError, "targets must be one of 'class', 'real'"),
        ({}, {"label_noise": 2}, ValueError, "label_noise must be in"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused(tmp_path, changes, options, error, message):
    arrays = {name: array for name, array in {**ARRAYS, **changes}.items() if array is not None}
    with pytest.raises(error, match=message):
        ImagesTask(path=npz(tmp_path, arrays), **{"n_train": 10, **options})


def test_one_row_is_left_for_testing(tmp_path):
    path = npz(tmp_path, {"x": X, "y": Y})
    with pytest.raises(
        ValueError, match="n_train must be at most 39: there are 40 images, and one for testing, got 40"
    ):
        ImagesTask(path=path, n_train=40)
    with pytest.raises(ValueError, match="n_test must be at most 30"):
        ImagesTask(path=path, n_train=10, n_test=31)


def test_files_that_are_none_are_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    np.savez("objects.npz", x=np.array([{}], dtype=object), y=np.zeros(1))
    for path, why in {
        "objects.npz": "it holds pickled objects, which are not opened",
        "mnist.pkl": "must be a directory with MNIST's four idx files, or end in .npz or .safetensors",
    }.items():
        with pytest.raises(ValueError, match=f"path '{path}' .*{why}"):
            ImagesTask(path=path)
    with pytest.raises(FileNotFoundError, match=r"nowhere\.npz"):
        ImagesTask(path="nowhere.npz")
    with pytest.raises(TypeError, match="path must be a string, got 3"):
        ImagesTask(path=3)
    folder = tmp_path / "mnist"
    write_idx(folder, False)
    whole = idx(ARRAYS["x_train"])
    for data, why in {
        whole[:-1]: r"its sizes \[40, 5, 4\] promise 800 bytes, there are less",
        whole + b"0": "promise 800 bytes, there are more",
        whole[:9]: "unpack requires",
        idx(Y): "it is no idx file of bytes with 3 axes",
        struct.pack(">4I", 0x803, *[2**32 - 1] * 3): "it is no idx file of bytes with 3 axes",
    }.items():
        (folder / IDX["x_train"]).write_bytes(data)
        with pytest.raises(ValueError, match=why):
            ImagesTask(path=str(folder))
    (folder / IDX["x_train"]).unlink()
    with pytest.raises(FileNotFoundError, match="path 'mnist' has no train-images-idx3-ubyte, plain or"):
        ImagesTask(path="mnist")
    for data in (b"no gzip", gzip.compress(whole)[:-40]):
        (folder / f"{IDX['x_train']}.gz").write_bytes(data)
        with pytest.raises(ValueError, match=r"train-images-idx3-ubyte\.gz' is refused"):
            ImagesTask(path="mnist")


def test_without_a_file_that_is_said(forgotten):
    with pytest.raises(
        ValueError, match=r"path must name an \.npz with x_train, .* or a directory with MNIST's idx files"
    ):
        ImagesTask().build()
    with pytest.raises(ValueError, match="are not here: path must name their file"):
        ImagesTask(sha256="1" * 64).build()
