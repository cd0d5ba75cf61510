"""The process in which `quarantine` decodes suspect rows; it may die.

    python -m clipbatch.workers.quarantine_main RUN_DIR DEVICE RUNTIME MEMORY_MIB

The parent sends row_ids. The process reads and decodes each row alone, as a worker would, and answers with the row_id.
It scores and writes nothing: the parent only wants to know whether it survives.
"""

from __future__ import annotations

import json
import sys

from clipbatch.config.memory_limits import limit_memory
from clipbatch.rundir.layout import RunDir
from clipbatch.rundir.manifest import Manifest
from clipbatch.stages.decode import Decode
from clipbatch.stages.decode.geometry import Target
from clipbatch.stages.read import Read
from clipbatch.types import ItemBatch
from clipbatch.workers.child import Parent, serve


def main() -> None:
    serve(answer)


def answer(parent: Parent) -> None:
    """Decode each row whose row_id the parent sends, and send the row_id back."""
    path, device, runtime, memory_mib = sys.argv[1:]
    run = RunDir(path)
    plan, facts = run.plan(), run.model_facts() or {}
    settings, manifest = plan.run_settings().replace(**json.loads(runtime)), Manifest(run, plan)
    read = Read(settings.read)
    target = Target.from_facts(facts)
    decode = Decode(settings.decode, target, batch_size=1, device=device, threads=1)
    # CUDA reserves far more address space than memory, so the limit cannot hold there.
    if not device.startswith("cuda"):
        limit_memory(int(memory_mib))
    parent.send("ready")
    for row_id in parent.messages():
        shard = row_id // plan.shard_size
        row = manifest.rows(shard).slice(row_id - plan.shard_rows(shard).start, 1)
        decode(read(ItemBatch(shard=shard, start=row_id, items=tuple(manifest.items(row)), rows=row, last=True)))
        parent.send(row_id)


if __name__ == "__main__":
    main()
