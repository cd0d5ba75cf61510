"""Which JPEGs of a batch a GPU's JPEG engines decode: a share of the rows, which is measured once per machine."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from clipbatch.config import DecodeSettings
from clipbatch.stages import first_contact, loading
from clipbatch.stages.decode import Decode, engines
from clipbatch.stages.decode.cpu_pool import goes_to_cpu
from clipbatch.stages.decode.dali import DaliDecoder
from clipbatch.stages.decode.engines import goes_to_engines
from clipbatch.stages.decode.geometry import Target, geometry_of
from clipbatch.stages.decode.header import inspect
from clipbatch.stages.decode.pixels import DecodeJob, blank
from clipbatch.stages.orientation import jpeg_pixels

TARGET = Target(height=64, width=64, resize_mode="shortest", interpolation="bicubic", fill=0)


@pytest.mark.parametrize("share", [0.0, 0.1, 0.37, 0.5, 0.65, 0.9, 1.0])
def test_every_stretch_of_rows_has_its_share_whatever_the_cpu_takes(share: float) -> None:
    rows = np.arange(10_000_000, 10_020_000)
    taken = np.array([goes_to_engines(int(row), share) for row in rows])
    for start in range(0, len(rows), 250):
        assert abs(taken[start : start + 250].mean() - share) < 0.02
    for cpu in (0.1, 0.25, 0.5):
        others = np.array([not goes_to_cpu(int(row), 1, cpu) for row in rows])
        assert abs(taken[others].mean() - share) < 0.02


def jobs_of(files: list[bytearray], engine_slots: set[int]) -> list[DecodeJob]:
    jobs = []
    for slot, data in enumerate(files):
        header = inspect(data)
        assert header
        geometry = geometry_of(header.height, header.width, header.orientation, TARGET)
        jobs.append(DecodeJob(slot=slot, data=data, geometry=geometry, engines=slot in engine_slots))
    return jobs


def test_two_pipelines_give_what_one_gives_and_a_failure_in_one_spoils_nothing(photos: Path) -> None:
    files = [bytearray(path.read_bytes()) for path in sorted(photos.glob("*.jpg"))[:12]]
    one, two = (
        DaliDecoder(batch_size=12, interpolation="bicubic", device_id=None, threads=2, engines=engines)
        for engines in (False, True)
    )
    expected_BCHW, pixels_BCHW = (blank(12, 64, 64, 0, "cpu") for _ in range(2))
    assert one.fill(expected_BCHW, jobs_of(files, set())) == []
    assert two.fill(pixels_BCHW, jobs_of(files, {0, 3, 4, 7, 11})) == []
    assert torch.equal(pixels_BCHW, expected_BCHW)
    for broken in (4, 5):  # one for each pipeline
        jobs = jobs_of(files, {0, 3, 4, 7, 11})
        data = bytearray(files[broken])
        start = data.rindex(b"\xff\xda")
        data[start + 12 : start + 600] = b"\xff\xc4" * 294  # so that the decoder refuses it in the middle
        jobs[broken] = DecodeJob(slot=broken, data=data, geometry=jobs[broken].geometry, engines=jobs[broken].engines)
        pixels_BCHW = blank(12, 64, 64, 0, "cpu")
        failed = two.fill(pixels_BCHW, jobs)
        assert [job.slot for job in failed] in ([broken], [])
        others = [slot for slot in range(12) if slot != broken]
        assert torch.equal(pixels_BCHW[others], expected_BCHW[others])
        again_BCHW = blank(12, 64, 64, 0, "cpu")
        assert two.fill(again_BCHW, jobs_of(files, {1, 2})) == []
        assert torch.equal(again_BCHW, expected_BCHW)


def test_after_an_error_that_ends_a_batch_the_next_one_gets_its_own_images(
    photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = [bytearray(path.read_bytes()) for path in sorted(photos.glob("*.jpg"))[:8]]
    decoder = DaliDecoder(batch_size=8, interpolation="bicubic", device_id=None, threads=2, engines=True)
    expected_BCHW = blank(8, 64, 64, 0, "cpu")
    decoder.fill(expected_BCHW, jobs_of(files, {1, 2}))
    place = DaliDecoder._place

    def fail(*_: object) -> None:
        raise RuntimeError("CUDA runtime API error cudaErrorLaunchFailure (719)")

    monkeypatch.setattr(DaliDecoder, "_place", fail)
    with pytest.raises(RuntimeError, match="719"):
        decoder.fill(blank(8, 64, 64, 0, "cpu"), jobs_of(files[::-1], {0, 5}))
    monkeypatch.setattr(DaliDecoder, "_place", place)
    pixels_BCHW = blank(8, 64, 64, 0, "cpu")
    assert decoder.fill(pixels_BCHW, jobs_of(files, {1, 2})) == []
    assert torch.equal(pixels_BCHW, expected_BCHW)


def test_every_lane_is_primed_with_full_batches_for_both_pipelines(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = DecodeSettings(decoder="dali", hw_decoder_load=0.5)
    stage = Decode(settings, TARGET, batch_size=6, device="cpu", threads=3)
    batches: list[tuple[int, list[DecodeJob]]] = []
    fill = DaliDecoder.fill

    def noted(self: DaliDecoder, pixels_BCHW: torch.Tensor, jobs: list[DecodeJob]) -> list[DecodeJob]:
        batches.append((id(self), jobs))
        return fill(self, pixels_BCHW, jobs)

    monkeypatch.setattr(DaliDecoder, "fill", noted)
    first_contact.check_decoder(stage, settings, TARGET)
    lanes = {lane for lane, _ in batches}
    assert len(lanes) == 3
    for lane in lanes:
        own = [jobs for which, jobs in batches if which == lane]
        engines_first = [{job.engines for job in jobs} for jobs in own[:2]]
        assert (engines_first, [len(jobs) for jobs in own[:2]]) == ([{True}, {True}], [6, 6])
        assert [{job.engines for job in jobs} for jobs in own[2:4]] == [{False}, {False}]
        for job in own[0]:
            assert (job.geometry.x.source, job.geometry.y.source) == (640, 480)
    stage.close()


@pytest.mark.parametrize(("engine_rate", "cuda_rate"), [(13_000, 2_000), (2_000, 6_000), (5_000, 5_000)])
def test_the_best_share_is_found_where_both_work_at_the_same_time(engine_rate: float, cuda_rate: float) -> None:
    def rate(share: float) -> float:
        return 1 / max(share / engine_rate, (1 - share) / cuda_rate)

    best = engine_rate / (engine_rate + cuda_rate)
    assert engines.best_share(rate) == pytest.approx(best, abs=0.01)


def test_engines_alone_are_taken_where_anything_else_slows_them_down() -> None:
    assert engines.best_share(lambda share: {1.0: 9_000.0, 0.0: 3_000.0}.get(share, 5_000.0)) == 1.0


def test_a_share_is_measured_once_for_each_machine_and_class_of_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    asked: list[float] = []

    def rate(share: float) -> float:
        asked.append(share)
        return 1.0 + share

    machine = {"gpu": "NVIDIA A100", "driver": "580.1", "cores": 16}
    shares = [engines.calibrated_share(rate, **machine, size=size) for size in (1, 1, 2)]  # type: ignore[arg-type]
    assert shares == [1.0, 1.0, 1.0]
    once = len(asked) // 2
    assert asked[:once] == asked[once:]
    (tmp_path / "clipbatch" / "engine-shares.json").write_text('{"broken": 7, "x": ')
    assert engines.calibrated_share(rate, **machine, size=1) == 1.0  # type: ignore[arg-type]
    assert len(asked) == 3 * once
    assert json.loads((tmp_path / "clipbatch" / "engine-shares.json").read_text())
    assert [engines.size_class(pixels) for pixels in (100, 500_000, 2_000_000, 12_000_000, 48_000_000)] == [
        0,
        1,
        2,
        3,
        4,
    ]


def test_without_the_drivers_library_there_are_no_engines_and_the_remedy_is_said() -> None:
    count, why = engines.count_engines()
    assert count == 0
    assert "libnvcuvid.so.1 is not here: in a container, start it with NVIDIA_DRIVER_CAPABILITIES=" in why


def test_the_size_of_a_jpeg_is_read_from_its_bytes_alone_and_each_class_has_an_example(photos: Path) -> None:
    for path in photos.glob("*.jpg"):
        with Image.open(path) as image:
            width, height = image.size
        assert jpeg_pixels(path.read_bytes()) == width * height
    for data in (b"", b"\xff\xd8\xff", b"GIF89a", b"\xff\xd8\xff\xc0\x00\x04\x08"):
        assert jpeg_pixels(data) is None
    assert [engines.size_class(width * height) for width, height in engines.SIDES] == [0, 1, 2, 3, 4]


def test_a_worker_without_engines_says_so_and_gives_all_to_cuda(caplog: pytest.LogCaptureFixture) -> None:
    settings = DecodeSettings(decoder="dali", hw_decoder_load=0.65)
    stage = Decode(settings, TARGET, batch_size=4, device="cpu", threads=1)
    assert loading.engine_share(stage, []) == 0.0  # there are none here
    (said,) = caplog.messages
    assert said.startswith(
        "no JPEG engines: the driver's library libnvcuvid.so.1 is not here: in a container, start it"
    )
    assert said.endswith("CUDA decodes all JPEGs, which is slower")
    stage.engine_share = 0.0
    batch = first_contact._batch(first_contact.primer(200, 150)[:4])
    jobs, *_ = stage._choose(batch, stage._lanes.get()[0], stage.engine_share)
    assert [job.engines for job in jobs] == [False] * 4


def test_a_worker_with_engines_measures_the_share_on_pictures_as_large_as_its_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, photos: Path
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(loading, "count_engines", lambda: (7, ""))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda *_: "NVIDIA H200")
    stage = Decode(DecodeSettings(decoder="dali", hw_decoder_load=0.65), TARGET, batch_size=4, device="cpu", threads=1)
    asked: list[tuple[float, set[int | None]]] = []

    def rate(files: list[bytearray], share: float) -> float:
        asked.append((share, {jpeg_pixels(data) for data in files}))
        return 1000 + 100 * share

    monkeypatch.setattr(stage, "rate", rate)
    files = [bytearray(path.read_bytes()) for path in sorted(photos.glob("*.jpg"))[:9]]
    width, height = engines.SIDES[engines.size_class(sorted(jpeg_pixels(data) or 0 for data in files)[4])]
    assert [loading.engine_share(stage, files) for _ in range(2)] == [1.0, 1.0]
    assert {pixels for _, sizes in asked for pixels in sizes} == {width * height}
    assert len({share for share, _ in asked}) == len(asked)  # the second worker takes what the first one measured
    (key,) = json.loads((tmp_path / "clipbatch" / "engine-shares.json").read_text())
    assert json.loads(key)[0] == "NVIDIA H200"
    stage.close()
