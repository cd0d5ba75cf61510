"""The process that tries settings: `python -m clipbatch.tools.tune.trials_main RUN_DIR DEVICE CORES`.

It loads the model of a planned run once. Then it takes messages {"settings": {...}, "seconds": s}, and answers each
with the rate from file names to embeddings in images/s. It uses the run's own stages, without scoring and writing,
which take hardly any time. Each trial continues in the list of images where the last one stopped, so images come from
the disk and not from the page cache, as long as there are unread ones. An image or a setting may kill the process; its
parent then starts another one.
"""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Iterator
from itertools import cycle, islice

import torch

from clipbatch.config import Settings, SettingValues, hardware
from clipbatch.errors import brief
from clipbatch.rundir.layout import RunDir
from clipbatch.rundir.manifest import Manifest
from clipbatch.rundir.schema import LISTING
from clipbatch.stages import first_contact
from clipbatch.stages.cuda import check_device
from clipbatch.stages.decode import Decode
from clipbatch.stages.decode.geometry import Target
from clipbatch.stages.encode import load
from clipbatch.stages.flow import Flow, bottleneck
from clipbatch.stages.loading import LoadedModel, engine_share
from clipbatch.stages.pipeline import SAMPLE
from clipbatch.stages.read import Backpressure, Read
from clipbatch.tools.tune.trials import Rate
from clipbatch.types import Encoded, ItemBatch
from clipbatch.workers.child import Parent, serve

# Each trial measures at least this many batches, however long they take.
_MIN_BATCHES = 2


class Trials:
    """A loaded model, and the images for the trials."""

    def __init__(self, run: RunDir, device: str) -> None:
        check_device(device)
        self._plan, self._device = run.plan(), device
        manifest = Manifest(run, self._plan)
        self._rows = manifest.rows(0)
        self._items = manifest.items(self._rows)
        self._carried = self._rows.drop_columns(LISTING)
        self._model = load(self._plan.run_settings().model)
        self._next = 0
        # The share of the JPEG engines, once it has been measured.
        self._share: float | None = None

    def rate(self, changes: SettingValues, seconds: float) -> Rate:
        """The rate with `changes` to the plan's settings, measured from the end of the first batch on."""
        settings = self._plan.run_settings().replace(**{"shard_size": None, "compile": "off", **changes})
        size = settings.model.batch_size
        assert size
        target = Target.from_facts(self._model.facts())
        with contextlib.ExitStack() as ends:  # or the next trial would share cores and memory with this one
            decode = Decode(settings.decode, target, batch_size=size, device=self._device)
            ends.callback(decode.close)
            model = LoadedModel.joined(self._model, decode, settings, size, self._device)
            ends.callback(model.read.close)
            measured, gate = self._share_engines(decode, settings), Backpressure()
            flow = Flow(gate.admit(self._batches(size)), model.stages(gate))
            ends.callback(flow.join)
            ends.callback(gate.close)
            return self._measure(flow, seconds) | measured

    def _share_engines(self, decode: Decode, settings: Settings) -> Rate:
        """Measure the share of the JPEG engines as a run does, where there are some and no setting names it."""
        if decode.engine_share is None or settings.decode.hw_decoder_load is not None:
            return {}
        if self._share is None:
            decode.prime(first_contact.primer())
            self._share = engine_share(decode, self._sample())
        decode.engine_share = self._share
        return {"hw_decoder_load": self._share}

    def _sample(self) -> list[bytearray]:
        batch = next(self._batches(min(len(self._items), SAMPLE)))
        self._next = 0
        read = Read(self._plan.run_settings().read)
        slots = read(batch).slots
        read.close()
        return [content.data for content in slots if isinstance(content, Encoded)]

    def _measure(self, flow: Flow, seconds: float) -> Rate:
        start, results = time.perf_counter(), iter(flow)
        next(results)
        first = time.perf_counter()
        images, batches = 0, 0
        while batches < _MIN_BATCHES or time.perf_counter() - start < seconds:
            images += len(next(results).outcomes)
            batches += 1
        if self._device.startswith("cuda"):
            torch.cuda.synchronize(self._device)
        rate = images / (time.perf_counter() - first)
        times = flow.times()
        results.close()  # type: ignore[attr-defined]
        return {"images_per_s": rate, "bottleneck": bottleneck(times)}

    def _batches(self, size: int) -> Iterator[ItemBatch]:
        """Full batches without end. After the last image, the list starts again."""
        while True:
            at = self._next = self._next if self._next + size <= len(self._items) else 0
            self._next += size
            items = tuple(islice(cycle(self._items[at : at + size]), size))
            yield ItemBatch(shard=0, start=at, items=items, rows=self._carried.slice(at, size), last=False)


def main() -> None:
    path, device, cores = sys.argv[1:]
    device = hardware.hide_other_gpus(device)
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {int(core) for core in cores.split(",")})

    def answer(parent: Parent) -> None:
        trials = Trials(RunDir(path), device)
        parent.send({"loaded": True})
        for question in parent.messages():
            try:
                parent.send(trials.rate(question["settings"], question["seconds"]))
            except Exception as error:  # out of memory, or a setting that this decoder does not take
                parent.send({"error": brief(error)})

    serve(answer)


if __name__ == "__main__":
    main()
