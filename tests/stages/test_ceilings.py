"""What images wait for: shown by work that needs a core, Python's lock, a disk or a model, and nothing else."""

import hashlib
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from clipbatch.config import DecodeSettings
from clipbatch.stages import first_contact
from clipbatch.stages.ceilings import Meter, ceiling
from clipbatch.stages.decode import Decode
from clipbatch.stages.decode.dali import DaliDecoder
from clipbatch.stages.decode.geometry import Target
from clipbatch.stages.decode.pixels import blank
from clipbatch.stages.flow import Flow, Stage
from tests.stages.test_engines import jobs_of

NO_LOAD = {"cpu_load": 0.2, "lock_load": 0.1}
TARGET = Target(height=64, width=64, resize_mode="shortest", interpolation="bicubic", fill=0)


def busy(work: Callable[[], object], threads: int = 1, seconds: float = 1.0) -> dict[str, float]:
    """The figures of a meter while `threads` repeat `work`."""
    until = time.monotonic() + seconds

    def repeat() -> None:
        while time.monotonic() < until:
            work()

    with Meter() as meter:
        workers = [threading.Thread(target=repeat) for _ in range(threads)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
    return meter.figures()


def test_the_lock_is_busy_while_python_computes_and_not_while_c_does() -> None:
    data = bytes(2**24)
    idle, python = busy(lambda: time.sleep(0.01)), busy(lambda: sum(range(1000)), threads=2)
    c = busy(lambda: hashlib.sha256(data).digest())
    assert idle["cpu_load"] < min(c["cpu_load"], python["cpu_load"])
    assert max(idle["lock_load"], c["lock_load"]) < 0.5 < python["lock_load"]


def test_a_meter_counts_only_within_its_context() -> None:
    with Meter() as meter:
        time.sleep(0.1)
    before = meter.figures()
    sum(range(10**6))
    assert meter.figures() == before
    assert "meter" not in {thread.name for thread in threading.enumerate()}


@pytest.mark.parametrize(
    ("slow", "reached"), [("read", "disk"), ("decode", "cores"), ("encode", "encoder"), ("write", "disk")]
)
def test_where_nothing_else_is_busy_the_busiest_stage_names_the_ceiling(slow: str, reached: str) -> None:
    def stage(name: str) -> Stage:
        return Stage(name=name, work=lambda item: time.sleep(0.02 if name == slow else 0))

    flow = Flow(range(8), [stage(name) for name in ("read", "decode", "encode", "score", "write")])
    list(flow)
    assert ceiling(flow.times(), NO_LOAD, {}, remote=False) == reached
    far = ceiling(flow.times(), NO_LOAD, {}, remote=True)
    assert far == ("network" if slow == "read" else reached)


@pytest.mark.parametrize(
    ("loads", "decoding_s", "reached"),
    [
        ({}, {"engines": 3.0, "CUDA decoding": 1.0, "cores": 0.0}, "engines"),
        ({}, {"engines": 1.0, "CUDA decoding": 3.0, "cores": 2.0}, "CUDA decoding"),
        ({}, {"engines": 1.0, "CUDA decoding": 0.0, "cores": 2.0}, "cores"),
        ({"lock_load": 0.8}, {"engines": 3.0}, "lock"),
        ({"lock_load": 0.8, "cpu_load": 0.95}, {"engines": 3.0}, "cores"),
    ],
)
def test_full_cores_and_the_lock_slow_every_stage_down_and_come_first(
    loads: dict[str, float], decoding_s: dict[str, float], reached: str
) -> None:
    times = {"read": {"load": 0.3}, "decode": {"load": 0.9}, "encode": {"load": 0.5}}
    assert ceiling(times, NO_LOAD | loads, decoding_s, remote=True) == reached
    assert ceiling({}, NO_LOAD, decoding_s, remote=False) == ""


def test_a_batch_counts_for_the_pipeline_that_it_waits_for(photos: Path) -> None:
    files = [bytearray(path.read_bytes()) for path in sorted(photos.glob("*.jpg"))[:8]]
    small = first_contact.pictures()[:8]
    decoder = DaliDecoder(batch_size=8, interpolation="bicubic", device_id=None, threads=1, engines=True)
    pixels_BCHW = blank(8, 64, 64, 0, "cpu")

    def rise(jobs: list[Any]) -> dict[str, float]:
        decoder.fill(pixels_BCHW, jobs)
        decoder.fill(pixels_BCHW, [])  # a batch is counted when the next one begins
        before = dict(decoder.waited_s)
        for _ in range(3):
            decoder.fill(pixels_BCHW, jobs)
        decoder.fill(pixels_BCHW, [])
        return {way: seconds - before[way] for way, seconds in decoder.waited_s.items()}

    photographs_by_engines = jobs_of([*files[:7], small[0]], set(range(7)))
    photographs_by_cuda = jobs_of([*files[:7], small[0]], {7})
    for jobs, slow in ((photographs_by_engines, "engines"), (photographs_by_cuda, "CUDA decoding")):
        risen = rise(jobs)
        assert max(risen, key=lambda way: risen[way]) == slow, risen
    stage = Decode(DecodeSettings(decoder="dali"), TARGET, batch_size=8, device="cpu", threads=1)
    assert stage.waited_s() == {}  # there, cores do all of it
    stage.close()
