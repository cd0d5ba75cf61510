"""The process in which `quarantine` decodes suspect rows; it may die.

    python -m clipbatch.workers.quarantine_main RUN_DIR DEVICE RUNTIME MEMORY_MIB

The parent sends row_ids. The process reads and decodes each row alone, as a worker would, and answers with the row_id.
On a GPU it decodes the row twice, with the JPEG engines and without, and waits for the GPU before it answers, because
a fault of the GPU shows only then and would be blamed on the next row. It scores and writes nothing: the parent only
wants to know whether it survives.
"""

from __future__ import annotations

import dataclasses
import json
import sys

from clipbatch.config import hardware
from clipbatch.config.memory_limits import limit_memory
from clipbatch.rundir.layout import RunDir
from clipbatch.rundir.manifest import Manifest
from clipbatch.rundir.records import ModelFacts, frozen_choices
from clipbatch.stages import fast_import
from clipbatch.stages.read import Read
from clipbatch.types import ItemBatch
from clipbatch.workers.child import Parent, serve


def main() -> None:
    serve(answer)


def answer(parent: Parent) -> None:
    """Decode each row whose row_id the parent sends, and send the row_id back."""
    path, device, runtime, memory_mib = sys.argv[1:]
    run = RunDir(path)
    plan, facts = run.plan(), run.model_facts() or ModelFacts()
    choices = frozen_choices(facts or plan.fitted or {})
    settings, manifest = plan.run_settings().replace(**json.loads(runtime)), Manifest(run, plan)
    device = hardware.hide_other_gpus(device)
    with fast_import.fast_imports(transformers=False):
        from clipbatch.stages.decode import Decode
        from clipbatch.stages.decode.geometry import Target
    settings = settings.replace(**choices)
    read = Read(settings.read)
    target = Target.from_facts(facts)
    ways = [settings.decode]
    if device.startswith("cuda") and settings.decode.decoder == "dali":
        ways = [dataclasses.replace(settings.decode, hw_decoder_load=share) for share in (1.0, 0.0)]
    decodes = [Decode(way, target, batch_size=1, device=device, threads=1) for way in ways]
    # CUDA reserves far more address space than memory, so the limit cannot hold there.
    if not device.startswith("cuda"):
        limit_memory(int(memory_mib))
    parent.send("ready")
    for row_id in parent.messages():
        shard = row_id // plan.shard_size
        row = manifest.rows(shard).slice(row_id - plan.shard_rows(shard).start, 1)
        for decode in decodes:
            item = ItemBatch(shard=shard, start=row_id, items=tuple(manifest.items(row)), rows=row, last=True)
            pixels = decode(read(item))
            if pixels.ready:
                pixels.ready.synchronize()
        parent.send(row_id)


if __name__ == "__main__":
    main()
