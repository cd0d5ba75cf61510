"""What a worker finds out about its own decoder and device before it begins, and what becomes of the run then."""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from clipbatch.config import DecodeSettings, from_flat
from clipbatch.runs import resolving
from clipbatch.stages import first_contact, loading
from clipbatch.stages.decode import Decode
from clipbatch.stages.decode.dali import DaliDecoder
from clipbatch.stages.decode.geometry import Target
from clipbatch.stages.encode import Encode
from clipbatch.types import EmbeddedBatch, PixelBatch
from tests.conftest import DEMO, Cli, rewrite, rows
from tests.support.injected import injected

TARGET = Target(height=64, width=64, resize_mode="shortest", interpolation="bicubic", fill=0)
DALI, STAGE = "clipbatch.stages.decode.dali", "clipbatch.stages.decode.stage"
MISSING = "raise ImportError('No module named nvidia.dali')"
WRONG = """
place_rightly = DaliDecoder._place
def _place(self, pixels_BCHW, pipeline, jobs):
    place_rightly(self, pixels_BCHW, pipeline, jobs)
    pixels_BCHW.copy_(255 - pixels_BCHW)
DaliDecoder._place = _place
"""
CRAMPED = """
place_all = DaliDecoder._place
def _place(self, pixels_BCHW, pipeline, jobs):
    if len(jobs) > 3:
        pipeline.drop()
        raise RuntimeError("Critical error in pipeline: can't allocate 3221225472 bytes on device 0.")
    place_all(self, pixels_BCHW, pipeline, jobs)
DaliDecoder._place = _place
"""
BROKEN_GPU = """
def fill(self, pixels_BCHW, jobs):
    raise RuntimeError("Error in thread 0: CUDA runtime API error cudaErrorIllegalAddress (700)")
DaliDecoder.fill = fill
"""


def plan(warm: Cli, photos: Path, out: Path, *more: object, asked: bool = False) -> None:
    """A plan whose decoder is DALI, as on a GPU: named by the user, or by `auto`."""
    warm("plan", photos, *DEMO, "--decoder", "dali", "--precision", "fp32", "--shard-size", 8, *more, "--out", out)
    if not asked:
        rewrite(out / "run.json", lambda value: value["settings"].update(decoder_asked=False))


def scores(out: Path) -> list[Any]:
    return list(rows(out)["scores"].to_pylist())


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        (MISSING, "dali cannot be used on this CPU: it is not installed, or one of its libraries is missing"),
        (WRONG, "dali cannot be used on this CPU: it decodes sound JPEGs wrongly: pixels are "),
    ],
)
def test_where_dali_does_not_work_auto_goes_on_with_torchvision_and_an_explicit_choice_is_refused(
    cli: Cli, warm: Cli, photos: Path, tmp_path: Path, fault: str, said: str
) -> None:
    env = injected(tmp_path / "fault", {DALI: fault})
    plan(warm, photos, tmp_path / "out")
    done = cli("run", "--out", tmp_path / "out", env=env)
    assert f"{said}" in done.stderr
    assert "torchvision decodes on the CPU cores instead, in the whole run" in done.stderr
    assert json.loads((tmp_path / "out" / "model.json").read_text())["decoder"] == "torchvision"
    assert set(rows(tmp_path / "out")["decoder"].to_pylist()) <= {"torchvision", "pil", None}
    warm("run", photos, *DEMO, "--decoder", "torchvision", "--precision", "fp32", "--out", tmp_path / "plain")
    assert scores(tmp_path / "out") == scores(tmp_path / "plain")
    assert "every one there once" in warm("verify", tmp_path / "out").stdout
    plan(warm, photos, tmp_path / "asked", asked=True)
    refused = cli("run", "--out", tmp_path / "asked", env=env, code=3).stderr
    assert said in refused
    assert "or use --decoder torchvision" in refused
    assert list((tmp_path / "asked" / "parts").iterdir()) == []


def test_what_the_first_worker_froze_holds_for_later_ones(cli: Cli, warm: Cli, photos: Path, tmp_path: Path) -> None:
    env = injected(tmp_path / "fault", {DALI: MISSING})
    plan(warm, photos, tmp_path / "out")
    cli("run", "--out", tmp_path / "out", "--shards", "0", env=env)
    cli("run", "--out", tmp_path / "out")  # DALI works here, but the run has begun without it
    assert "dali" not in rows(tmp_path / "out")["decoder"].to_pylist()
    plan(warm, photos, tmp_path / "with")
    cli("run", "--out", tmp_path / "with", "--shards", "0")
    refused = cli("run", "--out", tmp_path / "with", env=env, code=3).stderr
    assert "dali cannot be used on this CPU: it is not installed" in refused


def test_a_device_that_cannot_do_it_is_given_up_by_name_and_the_others_go_on(
    cli: Cli, warm: Cli, photos: Path, tmp_path: Path
) -> None:
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:
        pytest.skip("needs two cores")
    only_there = f"""
import os, pathlib, time
flag = pathlib.Path({str(tmp_path / "given-up")!r})
if {cores[0]} in os.sched_getaffinity(0):
    flag.touch()
    {MISSING}
while not flag.exists():  # or the other worker might do all of it before
    time.sleep(0.01)
"""
    env = injected(tmp_path / "fault", {DALI: only_there})
    plan(warm, photos, tmp_path / "out")
    cli("run", "--out", tmp_path / "out", "--shards", "0")  # so that the run has begun with DALI
    done = cli("run", "--out", tmp_path / "out", "--workers", 2, env=env)
    assert "cpu is given up, and the others go on: --decoder dali: dali cannot be used on this CPU" in done.stderr
    assert set(rows(tmp_path / "out")["decoder"].to_pylist()) <= {"dali", "pil", None}
    assert "every one there once" in warm("verify", tmp_path / "out").stdout


def test_a_gpu_that_fails_at_first_contact_is_a_refusal_with_a_remedy(
    cli: Cli, warm: Cli, photos: Path, tmp_path: Path
) -> None:
    plan(warm, photos, tmp_path / "out")
    env = injected(tmp_path / "fault", {DALI: BROKEN_GPU})
    said = cli("run", "--out", tmp_path / "out", env=env, code=3).stderr
    assert "cudaErrorIllegalAddress (700); see clipbatch doctor, or use --decoder torchvision" in said


def test_too_little_memory_is_said_and_the_run_goes_on_in_pieces(
    cli: Cli, warm: Cli, photos: Path, tmp_path: Path
) -> None:
    for name, env in (("plain", {}), ("cramped", injected(tmp_path / "fault", {DALI: CRAMPED}))):
        plan(warm, photos, tmp_path / name)
        done = cli("run", "--out", tmp_path / name, env=env)
        assert ("DALI ran out of memory: decoding such batches in pieces" in done.stderr) == (name == "cramped")
    assert scores(tmp_path / "cramped") == scores(tmp_path / "plain")


def test_an_encoder_that_computes_wrong_numbers_is_found(warm: Cli) -> None:
    decode = Decode(DecodeSettings(decoder="torchvision"), TARGET, batch_size=12, device="cpu", threads=1)
    pixels = first_contact.check_decoder(decode, DecodeSettings(decoder="torchvision"), TARGET)
    right_BD = torch.nn.functional.normalize(torch.randn(12, 32), dim=1)

    class Encoder(Encode):
        def __init__(self, *answers: torch.Tensor) -> None:
            self._answers = list(answers)

        def __call__(self, batch: PixelBatch) -> EmbeddedBatch:
            image_BD = self._answers.pop(0)
            return EmbeddedBatch(source=batch.source, outcomes=batch.outcomes, image_BD=image_BD)

    exact_BD = right_BD[:2]
    first_contact.check_encoder(Encoder(right_BD, right_BD), pixels, exact_BD)
    off_BD = right_BD.clone()
    off_BD[5, 3] = float(np.nextafter(right_BD[5, 3].numpy(), np.float32(2)))
    with pytest.raises(first_contact.UnfitError, match="other embeddings each time"):
        first_contact.check_encoder(Encoder(right_BD, off_BD), pixels, exact_BD)
    with pytest.raises(first_contact.UnfitError, match="not those of fp32: cosine"):
        first_contact.check_encoder(Encoder(right_BD.roll(1, 0), right_BD.roll(1, 0)), pixels, exact_BD)


@pytest.mark.parametrize("first", ["fallback", "dali"])
def test_of_two_first_workers_that_choose_differently_one_wins_and_the_other_follows_or_gives_up(
    cli: Cli, warm: Cli, photos: Path, tmp_path: Path, first: str
) -> None:
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:
        pytest.skip("needs two cores")
    here = f"{cores[0]} in os.sched_getaffinity(0)"
    # Both have chosen before either freezes its choice. DALI is missing for one of them.
    in_turn = f"""
import os, pathlib, time
freeze_alone = freeze
def freeze(run, plan, compute):
    folder, fallback = pathlib.Path({str(tmp_path)!r}), {here}
    (folder / f"chosen-{{fallback}}").touch()
    def wait(condition):
        until = time.monotonic() + 120
        while not condition() and time.monotonic() < until:
            time.sleep(0.01)
    wait(lambda: len(list(folder.glob("chosen-*"))) == 2)
    frozen = freeze_alone(run, plan, compute)
    if fallback != {first == "fallback"}:
        wait(run.model_file.exists)
    return frozen
"""
    tries = tmp_path / "tries"
    only_there = f"""
import os
if {here}:
    with open({str(tries)!r}, "a") as file: file.write(".")
    {MISSING}
"""
    # Where DALI was first, its worker does not begin before the other one has tried to follow.
    after_that = f"""
import os, sys, time
protect_now = protect
def protect(run, plan):
    until = time.monotonic() + 120
    while {first == "dali"} and "clipbatch.stages.pipeline" in sys.modules and time.monotonic() < until:
        if os.path.getsize({str(tries)!r}) > 1:
            break
        time.sleep(0.01)
    protect_now(run, plan)
"""
    code = {DALI: only_there, "clipbatch.rundir.features": in_turn, "clipbatch.rundir.damage": after_that}
    env = injected(tmp_path / "fault", code)
    plan(warm, photos, tmp_path / "out")
    done = cli("run", "--out", tmp_path / "out", "--workers", 2, env=env).stderr
    assert len(list(tmp_path.glob("chosen-*"))) == 2
    decoder = "torchvision" if first == "fallback" else "dali"
    assert json.loads((tmp_path / "out" / "model.json").read_text()).get("decoder", "dali") == decoder
    assert set(rows(tmp_path / "out")["decoder"].to_pylist()) <= {decoder, "pil", None}
    assert ("cpu is given up, and the others go on: --decoder dali: " in done) == (first == "dali")
    assert "every one there once" in warm("verify", tmp_path / "out").stdout


COMPILES = """
joined_as_is = LoadedModel.joined
def joined(model, decode, settings, batch_size, device):
    global wanted
    wanted = settings.model.compile == "on"
    return joined_as_is(model, decode, settings, batch_size, device)
LoadedModel.joined = staticmethod(joined)
class Encode(Encode):
    def __init__(self, model, **kinds):
        super().__init__(model, **{**kinds, "compiles": wanted})
"""


def test_torch_compile_that_fails_is_said_once_and_left_out_in_the_whole_run(
    cli: Cli, warm: Cli, photos: Path, tmp_path: Path
) -> None:
    note = tmp_path / "compiled"
    broken = f"""
def compiled(*_):
    with open({str(note)!r}, "a") as file: file.write("once ")
    raise RuntimeError("gcc: fatal error: cannot execute 'cc1'")
"""
    code = {"clipbatch.stages.loading": COMPILES, "clipbatch.stages.encode.stage": broken}
    env = injected(tmp_path / "fault", code)
    for name, asked in (("out", False), ("asked", None)):
        plan(warm, photos, tmp_path / name)
        rewrite(
            tmp_path / name / "run.json",
            lambda value, asked=asked: (
                value["settings"].update(compile="on", compile_asked=asked),
                value["identity"].update(compile="on"),
            ),
        )
    first = cli("run", "--out", tmp_path / "out", "--shards", "0", env=env).stderr
    assert first.count("gcc: fatal error: cannot execute 'cc1'; the run goes on without it") == 1
    assert json.loads((tmp_path / "out" / "model.json").read_text())["compile"] == "off"
    assert "cc1" not in cli("run", "--out", tmp_path / "out", env=env).stderr
    assert note.read_text() == "once "
    assert "every one there once" in warm("verify", tmp_path / "out").stdout
    refused = cli("run", "--out", tmp_path / "asked", env=env, code=3).stderr
    assert "--compile on: torch.compile fails here: RuntimeError: gcc: fatal error" in refused
    assert "use --compile off for a new run" in refused


def test_a_decoder_that_fails_is_closed_before_the_next_one_is_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[tuple[str, str]] = []

    class Noted(Decode):
        def __init__(self, settings: DecodeSettings, *arguments: Any, **kinds: Any) -> None:
            events.append(("made", settings.decoder))
            super().__init__(settings, *arguments, **kinds)

        def close(self) -> None:
            events.append(("closed", self.decoder))
            super().close()

    monkeypatch.setattr(DaliDecoder, "_place", DaliDecoder._place)  # so that it is put back
    exec(WRONG, {"DaliDecoder": DaliDecoder})
    monkeypatch.setattr(loading, "Decode", Noted)
    settings = resolving.resolve(from_flat({"model": "clipbatch-demo", "decoder": "dali", "device": "cpu"}))
    loaded = loading.fit(settings.replace(decoder_asked=False), 8, "cpu")
    assert events == [("made", "dali"), ("closed", "dali"), ("made", "torchvision")]
    assert loaded.facts == {"decoder": "torchvision"}
    loaded.decode.close()
    loaded.read.close()
