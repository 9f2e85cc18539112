"""A runner on Ray: groups are tasks, on this machine or on a cluster whose nodes share no files.

A worker trains in a store of its own, in a temporary directory, and about once a second sends what is new there to the
driver, which alone writes to the sweep's store. So a lost node loses no more than a killed process: its groups begin
again, wherever there is room, from the checkpoints that the driver has.
"""

from grokfast.sweeps.on_ray.runner import OnRay

__all__ = ["OnRay"]
