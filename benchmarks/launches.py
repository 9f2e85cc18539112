"""Every kernel that training and the public operations launch, compiled as the launch itself would have it compiled.

python -m benchmarks.launches [--capability 90] [--scene NAME ...] [--compile NAME ...]

`python -m benchmarks.resources` compiles configurations as each kernel's file writes them down. Here the code that
trains is run, on CPU tensors that stand in for a GPU's: each launch is noted with its grid and with what Triton reads
off its arguments (types, what divides 16, what is 1), nothing is executed, and each kernel is then compiled once for
every set of such facts, in parallel, so that on a GPU what is run next finds most kernels in Triton's cache. What would
stand in a CUDA graph must do there what a capture allows. Exits with 1 where it does not, where a kernel cannot be
compiled, spills many bytes or needs more shared memory than there is, or where no GPU takes a grid. TRITON_INTERPRET
must not be set.
"""

from __future__ import annotations

import argparse
import importlib
import multiprocessing
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
import triton
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime import driver
from triton.runtime.jit import JITFunction

from benchmarks.resources import MANY, resources
from grokfast import EMA, MA, Experiment, GrokFast, backend, ops
from grokfast.models.autograd import Autograd
from grokfast.optim import Lion
from grokfast.training.ensemble import Ensemble
from grokfast.training.outcome import Outcome
from grokfast.training.replay import Replay

LARGEST_GRID = 2**31 - 1, 65535, 65535
PRECISIONS = ("ieee", "tf32x3", "tf32", "bf16")
MODELS = 32  # nanda has tall tiles; Triton takes numbers that 16 divides for another case: as 64 or 1,024 models
EMPTY = ("empty", "empty_like", "new_empty", "empty_strided", "new_empty_strided")


@dataclass(frozen=True)
class Launch:
    """A kernel by module and name, its grid, and what it is compiled with."""

    module: str
    name: str
    grid: tuple[int, ...]
    signature: dict[str, str]
    constants: dict[Any, Any]
    attributes: dict[Any, Any]
    options: dict[str, Any]

    @property
    def facts(self) -> str:
        """Equal where the compiled kernel is."""
        return repr((self.module, self.name, self.signature, self.constants, self.attributes, self.options))


class _Driver:
    """As much of a GPU as Triton asks for before it compiles."""

    def __init__(self, capability: int) -> None:
        self.capability = capability

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self.capability, 32)

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0


class _Capture(TorchDispatchMode):
    """Refuses what a stream under capture does: an answer for the host, or a tensor made of the host's numbers."""

    WAITS = (
        "_local_scalar_dense", "nonzero", "nonzero_numpy", "masked_select", "equal", "is_nonzero", "unique_dim",
        "_unique2", "unique_consecutive", "item", "lift", "lift_fresh", "histc", "bincount",
    )  # fmt: skip

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = function.overloadpacket.__name__
        if name in self.WAITS or (name in ("index", "index_put", "index_put_") and self._is_masked(args[1])):
            raise RuntimeError(f"{name} waits for the device, or takes numbers of the host")
        return function(*args, **(kwargs or {}))

    @staticmethod
    def _is_masked(indices: Sequence[Tensor | None]) -> bool:
        return any(t is not None and t.dtype in (torch.bool, torch.uint8) for t in indices)


class _Places(TorchFunctionMode):
    """Refuses tensors that are made without a device, which are the CPU's."""

    MAKES = (
        torch.arange, torch.zeros, torch.ones, torch.full, torch.empty, torch.eye, torch.linspace, torch.rand,
        torch.randn, torch.randint, torch.randperm, torch.tensor, torch.as_tensor, torch.from_numpy,
    )  # fmt: skip

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function in self.MAKES and (kwargs or {}).get("device") is None:
            raise RuntimeError(f"{function.__name__} makes a tensor of the CPU")
        return function(*args, **(kwargs or {}))


@contextmanager
def as_in_a_capture() -> Iterator[None]:
    """A block of code that may only do what a stream under capture does."""

    def refuse(*_: Any, **__: Any) -> Any:
        raise RuntimeError("the host reads a tensor")

    reads = ("item", "tolist", "cpu", "numpy", "__bool__", "__int__", "__float__", "__index__", "__array__")
    before = {name: getattr(Tensor, name) for name in reads}
    modules = [sys.modules[f"grokfast.ops.{name}"] for name in ("classify", "pair_embed", "linear_cross_entropy")]
    checks = [vars(module)["check_indices"] for module in modules]
    try:
        for name in reads:
            setattr(Tensor, name, refuse)
        for module in modules:  # which leaves a GPU's tensors alone
            setattr(module, "check_indices", lambda *_: None)  # noqa: B010
        with _Capture(), _Places():
            yield
    finally:
        for name, read in before.items():
            setattr(Tensor, name, read)
        for module, check in zip(modules, checks):
            setattr(module, "check_indices", check)  # noqa: B010


class _Zeros(TorchDispatchMode):
    """Memory that no kernel writes here holds zeros, which are a row, a class, a token of every table."""

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        return result.zero_() if function.overloadpacket.__name__ in EMPTY and not result.is_meta else result


@contextmanager
def taking(capability: int, take: Callable[[Launch, dict[str, Any]], Any]) -> Iterator[None]:
    """Launches of Triton kernels in a block of code on CPU tensors go to `take`, with their arguments by name."""

    def run(kernel: JITFunction, *args: Any, grid: Sequence[int], warmup: bool, **kwargs: Any) -> Any:
        target_of = kernel.device_caches[0]
        backend_, binder = target_of[-2], target_of[-1]
        kwargs["debug"] = False
        bound, specialization, options = binder(*args, **kwargs)
        parsed, signature, constants, attributes = kernel._pack_args(backend_, kwargs, bound, specialization, options)
        return take(
            Launch(kernel.module, kernel.__name__, tuple(grid), signature, constants, attributes, parsed.__dict__),
            bound,
        )

    before = JITFunction.run, backend.kernels_for, backend.built, driver._active
    JITFunction.run = run
    backend.built = lambda: (None, "not for a GPU's tensors")
    backend.kernels_for = lambda device, wish: (None, "asked for") if wish == "reference" else ("triton", "")
    driver.set_active(_Driver(capability))
    try:
        yield
    finally:
        JITFunction.run, backend.kernels_for, backend.built, driver._active = before


@contextmanager
def recording(capability: int) -> Iterator[list[Launch]]:
    """Launches of Triton kernels in a block of code on CPU tensors: noted, not made."""
    noted: list[Launch] = []
    with taking(capability, lambda launch, _: noted.append(launch)), _Zeros():
        yield noted


def scenes() -> dict[str, Callable[[], Any]]:
    """What is run, by name."""
    found: dict[str, Callable[[], Any]] = {}
    plain = {"device": "cpu", "schedule.steps": 8, "schedule.eval_every": 2}
    for preset in ("quick", "gromov", "nanda", "power", "grokfast", "prieto"):
        for precision in PRECISIONS:
            base = Experiment.preset(preset).override({**plain, "products": precision})
            few, many = ([base.override({"seed": i}) for i in range(n)] for n in (1, MODELS))
            found[f"{preset}, {precision}"] = lambda few=few: _train(few)  # type: ignore[misc]
            if precision == "tf32":
                found[f"{preset}, {precision}, {MODELS} models"] = lambda many=many: _train(many)  # type: ignore[misc]
    for engine in ("reference", "auto"):
        changes = {"engine": engine, "schedule.batch_size": 500, "task.p": 23}
        for preset in ("quick", "grokfast", "prieto"):
            base = Experiment.preset(preset).override({**plain, **changes})
            found[f"{preset}, engine {engine}"] = lambda base=base: _train([base])  # type: ignore[misc]
            ma = base.override({"filter": MA(3)})
            found[f"{preset}, engine {engine}, MA"] = lambda ma=ma: _train([ma, ma])  # type: ignore[misc]
    quick = Experiment.preset("quick").override(plain)
    for name in ("adam", "sgd", "lion"):
        for filter in (None, EMA(), MA(3, ring="bfloat16")):
            changed = quick.override({"optimizer": name, "filter": filter, "schedule.batch_size": 500})
            found[f"quick, {name}, {filter}"] = lambda changed=changed: _train([changed])  # type: ignore[misc]
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        found[f"operations, {dtype}"] = lambda dtype=dtype: _operations(dtype)  # type: ignore[misc]
        found[f"wrapper, {dtype}"] = lambda dtype=dtype: _wrapper(dtype)  # type: ignore[misc]
    return found


def _train(experiments: list[Experiment]) -> None:
    """Stretches of training, each with an evaluation; from the second on a GPU captures them."""
    ensemble = Ensemble(experiments)
    if isinstance(ensemble.compute, Autograd):
        ensemble.compute = Autograd(ensemble.runs)
        ensemble.compute.one_by_one = False  # which is a CPU's way
    replay = Replay(ensemble, [Outcome(e.criteria) for e in experiments])
    perform, seen = replay.graphs.perform, set()

    def captured(part: Any, function: Callable[[], None]) -> None:
        with as_in_a_capture() if part in seen else nullcontext():
            perform(part, function)
        seen.add(part)

    replay.graphs.perform = captured  # type: ignore[method-assign]
    with backend.using("reference") if experiments[0].engine == "reference" else nullcontext():
        for _ in range(3):
            replay.launch()


def _operations(dtype: torch.dtype) -> None:
    """Each public operation, forward and backward, one model and some, and no rows."""

    def draw(*shape: int) -> Tensor:
        return torch.zeros(shape, dtype=dtype, requires_grad=True)

    def backward(*outputs: Tensor) -> None:
        sum(t.float().sum() for t in outputs).backward()

    for models, rows in (((), 100), ((3,), 100), ((), 0)):
        x, target = draw(*models, rows, 128), torch.zeros(*models, rows, dtype=torch.int64)
        for precision in PRECISIONS if dtype == torch.float32 else ("ieee",):
            sizes = (512, 128), (512,), (128, 512), (128,)
            backward(ops.mlp(x, *(draw(*models, *size) for size in sizes), skip=x, precision=precision))
            if rows:
                weight = draw(*models, 113, 128)
                loss = ops.linear_cross_entropy(x, weight, target, return_accuracy=True, precision=precision)
                backward(loss[0])
            q, k, v = (draw(*models, 4, 3, 32) if models else draw(rows, 4, 3, 32) for _ in range(3))
            backward(ops.attention(q, k, v, causal=True, precision=precision))
        backward(ops.layer_norm(x, draw(*models, 128), draw(*models, 128)))
        e = models or (1,)
        pairs = torch.zeros(*e, rows, 2, dtype=torch.int64)
        backward(ops.pair_embed(draw(*e, 113, 128), draw(*e, 113, 128), pairs, draw(*e, 128), activation="relu"))


def _wrapper(dtype: torch.dtype) -> None:
    """The drop-in wrapper around each optimizer that it fuses with, and around one that it does not."""
    for inner in (torch.optim.AdamW, torch.optim.SGD, Lion, torch.optim.RMSprop):
        for filter in (EMA(), MA(3), MA(3, ring="bfloat16")):
            params = [nn.Parameter(torch.zeros(shape, dtype=dtype)) for shape in ((3, 5), (1 << 20,), ())]
            optimizer = GrokFast(inner(params, lr=0.1), filter)
            for p in params:
                p.grad = torch.zeros_like(p)
            optimizer.step()


def grid_error(grid: tuple[int, ...]) -> str:
    """Why no GPU takes a grid; empty where one does. Triton launches nothing where an axis is 0."""
    if any(n > most for n, most in zip(grid, LARGEST_GRID)):
        return f"grid {grid}, at most {LARGEST_GRID}"
    return ""


def compiled(launch: Launch, capability: int) -> dict[str, Any]:
    """A row of the table: what the compiler and ptxas say, or "error"."""
    kernel = getattr(importlib.import_module(launch.module), launch.name)
    about = {key: launch.options[key] for key in ("num_warps", "num_stages")}
    row = {"kernel": launch.name, "signature": launch.signature, "attributes": launch.attributes, "options": about}
    row["constants"] = {kernel.arg_names[at[0]]: value for at, value in launch.constants.items()}
    try:
        source = ASTSource(kernel, launch.signature, launch.constants, launch.attributes)
        made = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=launch.options)
        return row | resources(made, capability)
    except Exception as error:  # of many kinds; each is a finding
        return row | {"error": f"{type(error).__name__}: {error}"}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--capability", type=int, default=90)
    parser.add_argument("--scene", nargs="+", help="run those whose names begin with one of these; default: all")
    parser.add_argument("--compile", nargs="*", help="compile their kernels only; default: those of all")
    args = parser.parse_args()
    seen: dict[str, tuple[str, Launch]] = {}
    wanted = set()
    failures = 0
    for name, scene in scenes().items():
        if args.scene is not None and not name.startswith(tuple(args.scene)):
            continue
        try:
            with recording(args.capability) as noted:
                scene()
        except Exception as error:  # the others are of interest all the same
            failures += 1
            print(f"{name}: {type(error).__name__}: {error}", flush=True)
            continue
        new = {launch.facts: (name, launch) for launch in noted if launch.facts not in seen}
        seen |= new
        if args.compile is None or name.startswith(tuple(args.compile)):
            wanted |= {launch.facts for launch in noted}
        print(f"{name}: {len(noted)} launches, {len(new)} kernels that were not there before", flush=True)
        for launch in noted:
            if grid_error(launch.grid):
                failures += 1
                print(f"  {launch.name}: {grid_error(launch.grid)}")
    todo = [of for facts, of in seen.items() if facts in wanted]
    with ProcessPoolExecutor(mp_context=multiprocessing.get_context("spawn")) as workers:
        rows = workers.map(compiled, [launch for _, launch in todo], [args.capability] * len(todo))
        for (name, _), row in zip(todo, rows):
            why = row.get("error", "")
            why = why or (f"{row['spilled_bytes']} bytes spilled" if row["spilled_bytes"] >= MANY else "")
            why = why or ("shared memory" if row["shared_bytes"] > row["shared_limit"] else "")
            failures += bool(why)
            print(f"{row['kernel']} ({name}): {why or 'good'}{f', {row}' if why else ''}", flush=True)
    print(f"{len(todo)} kernels, {failures} failures")
    return int(failures > 0)


if __name__ == "__main__":
    sys.exit(main())
