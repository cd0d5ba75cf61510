"""The process that compares: `python -m clipbatch.tools.parity.compare_main RUN_DIR DEVICE LABELLED PICTURES`.

It takes every row of a planned run through this machine's fast path, and through open_clip's own transform (Pillow) and
model in fp32 on the CPU. Both get the same bytes and the same weights. It first sends the facts of the comparison, then
a message for each row, and at the end the pictures of the PICTURES images that differ most. It writes nothing.
"""

from __future__ import annotations

import base64
import copy
import dataclasses
import io
import sys

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from clipbatch.config import DecodeSettings, hardware
from clipbatch.config.label_set import LabelSet
from clipbatch.rundir.layout import RunDir
from clipbatch.rundir.manifest import Manifest
from clipbatch.stages.batches import Task, item_batches
from clipbatch.stages.cuda import check_device
from clipbatch.stages.decode import Decode
from clipbatch.stages.decode.geometry import Target
from clipbatch.stages.encode import Encode, load, text_features
from clipbatch.stages.pillow import with_image
from clipbatch.stages.read import Read
from clipbatch.stages.score import score
from clipbatch.tools.parity.verdict import Facts, Row, order
from clipbatch.types import Decoded, Encoded, ItemBatch, PixelBatch, Reject
from clipbatch.workers.child import Parent, serve

Pixels = NDArray[np.uint8]
# Differences are shown this many times as bright as they are.
_AMPLIFIED = 16
_MODES = {"P": "palette", "PA": "palette", "1": "1-bit"}


def main() -> None:
    path, device, labelled, pictures = sys.argv[1:]
    serve(lambda parent: _compare(parent, RunDir(path), device, labelled == "1", int(pictures)))


def _compare(parent: Parent, run: RunDir, device: str, labelled: bool, pictures: int) -> None:
    plan = run.plan()
    comparison, manifest = Comparison(run, device, labelled), Manifest(run, plan)
    parent.send(comparison.facts())
    worst: list[tuple[Row, Pixels, Pixels]] = []
    for shard in range(plan.shards):
        for batch in item_batches(plan, manifest, Task(shard=shard), manifest.rows(shard)):
            compared = comparison(batch)
            for row, *_ in compared:
                parent.send(row)
            pairs = [(row, ours, theirs) for row, ours, theirs in compared if ours is not None and theirs is not None]
            worst = sorted([*worst, *pairs], key=lambda pair: order(pair[0]["cosine"]))[:pictures]
    for row, ours, theirs in worst:
        difference = np.abs(ours.astype(int) - theirs) * _AMPLIFIED
        shown = {"ours": ours, "theirs": theirs, "difference": difference.clip(0, 255).astype(np.uint8)}
        parent.send({"picture": row["row_id"], **{name: _webp(pixels) for name, pixels in shown.items()}})


class Comparison:
    """A model on both paths: as a run on this machine uses it, and as open_clip does in fp32."""

    def __init__(self, run: RunDir, device: str, labelled: bool) -> None:
        plan = run.plan()
        self._settings = settings = plan.run_settings()
        check_device(device)
        model = load(settings.model)
        self._labels = plan.labels if labelled else None
        self._text_LD = torch.from_numpy(text_features(model, plan.labels.prompts)) if labelled else None
        self._kind = "softmax" if model.logit_bias is None else "sigmoid"
        self._logits = model.logit_scale, model.logit_bias
        target = Target.from_facts(model.facts())
        reference = dataclasses.replace(model, module=copy.deepcopy(model.module))
        exact = DecodeSettings(
            decoder="open_clip",
            orientation=settings.decode.orientation,
            max_pixels=settings.decode.max_pixels,
            background=settings.decode.background,
        )
        size = plan.batch_size
        self._read = Read(settings.read)
        self._decodes = (
            Decode(settings.decode, target, batch_size=size, device=device, threads=1),
            Decode(exact, target, batch_size=size, device="cpu", threads=1),
        )
        self._encodes = (
            Encode(model, precision=settings.model.precision, device=device, batch_size=size),
            Encode(reference, precision="fp32", device="cpu", batch_size=size),
        )
        torch.set_num_threads(hardware.cores())  # only one batch is encoded at a time
        self._device = device

    def facts(self) -> Facts:
        """The fast path that is compared."""
        settings = self._settings
        return Facts(
            model=settings.model.model,
            pretrained=settings.model.pretrained,
            decoder=settings.decode.decoder,
            precision=settings.model.precision,
            device=self._device,
            batch_size=settings.model.batch_size,
            orientation=settings.decode.orientation,
        )

    def __call__(self, batch: ItemBatch) -> list[tuple[Row, Pixels | None, Pixels | None]]:
        """For each image the comparison, and its pixels (HWC) on both paths if both have decoded it."""
        read = self._read(batch)
        batches: list[PixelBatch] = [decode(read) for decode in self._decodes]
        ours_BD, theirs_BD = (
            torch.as_tensor(encode(pixels).image_BD).cpu()
            for encode, pixels in zip(self._encodes, batches, strict=True)
        )
        cosine_B = torch.nn.functional.cosine_similarity(ours_BD.double(), theirs_BD.double())
        ours_BHWC, theirs_BHWC = (pixels.pixels_BCHW.permute(0, 2, 3, 1).cpu().numpy() for pixels in batches)
        rows: list[tuple[Row, Pixels | None, Pixels | None]] = []
        for slot, item in enumerate(batch.items):
            assert item
            outcomes = [pixels.outcomes[slot] for pixels in batches]
            row = Row(row_id=item.row_id, uri=item.uri)
            row["status"], row["reference_status"] = map(_status, outcomes)
            content = read.slots[slot]
            if not isinstance(content, Encoded) or not all(isinstance(outcome, Decoded) for outcome in outcomes):
                rows.append((row, None, None))
                continue
            ours, theirs = ours_BHWC[slot], theirs_BHWC[slot]
            off = np.abs(ours.astype(int) - theirs)
            row["notes"] = _notes(content)
            row["pixel_mean"], row["pixel_max"] = float(off.mean()), int(off.max())
            row["cosine"] = float(cosine_B[slot].clamp(max=1.0))
            self._add_labels(row, ours_BD[slot], theirs_BD[slot])
            rows.append((row, ours, theirs))
        return rows

    def _add_labels(self, row: Row, ours_D: torch.Tensor, theirs_D: torch.Tensor) -> None:
        """Add to `row` the best labels of both paths, and the distance of open_clip's two best scores."""
        if self._labels is None or self._text_LD is None:
            return
        scores_2L = score(
            torch.stack([ours_D, theirs_D]),
            self._text_LD,
            self._kind,
            *self._logits,
            self._labels.sizes,
            self._labels.are_tags,
        ).numpy()
        margins = [
            float(np.diff(np.sort(part)[-2:])[0])
            for part in np.split(scores_2L[1], np.cumsum(self._labels.sizes)[:-1])
            if len(part) > 1
        ]
        row["label"], row["reference_label"] = (_best(scores_L, self._labels) for scores_L in scores_2L)
        row["score_off"] = float(np.abs(scores_2L[0] - scores_2L[1]).max())
        row["margin"] = min(margins, default=None)


def _best(scores_L: NDArray[np.float32], labels: LabelSet) -> str:
    parts = np.split(scores_L, np.cumsum(labels.sizes)[:-1])
    best = [group.names[int(part.argmax())] for group, part in zip(labels.groups, parts, strict=True)]
    return ", ".join(best)


def _status(outcome: Decoded | Reject | None) -> str:
    return outcome.status if isinstance(outcome, Reject) else "ok"


def _notes(content: Encoded) -> list[str]:
    """The properties of this image that clipbatch treats differently from open_clip on purpose."""

    def notes_on(image: Image.Image, orientation: int) -> list[str]:
        mode = "16-bit" if image.mode in ("I", "F") or image.mode.startswith("I;16") else _MODES.get(image.mode)
        hidden = "transparency" in image.info or image.mode == "PA"
        notes = {mode: mode, "transparent": hidden, "turned": orientation != 1}
        return [note for note, applies in notes.items() if note and applies]

    return with_image(content.data, notes_on)


def _webp(pixels: Pixels) -> str:
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "WEBP", quality=90)
    return base64.b64encode(out.getvalue()).decode()


if __name__ == "__main__":
    main()
