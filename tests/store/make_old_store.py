"""Makes schema-3.tar.gz, a store of the version before columns had names. It was run with that version:

python make_old_store.py schema-3.tar.gz
"""

from __future__ import annotations

import json
import sys
import tarfile
import tempfile
from pathlib import Path

import grokfast
from grokfast.store.records import Record
from grokfast.training.observer import Observer


class _Ctrl(Observer):
    def recorded(self, run: int, record: Record, outcome: object) -> None:
        if record.step == 20:
            raise KeyboardInterrupt


def main(path: Path) -> None:
    small = {"model.width": 8, "task.p": 11, "schedule.steps": 40, "device": "cpu"}
    base = grokfast.Experiment.preset("quick").override(small)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "runs"
        with grokfast.RunStore(root) as store:
            grokfast.train(base, store=store)
            grokfast.train(base.override({"optimizer.lr": 1e30}), store=store)
            try:
                grokfast.train(base.override({"seed": 1}), store=store, observers=[_Ctrl()], checkpoint_every=0)
            except BaseException as error:
                print(type(error).__name__)
            for run in store.list(status="failed"):
                store.update(run.run_id, status="interrupted")
        grokfast.sweep(base, {"seed": [2, 3]}, store=root)
        with grokfast.RunStore(root) as store:
            curves = {run.run_id: {k: v.tolist() for k, v in store.curves(run.run_id).items()} for run in store.list()}
        Path(folder, "curves.json").write_text(json.dumps(curves))
        with tarfile.open(path, "w:gz") as tar:
            tar.add(root, "runs")
            tar.add(Path(folder, "curves.json"), "curves.json")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
