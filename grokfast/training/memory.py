"""Keeps what a step frees for the next step, on glibc."""

from __future__ import annotations

import ctypes
import functools

M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD = -1, -2, -3


@functools.cache
def keep_freed_memory() -> bool:
    """Tell malloc to give no memory back to the system while the process lives; returns whether it took the advice.

    A step frees and allocates the same activations over and over. By default glibc returns the large ones each time,
    and the system hands them out again page by page, zeroed: 440 page faults a step of `quick` and 9,700 of `nanda`,
    4 to 12% of the step's time on a 2-core CPU.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):  # not glibc
        return False
    settings = ((M_MMAP_THRESHOLD, 32 << 20), (M_TRIM_THRESHOLD, (1 << 31) - 1), (M_TOP_PAD, 64 << 20))
    taken = [mallopt(parameter, value) for parameter, value in settings]
    return all(taken)
