"""A process that may die: started by `quarantine`.

    python -m clipbatch.workers.quarantine_main RUN_DIR DEVICE RUNTIME MEMORY_MIB

Takes row_ids; reads and decodes each row as a worker would, alone, and answers with its row_id. It scores nothing and
writes nothing: what counts is whether it lives to answer.
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
    """Answer each row_id that the parent sends once it is decoded."""
    path, device, runtime, memory_mib = sys.argv[1:]
    run = RunDir(path)
    plan, facts = run.plan(), run.model_facts() or {}
    settings, manifest = plan.run_settings().replace(**json.loads(runtime)), Manifest(run, plan)
    read = Read(settings.read)
    target = Target.from_facts(facts)
    decode = Decode(settings.decode, target, batch_size=1, device=device, threads=1)
    if not device.startswith("cuda"):  # CUDA reserves address space as it goes
        limit_memory(int(memory_mib))
    parent.send("ready")
    for row_id in parent.messages():
        shard = row_id // plan.shard_size
        row = manifest.rows(shard).slice(row_id - plan.shard_rows(shard).start, 1)
        decode(read(ItemBatch(shard=shard, start=row_id, items=tuple(manifest.items(row)), rows=row, last=True)))
        parent.send(row_id)


if __name__ == "__main__":
    main()
