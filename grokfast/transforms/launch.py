"""One launch of filter and optimizer over many tensors of a GPU: the tables that the kernels read, made once and kept.

A table holds addresses. It is used again as long as every tensor whose address it holds is still in its place, and is
never changed once made, so that a CUDA graph may go on reading it.
"""

from __future__ import annotations

import functools
from array import array
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from grokfast import backend
from grokfast.transforms import sizes
from grokfast.transforms.rows import HYPER_COUNT

ENTRY_WIDTH = 11
PARAM, GRAD = 1, 2  # columns of an entry
_TRITON_DTYPES = {torch.float32: "float32", torch.bfloat16: "bfloat16", torch.float16: "float16"}


def dtypes(device: torch.device) -> tuple[torch.dtype, ...]:
    """Parameters that the kernels for a device take; none where there are no kernels."""
    by_kernels = {"triton": tuple(_TRITON_DTYPES), "cuda": (torch.float32,), None: ()}
    return by_kernels[backend.device_kernels(device)]


def is_capturing(device: torch.device) -> bool:
    return device.type == "cuda" and torch.cuda.is_current_stream_capturing()


class Uploads:
    """Numbers for the device, copied there without waiting.

    A graph repeats the copy at every replay, so what was copied while one was captured stays as it is for good. Page-
    locked memory cannot be asked for then: every copy before leaves a spare for one like it.
    """

    def __init__(self) -> None:
        self._spares: dict[tuple[torch.dtype, int], Tensor] = {}
        self._captured: list[Any] = []

    def copy(self, numbers: array[Any], dtype: torch.dtype, device: torch.device) -> Tensor:
        host = torch.frombuffer(numbers, dtype=dtype)
        if device.type != "cuda":
            return host.clone()
        key, capturing = (dtype, len(numbers)), is_capturing(device)
        locked = self._spares.pop(key, None)
        locked = torch.empty_like(host, pin_memory=True) if locked is None else locked
        locked.copy_(host)
        copied = locked.to(device, non_blocking=True)
        if capturing:
            self._captured.append((locked, copied))
        else:
            self._spares[key] = torch.empty_like(host, pin_memory=True)
        return copied

    def keep(self, used: Any, device: torch.device) -> None:
        """Call for whatever a launch reads: a captured one reads it as long as its graph lives."""
        if is_capturing(device):
            self._captured.append(used)


class Launch:
    """A multi-tensor update of tensors of one dtype on one device.

    `entries` are rows of csrc/grokfast.h's UpdateEntry, their addresses, those of step and count included, on `device`
    (or page-locked); every row of `hyper`, fp64 [rows, 16], is csrc/update_rules.h's Hyper; `overrides`, int64
    [rows, 4], the addresses of fp32 scalars that stand in for lr, alpha, lamb and enabled, or 0.
    """

    def __init__(
        self,
        rule: int,
        filter: int,
        entries: array[int],
        window: int,
        ring: torch.dtype,
        dtype: torch.dtype,
        device: torch.device,
        uploads: Uploads,
    ) -> None:
        lengths = entries[::ENTRY_WIDTH]
        chunk = sizes.chunk_size(sum(lengths))
        self.device = device
        self.tickets = torch.zeros(len(lengths), dtype=torch.int32, device=device)
        if backend.device_kernels(device) == "cuda":
            module, bf16 = backend.load_extension(), int(ring is torch.bfloat16)
            self._run: Callable[[Tensor, Tensor], Any] = lambda hyper, overrides: module.cuda_update(
                rule, filter, bf16, entries, hyper.data_ptr(), overrides.data_ptr(), self.tickets.data_ptr(),
                device.index, torch.cuda.current_stream(device).cuda_stream,
            )  # fmt: skip
            return
        chunks = array("i")
        for i, length in enumerate(lengths):
            for part in range(max(1, -(-length // chunk))):  # an empty tensor counts its steps, too
                chunks.extend((i, part))
        kernel, types = _triton_kernel()
        self.tables = (uploads.copy(entries, torch.int64, device), uploads.copy(chunks, torch.int32, device))
        grid = (len(chunks) // 2,)
        self._run = lambda hyper, overrides: kernel[grid](
            *self.tables, self.tickets, hyper, overrides, RULE=rule, FILTER=filter, DTYPE=types[dtype],
            RING=types[ring], BLOCK=sizes.BLOCK, CHUNK=chunk, SLICE=sizes.slice_size(window),
            num_warps=sizes.NUM_WARPS, maxnreg=sizes.MAX_REGISTERS, enable_fp_fusion=True,
        )  # fmt: skip

    def __call__(self, hyper: Tensor, overrides: Tensor) -> None:
        """Runs on the device's current stream."""
        if self.device.type == "cuda" and self.device.index != torch.cuda.current_device():
            with torch.cuda.device(self.device):
                self._run(hyper, overrides)
        else:
            self._run(hyper, overrides)


@functools.cache
def _triton_kernel() -> tuple[Any, dict[torch.dtype, Any]]:
    import triton.language as tl

    from grokfast.transforms.kernels import update_kernel

    return update_kernel, {dtype: getattr(tl, name) for dtype, name in _TRITON_DTYPES.items()}


class HyperTables:
    """The hyper-parameters of param groups on one device, copied again only when a number changed."""

    def __init__(self, device: torch.device, uploads: Uploads) -> None:
        self.device, self.uploads = device, uploads
        self._numbers: tuple[bytes, bytes] | None = None
        self._tables: tuple[Tensor, Tensor] | None = None

    def tables(self, hyper: array[float], overrides: Sequence[Tensor | None] = ()) -> tuple[Tensor, Tensor]:
        """(hyper, overrides) on the device: 16 numbers a row, and 4 scalars of the device or None a row, or no such."""
        addresses = array("q", (0 if t is None else t.data_ptr() for t in overrides))
        addresses = addresses or array("q", bytes(8 * 4 * (len(hyper) // HYPER_COUNT)))
        numbers = hyper.tobytes(), addresses.tobytes()
        if self._tables is not None and numbers == self._numbers:
            tables = self._tables
        else:
            tables = (
                self.uploads.copy(hyper, torch.float64, self.device),
                self.uploads.copy(addresses, torch.int64, self.device),
            )
            if not is_capturing(self.device):  # a captured copy happens at a replay only
                self._numbers, self._tables = numbers, tables
        self.uploads.keep((tables, list(overrides)), self.device)
        return tables
