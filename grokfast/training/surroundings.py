"""What a caller has around a call, such as torch.inference_mode or autocast, changes nothing of what is computed."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import ParamSpec, TypeVar

import torch

P = ParamSpec("P")
R = TypeVar("R")


def undisturbed(function: Callable[P, R]) -> Callable[P, R]:
    """The function, called as if no block or transform of torch's were around the call.

    These are torch.inference_mode, no_grad, autocast, a default device, the transforms of torch.func and torch.compile.
    Of what all threads share the precision of torch's fp32 products is "highest" meanwhile, as an experiment has a
    precision of its own; a default dtype or deterministic algorithms, which change no bits here, are left alone.
    """

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        with _nothing_around():
            return function(*args, **kwargs)

    @functools.wraps(function)
    def call_uncompiled(*args: P.args, **kwargs: P.kwargs) -> R:
        inner = torch.compiler.disable(call) if "torch._dynamo" in sys.modules else call
        return inner(*args, **kwargs)

    return call_uncompiled


@contextmanager
def _nothing_around() -> Iterator[None]:
    with ExitStack() as stack:
        if torch._C._functorch.maybe_current_level() is not None:
            from torch._functorch.pyfunctorch import temporarily_clear_interpreter_stack

            stack.enter_context(temporarily_clear_interpreter_stack())
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        accelerator = torch.accelerator.current_accelerator()
        for kind in {"cpu", "cpu" if accelerator is None else accelerator.type}:
            if torch.is_autocast_enabled(kind):
                stack.enter_context(torch.autocast(kind, enabled=False))
        if torch.get_default_device().type != "cpu":
            stack.enter_context(torch.device("cpu"))
        if (products := torch.get_float32_matmul_precision()) != "highest":
            torch.set_float32_matmul_precision("highest")
            stack.callback(torch.set_float32_matmul_precision, products)
        yield
