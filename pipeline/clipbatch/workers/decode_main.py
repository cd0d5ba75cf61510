"""A process that decodes for a service and may die: `serving.decoding` starts it.

    python -m clipbatch.workers.decode_main SETTINGS TARGET BATCH_SIZE LANE_FD...

Each lane is a memory file that the service and this process share. An order names a lane and the size of each image;
the images' bytes lie one after another in the lane. This process decodes them, writes the pixels over them (uint8,
BHWC, a slot for each image) and answers with what became of each image. It works on several lanes at the same time.
"""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import sys
from concurrent.futures import ThreadPoolExecutor

import pyarrow as pa

from clipbatch.config import DecodeSettings
from clipbatch.config.nesting import JsonObject
from clipbatch.stages import fast_import, memory
from clipbatch.types import Encoded, Item, ItemBatch, ReadBatch
from clipbatch.workers.child import Parent, failure, serve


def main() -> None:
    for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):  # the service gets them too, and closes the pipe
        signal.signal(signum, signal.SIG_IGN)
    memory.keep_freed()
    serve(answer)


def answer(parent: Parent) -> None:
    """Decode what the parent orders until it closes the pipe."""
    settings, target, batch_size, *lanes = sys.argv[1:]
    with fast_import.fast_imports(transformers=False):
        from clipbatch.stages.decode import Decode
        from clipbatch.stages.decode.geometry import Target
    decode = Decode(
        DecodeSettings(**json.loads(settings)),
        Target(**json.loads(target)),
        batch_size=int(batch_size),
        device="cpu",
        threads=len(lanes),
    )

    def work(order: JsonObject) -> None:
        try:
            lane = int(lanes[order["lane"]])
            pixels = decode(_batch(lane, order["start"], order["sizes"]))
            pixels_BHWC = pixels.pixels_BCHW.permute(0, 2, 3, 1)[: len(order["sizes"])].numpy()
            _write(lane, pixels_BHWC.data.cast("B"))
            outcomes = [None if outcome is None else dataclasses.asdict(outcome) for outcome in pixels.outcomes]
            parent.send({"lane": order["lane"], "outcomes": outcomes})
        except Exception as error:
            parent.send({"lane": order["lane"], "failure": failure(error)})

    parent.send("ready")
    pool = ThreadPoolExecutor(len(lanes))  # nobody waits for its end, as a decoder may hang
    for order in parent.messages():
        pool.submit(work, order)


def _batch(lane: int, start: int, sizes: list[int | None]) -> ReadBatch:
    """The images in `lane`; a size of None is a slot without one."""
    slots: list[Encoded | None] = []
    at = 0
    for size in sizes:
        if size is None:
            slots.append(None)
            continue
        data = bytearray(size)
        if os.preadv(lane, [data], at) != size:
            raise OSError(f"a lane holds fewer than the {size} bytes of an image")
        slots.append(Encoded(data=data))
        at += size
    items: tuple[Item | None, ...] = (None,) * len(sizes)
    source = ItemBatch(shard=0, start=start, items=items, rows=pa.table({}), last=False)
    return ReadBatch(source=source, slots=tuple(slots))


def _write(lane: int, data: memoryview) -> None:
    at = 0
    while at < len(data):
        at += os.pwrite(lane, data[at:], at)


if __name__ == "__main__":
    main()
