"""The kernels' configurations as they are launched, at usual sizes and odd ones, a module for each family.

`benchmarks.resources` compiles them and reads registers, spills and shared memory.
"""

from __future__ import annotations

import functools
import importlib
import pkgutil
from typing import Any


@functools.cache
def shipped() -> list[dict[str, Any]]:
    """All of them: kernel, signature, constants, warps; see `benchmarks.resources.compile_offline`."""
    modules = (importlib.import_module(f"{__name__}.{module.name}") for module in pkgutil.iter_modules(__path__))
    return [config for module in modules for config in module.shipped()]
