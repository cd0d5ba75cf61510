"""`clipbatch parity`: its results for real images, compared with differences computed here."""

import html
import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pyarrow as pa
import pytest
from PIL import Image
from safetensors.torch import load_file, save_file

from clipbatch.config import SourceSettings, models
from clipbatch.inputs import listing
from clipbatch.tools.parity.compare import evenly
from clipbatch.tools.parity.verdict import summary, text
from tests.conftest import DEMO, Cli
from tests.support.corpus import BROKEN, GOOD

HOSTILE = "<img src=x onerror=alert(1)>.jpg"
KINDS = {"png-palette.png": "palette", "png-gray16.png": "16-bit", "png-rgba.png": "transparent"}


@pytest.fixture(scope="module")
def folder(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Photographs, images that clipbatch treats differently on purpose, one turned by EXIF, and a broken one."""
    folder, rng = tmp_path_factory.mktemp("compared"), np.random.default_rng(5)
    for path in sorted(photos.glob("*.jpg"))[:12]:
        (folder / path.name).write_bytes(path.read_bytes())
    for name in KINDS:
        (folder / name).write_bytes(GOOD[name.removesuffix(".png")](rng)[1])
    (folder / "turned.jpg").write_bytes(GOOD["jpeg-exif-6"](rng)[1])
    (folder / HOSTILE).write_bytes(GOOD["jpeg-progressive"](rng)[1])
    (folder / "broken.jpg").write_bytes(BROKEN["html"].make(rng))
    return folder


@pytest.fixture(scope="module")
def found(cli: Cli, folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], str]:
    """What the command says, and the page that it writes."""
    page = tmp_path_factory.mktemp("page") / "parity.html"
    said = cli("parity", folder, *DEMO, "--precision", "bf16", "--device", "cpu", "--json", "--out", page).stdout
    return json.loads(said), page.read_text()


def test_every_image_is_compared_or_counted_and_those_that_differ_on_purpose_apart(
    found: tuple[dict[str, Any], str],
) -> None:
    made, _ = found
    assert (made["images"], made["sampled"], made["compared"], made["bad"]) == (18, 18, 17, 1)
    assert made["notes"] == {"palette": 1, "16-bit": 1, "turned": 1}
    assert made["all"]["images"] - made["alike"]["images"] == 2  # what is transparent is as open_clip has it
    assert (made["decoder"], made["precision"], made["device"]) == ("torchvision", "bf16", "cpu")
    assert made["agrees"] is True
    assert made["alike"]["cosine_worst"] > 0.999
    assert made["alike"]["same_label"] == made["alike"]["images"]
    for said in ("2 more images are treated differently on purpose", "16-bit gray is scaled", "1 image is turned"):
        assert said in made["verdict"]
    by_name = {Path(row["uri"]).name: row for row in made["worst"]}
    assert by_name["png-gray16.png"]["pixel_mean"] > 20
    assert [row["cosine"] for row in made["worst"]] == sorted(row["cosine"] for row in made["worst"])
    assert 0 < 1 - made["alike"]["cosine_mean"] < 1e-3


def test_pixel_differences_are_those_of_the_images_themselves(found: tuple[dict[str, Any], str], folder: Path) -> None:
    transform = open_clip.image_transform(64, is_train=False, mean=(0.0,) * 3, std=(1.0,) * 3)
    row = next(row for row in found[0]["worst"] if row["uri"].endswith("png-gray16.png"))
    with Image.open(folder / "png-gray16.png") as image:
        theirs_CHW = transform(image) * 255
        deep = np.asarray(image)
    scaled = Image.fromarray((deep >> 8).astype(np.uint8)).convert("RGB")
    ours_CHW = transform(scaled) * 255
    assert row["pixel_mean"] == pytest.approx(float((ours_CHW - theirs_CHW).abs().mean()), abs=0.3)


def test_the_page_shows_pairs_and_holds_no_markup_of_others(found: tuple[dict[str, Any], str]) -> None:
    made, page = found
    pictures = re.findall(r'<img src="data:image/webp;base64,UklGR[A-Za-z0-9+/]+=*"', page)
    assert len(pictures) == len(re.findall("<img", page)) == 3 * 12
    assert "&lt;img src=x onerror=alert(1)&gt;.jpg" in page
    assert "script" not in page.split("</style>")[1]
    assert "default-src &#39;none&#39;; img-src data:; style-src &#39;sha256-" in page
    assert "16-bit gray is scaled" in page
    assert html.escape(made["verdict"][:60]).replace("&#x27;", "&#39;") in page


def test_without_labels_as_text_and_what_is_refused(cli: Cli, folder: Path, tmp_path: Path) -> None:
    turned = ("parity", folder / "turned.jpg", "--model", "clipbatch-demo", "--orientation", "stored")
    said = cli(*turned, "--precision", "fp32").stdout
    assert "1 of 1 images: clipbatch-demo (embedded)" in said
    assert "label for" not in said
    assert "turned by EXIF" not in said
    assert said.rstrip().splitlines()[-1].startswith("This machine's fast path agrees with open_clip: cosine ")
    worst = float(said.rpartition("open_clip: cosine ")[2].split(" ")[0])
    assert 0.9999 < worst < 1  # so different digits are shown, however small the difference
    assert f"{worst} at worst" in said
    state = load_file(models.weights_file("embedded") or "")
    state["visual.trunk.layer4.0.downsample.2.weight"] *= math.nan
    save_file(state, tmp_path / "nan.safetensors")
    said = cli(*turned, "--pretrained", tmp_path / "nan.safetensors", "--json").stdout
    made = json.loads(said, parse_constant=pytest.fail)  # as strict readers, which know no NaN
    assert (made["agrees"], made["all"]["cosine_mean"], made["worst"][0]["cosine"]) == (False, None, None)
    no_weights = cli("parity", folder, "--model", "RN50", code=3).stderr
    assert "choose one with --pretrained" in no_weights
    assert no_weights.count("\n") == 1
    assert "is a folder" in cli("parity", folder, "--model", "clipbatch-demo", "--out", tmp_path, code=3).stderr
    assert "no INPUT" in cli("parity", code=3).stderr


@pytest.mark.parametrize(("listed", "limit"), [(1, 5), (5, 5), (9, 5), (1000, 7), (1000, 300), (100_000, 200)])
def test_images_are_takenevenly(tmp_path: Path, listed: int, limit: int) -> None:
    (tmp_path / "list.txt").write_text("".join(f"{number}.jpg\n" for number in range(listed)))
    inputs = listing.listers(SourceSettings(inputs=(str(tmp_path / "list.txt"),)))
    count = [0]
    taken = pa.Table.from_batches(evenly(limit, count)(listing.Listing(inputs, None, ())))
    numbers = [int(uri.removesuffix(".jpg")) for uri in taken["uri"].to_pylist()]
    steps = np.diff(numbers)
    assert count == [listed]
    assert len(numbers) == min(limit, listed)
    assert numbers[0] == 0
    assert listed - numbers[-1] <= 2 * listed / len(numbers)
    assert len(steps) == 0 or steps.max() <= 2 * steps.min()


def test_a_machine_with_other_results_gets_a_negative_verdict() -> None:
    facts = {"model": "m", "pretrained": None, "decoder": "dali", "precision": "fp16", "device": "cuda"}
    facts |= {"batch_size": 8, "orientation": "stored"}
    row = {"uri": "a", "status": "ok", "reference_status": "ok", "notes": [], "pixel_mean": 1.0, "pixel_max": 9}
    row |= {"score_off": 0.1, "label": "cat", "reference_label": "cat", "margin": 0.3}
    good = [row | {"row_id": number, "cosine": 0.9999} for number in range(40)]
    just = summary(facts, [entry | {"cosine": 0.998996} for entry in good], 40)
    assert "the mean cosine is 0.9989960, below 0.999" in just["verdict"]
    assert summary(facts, good, 40)["agrees"] is True
    for wrong in (
        [*good[1:], row | {"row_id": 0, "cosine": 0.98}],
        [entry | {"cosine": 0.998} for entry in good],
        [entry | {"label": "dog"} for entry in good[:2]] + good[2:],
        [*good, {"row_id": 40, "uri": "b", "status": "corrupt", "reference_status": "ok"}],
        [*good[1:], row | {"row_id": 0, "cosine": math.nan, "score_off": math.nan}],
    ):
        made = summary(facts, wrong, 40)
        assert made["agrees"] is False
        assert "differs from open_clip" in made["verdict"]
        assert "--reference" in made["verdict"]
        assert made["verdict"] in text(made)
    assert "one image's cosine is nan, not 0.99" in made["verdict"]
    assert (made["worst"][0]["row_id"], made["all"]["score_off_max"]) == (0, pytest.approx(math.nan, nan_ok=True))
    nothing = summary(facts, [{"row_id": 0, "uri": "b", "status": "empty", "reference_status": "empty"}], 1)
    assert (nothing["agrees"], nothing["bad"]) == (None, 1)
