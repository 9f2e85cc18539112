"""`OnRay`: connects to a cluster, and has the driver train there."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from grokfast.store import RunStore
from grokfast.sweeps.on_ray.cluster import capacity, knock, load_ray, own_signals
from grokfast.sweeps.on_ray.driver import Driver
from grokfast.sweeps.runner import Group, Report


class OnRay:
    """Trains on the Ray cluster at `address` ("auto", "host:6379", "ray://host:10001"), or on one that is started here
    for the time of the sweep ("local"). A program that has called `ray.init` stays connected as it is.

    A group takes one GPU, or one CPU where the experiment's device is the CPU. Every node needs this grokfast and this
    torch installed. Raises ImportError naming the extra where Ray is not installed, TypeError for an address that is no
    text; `run` and `workers` raise ConnectionError where no cluster answers.
    """

    def __init__(self, address: str = "local") -> None:
        if not isinstance(address, str) or not address:
            raise TypeError(f"address must be 'local', 'auto' or that of a Ray cluster, got {address!r}")
        load_ray()
        self.address = address
        self._connected_here = False

    @property
    def workers(self) -> int:
        self._connect()
        return capacity("GPU") or capacity("CPU")

    def where(self) -> str:
        return "Ray on this machine" if self.address == "local" else f"Ray at {self.address}"

    def run(self, groups: Sequence[Group], root: Path, report: Report) -> None:
        self._connect()
        try:
            with RunStore(root, create=False) as store:
                Driver(store, groups, report).run()
        finally:
            if self._connected_here:
                load_ray().shutdown()
                self._connected_here = False

    def _connect(self) -> None:
        ray = load_ray()
        if ray.is_initialized():
            return
        knock(self.address)
        quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
        if self.address == "local":
            quiet |= {"include_dashboard": False}
        with own_signals():
            ray.init(self.address, **quiet)
        self._connected_here = True
