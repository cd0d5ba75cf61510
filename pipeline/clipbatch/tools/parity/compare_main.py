"""The process that compares: `python -m clipbatch.tools.parity.compare_main RUN_DIR DEVICE LABELLED PICTURES`.

Takes every row of a planned run through this machine's fast path and through open_clip's own transform (Pillow) and
model in fp32 on the CPU, both from the same bytes and the same weights. Says first what is compared, then a line for
each row, and at the end PICTURES pairs of those that agree the least. Writes nothing.
"""

from __future__ import annotations

import base64
import copy
import dataclasses
import io
import sys
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from clipbatch.config import DecodeSettings, hardware
from clipbatch.config.label_set import LabelSet
from clipbatch.rundir.layout import RunDir
from clipbatch.rundir.manifest import Manifest
from clipbatch.stages.decode import Decode
from clipbatch.stages.decode.geometry import Target
from clipbatch.stages.encode import Encode, check_device, load, text_features
from clipbatch.stages.pillow import with_image
from clipbatch.stages.pipeline import Task, item_batches
from clipbatch.stages.read import Read
from clipbatch.stages.score import score
from clipbatch.types import Decoded, Encoded, ItemBatch, PixelBatch, Reject
from clipbatch.workers.child import Parent, serve

Pixels = NDArray[np.uint8]
_AMPLIFIED = 16
"""How much brighter a difference is shown than it is."""
_MODES = {"P": "palette", "PA": "palette", "1": "1-bit"}


def main() -> None:
    path, device, labelled, pictures = sys.argv[1:]
    serve(lambda parent: _compare(parent, RunDir(path), device, labelled == "1", int(pictures)))


def _compare(parent: Parent, run: RunDir, device: str, labelled: bool, pictures: int) -> None:
    plan = run.plan()
    comparison, manifest = Comparison(run, device, labelled), Manifest(run, plan)
    parent.send(comparison.facts())
    worst: list[tuple[dict[str, Any], Pixels, Pixels]] = []
    for shard in range(plan.shards):
        for batch in item_batches(plan, manifest, Task(shard=shard)):
            found = comparison(batch)
            for row, *_ in found:
                parent.send(row)
            pairs = [(row, ours, theirs) for row, ours, theirs in found if ours is not None and theirs is not None]
            worst = sorted([*worst, *pairs], key=lambda pair: pair[0]["cosine"])[:pictures]
    for row, ours, theirs in worst:
        difference = np.abs(ours.astype(int) - theirs) * _AMPLIFIED
        shown = {"ours": ours, "theirs": theirs, "difference": difference.clip(0, 255).astype(np.uint8)}
        parent.send({"picture": row["row_id"], **{name: _webp(pixels) for name, pixels in shown.items()}})


class Comparison:
    """A model twice: as a run on this machine would have it, and as open_clip does in fp32."""

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
        torch.set_num_threads(hardware.cores())  # as one batch is encoded at a time
        self._device = device

    def facts(self) -> dict[str, Any]:
        """What is compared with the reference."""
        settings = self._settings
        return {
            "model": settings.model.model,
            "pretrained": settings.model.pretrained,
            "decoder": settings.decode.decoder,
            "precision": settings.model.precision,
            "device": self._device,
            "batch_size": settings.batch_size,
            "orientation": settings.decode.orientation,
        }

    def __call__(self, batch: ItemBatch) -> list[tuple[dict[str, Any], Pixels | None, Pixels | None]]:
        """For each image its facts, and where both paths have pixels, these (HWC)."""
        read = self._read(batch)
        made: list[PixelBatch] = [decode(read) for decode in self._decodes]
        ours_BD, theirs_BD = (
            torch.as_tensor(encode(pixels).image_BD).cpu() for encode, pixels in zip(self._encodes, made, strict=True)
        )
        cosine_B = torch.nn.functional.cosine_similarity(ours_BD.double(), theirs_BD.double())
        ours_BHWC, theirs_BHWC = (pixels.pixels_BCHW.permute(0, 2, 3, 1).cpu().numpy() for pixels in made)
        rows: list[tuple[dict[str, Any], Pixels | None, Pixels | None]] = []
        for slot, item in enumerate(batch.items):
            assert item
            outcomes = [pixels.outcomes[slot] for pixels in made]
            row: dict[str, Any] = {"row_id": item.row_id, "uri": item.uri}
            row |= {"status": _status(outcomes[0]), "reference_status": _status(outcomes[1])}
            content = read.slots[slot]
            if not isinstance(content, Encoded) or not all(isinstance(outcome, Decoded) for outcome in outcomes):
                rows.append((row, None, None))
                continue
            ours, theirs = ours_BHWC[slot], theirs_BHWC[slot]
            off = np.abs(ours.astype(int) - theirs)
            row |= {
                "notes": _notes(content),
                "pixel_mean": float(off.mean()),
                "pixel_max": int(off.max()),
                "cosine": float(cosine_B[slot].clamp(max=1.0)),
            }
            rows.append((row | self._answers(ours_BD[slot], theirs_BD[slot]), ours, theirs))
        return rows

    def _answers(self, ours_D: torch.Tensor, theirs_D: torch.Tensor) -> dict[str, Any]:
        """Both paths' best labels, and how far apart open_clip's two best scores are."""
        if self._labels is None or self._text_LD is None:
            return {}
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
        return {
            "label": _best(scores_2L[0], self._labels),
            "reference_label": _best(scores_2L[1], self._labels),
            "score_off": float(np.abs(scores_2L[0] - scores_2L[1]).max()),
            "margin": min(margins, default=None),
        }


def _best(scores_L: NDArray[np.float32], labels: LabelSet) -> str:
    parts = np.split(scores_L, np.cumsum(labels.sizes)[:-1])
    best = [group.names[int(part.argmax())] for group, part in zip(labels.groups, parts, strict=True)]
    return ", ".join(best)


def _status(outcome: Decoded | Reject | None) -> str:
    return outcome.status if isinstance(outcome, Reject) else "ok"


def _notes(content: Encoded) -> list[str]:
    """What this image has that clipbatch treats otherwise than open_clip, on purpose."""

    def noted(image: Image.Image, orientation: int) -> list[str]:
        mode = "16-bit" if image.mode in ("I", "F") or image.mode.startswith("I;16") else _MODES.get(image.mode)
        hidden = "transparency" in image.info or image.mode == "PA"
        notes = {mode: mode, "transparent": hidden, "turned": orientation != 1}
        return [note for note, applies in notes.items() if note and applies]

    return with_image(content.data, noted)


def _webp(pixels: Pixels) -> str:
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "WEBP", quality=90)
    return base64.b64encode(out.getvalue()).decode()


if __name__ == "__main__":
    main()
