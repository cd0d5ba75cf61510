"""What was measured image by image -> totals, and what they mean in plain words. Pure."""

from __future__ import annotations

from collections import Counter
from typing import TypedDict

# Of the embeddings, in the mean.
MIN_COSINE = 0.999
# Of the embeddings of any image.
MIN_OF_ONE = 0.99
# Share of images with the same best label: where two labels are level, rounding in bf16 or fp16 decides.
MIN_SAME = 0.98
# Where clipbatch differs from open_clip by design, by the note on an image.
ON_PURPOSE = {
    "palette": "palettes become RGB before they are resized",
    "1-bit": "1-bit images become RGB before they are resized",
    "transparent": "transparency of palettes and of one colour is an alpha channel; open_clip shows what it hides",
    "16-bit": "16-bit gray is scaled; open_clip cuts it off at 255, which is white",
}


class Facts(TypedDict):
    """What is compared with the reference."""

    model: str
    pretrained: str | None
    decoder: str
    precision: str
    device: str
    batch_size: int | None
    orientation: str


class Row(TypedDict, total=False):
    """An image. The keys after `reference_status` are there where both decoded it, those after `cosine` if there are
    labels."""

    row_id: int
    uri: str
    status: str
    reference_status: str
    notes: list[str]
    pixel_mean: float
    pixel_max: int
    cosine: float
    label: str
    reference_label: str
    score_off: float
    margin: float | None


class Totals(TypedDict, total=False):
    """Means and worst cases over some images. The keys after `cosine_worst` are there if there are labels."""

    images: int
    pixel_mean: float
    pixel_max: int
    cosine_mean: float
    cosine_worst: float
    same_label: int
    score_off_mean: float
    score_off_max: float
    other_label_margin: float | None


class Summary(Facts, total=False):
    """What `clipbatch parity` prints as JSON."""

    images: int
    sampled: int
    compared: int
    bad: int
    only_clipbatch: int
    only_reference: int
    notes: dict[str, int]
    all: Totals | None
    alike: Totals | None
    worst: list[Row]
    agrees: bool | None
    verdict: str


def summary(facts: Facts, rows: list[Row], listed: int) -> Summary:
    """All that `clipbatch parity` has found. facts, rows: as `measure` says them. listed: images in the input."""
    compared = sorted((row for row in rows if "cosine" in row), key=lambda row: float(row["cosine"]))
    alike = [row for row in compared if not ON_PURPOSE.keys() & set(row["notes"])]
    only = Counter(
        "reference" if row["status"] != "ok" else "clipbatch"
        for row in rows
        if (row["status"] == "ok") != (row["reference_status"] == "ok")
    )
    found = Summary(
        **facts,
        images=listed,
        sampled=len(rows),
        compared=len(compared),
        bad=len(rows) - len(compared) - only.total(),
        only_clipbatch=only["clipbatch"],
        only_reference=only["reference"],
        notes=dict(Counter(note for row in compared for note in row["notes"])),
        all=totals(compared),
        alike=totals(alike),
        worst=compared[:20],
        agrees=None,
        verdict="",
    )
    found["agrees"], found["verdict"] = verdict(found)
    return found


def totals(rows: list[Row]) -> Totals | None:
    """Means and worsts over images; None where there are none."""
    if not rows:
        return None

    found = Totals(
        images=len(rows),
        pixel_mean=sum(row["pixel_mean"] for row in rows) / len(rows),
        pixel_max=max(row["pixel_max"] for row in rows),
        cosine_mean=sum(row["cosine"] for row in rows) / len(rows),
        cosine_worst=min(row["cosine"] for row in rows),
    )
    if "label" in rows[0]:
        other = [row for row in rows if row["label"] != row["reference_label"]]
        found["same_label"] = len(rows) - len(other)
        found["score_off_mean"] = sum(row["score_off"] for row in rows) / len(rows)
        found["score_off_max"] = max(row["score_off"] for row in rows)
        found["other_label_margin"] = max((row["margin"] for row in other if row["margin"] is not None), default=None)
    return found


def verdict(found: Summary) -> tuple[bool | None, str]:
    """Whether the fast path is as good as open_clip's, None where nobody can say, and the reason in words."""
    alike, purpose = found["alike"], found["compared"] - (found["alike"]["images"] if found["alike"] else 0)
    if alike is None:
        return None, "Nothing to judge: no image was decoded by both, but those that are treated otherwise on purpose."
    against = []
    if alike["cosine_mean"] < MIN_COSINE:
        against.append(f"the mean cosine is {alike['cosine_mean']:.4f}, below {MIN_COSINE}")
    if alike["cosine_worst"] < MIN_OF_ONE:
        against.append(f"one image's cosine is {alike['cosine_worst']:.4f}, below {MIN_OF_ONE}")
    others = alike["images"] - alike.get("same_label", alike["images"])
    if others > (1 - MIN_SAME) * alike["images"]:
        against.append(f"{others} of {alike['images']} images get another label")
    if found["only_reference"]:
        against.append(f"{_images_are(found['only_reference'])} decoded by open_clip alone")
    if against:
        text = f"This machine's fast path differs from open_clip: {'; '.join(against)}. "
        text += "Look at the worst images; clipbatch run --reference gives open_clip's own answers."
    else:
        text = f"This machine's fast path answers as open_clip does: cosine {alike['cosine_worst']:.4f} at worst"
        if "same_label" in alike:
            text += f", the same label for {alike['same_label']} of {alike['images']} images"
        text += "."
    if others and alike["other_label_margin"] is not None:
        margin = alike["other_label_margin"]
        text += f" Where labels differ, open_clip's two best scores are {margin:.2g} apart at most."
    if purpose:
        kinds = "; ".join(ON_PURPOSE[note] for note in found["notes"] if note in ON_PURPOSE)
        text += f" {_images_are(purpose, 'more ')} treated otherwise on purpose and not counted here: {kinds}."
    if (turned := found["notes"].get("turned")) and found["orientation"] == "upright":
        text += f" {_images_are(turned)} turned by EXIF; open_clip alone would take them as stored."
    return not against, text


def _images_are(count: int, more: str = "") -> str:
    return f"{count} {more}image is" if count == 1 else f"{count} {more}images are"


def text(found: Summary) -> str:
    """For a terminal: what was compared, totals, the worst images, the verdict."""
    lines = [compared(found), ""]
    for title, part in (("all images", found["all"]), ("without those treated otherwise on purpose", found["alike"])):
        if part is None or (part is found["alike"] and part["images"] == found["compared"]):
            continue
        lines += [f"{part['images']} images, {title}", *(f"  {what:24} {value}" for what, value in shown(part)), ""]
    if found["worst"]:
        lines.append(f"{'cosine':>8} {'pixels: mean':>13} {'max':>4}  the least alike (label, open_clip's; notes)")
    for row in found["worst"][:10]:
        lines.append(
            f"{row['cosine']:8.6f} {row['pixel_mean']:13.3f} {row['pixel_max']:4}  {ascii(row['uri'])[1:-1]}{_of(row)}"
        )
    return "\n".join([*lines, "", found["verdict"]])


def compared(found: Summary) -> str:
    """What was compared, in a sentence."""
    weights = f" ({found['pretrained']})" if found["pretrained"] else ""
    left = [
        f"{count} {what}"
        for what, count in (
            ("bad for both", found["bad"]),
            ("that only clipbatch decodes", found["only_clipbatch"]),
            ("that only open_clip decodes", found["only_reference"]),
        )
        if count
    ]
    return (
        f"{found['compared']} of {found['images']} images{', besides ' + ', '.join(left) if left else ''}: "
        f"{found['model']}{weights}, {found['decoder']}, {found['precision']} on {found['device']}, "
        f"batches of {found['batch_size']}, against open_clip's transform (Pillow) and model in fp32"
    )


def shown(part: Totals) -> list[tuple[str, str]]:
    """Totals as lines of name and value."""
    lines = [
        ("pixel difference", f"{part['pixel_mean']:.3f} in the mean, {part['pixel_max']} at most, of 255"),
        ("cosine of embeddings", f"{part['cosine_mean']:.6f} in the mean, {part['cosine_worst']:.6f} at worst"),
    ]
    if "same_label" in part:
        share = 100 * part["same_label"] / part["images"]
        lines += [
            ("score difference", f"{part['score_off_mean']:.5f} in the mean, {part['score_off_max']:.5f} at most"),
            ("same best label", f"{part['same_label']} of {part['images']} ({share:.1f}%)"),
        ]
    return lines


def _of(row: Row) -> str:
    said = []
    if row.get("label") != row.get("reference_label"):
        said.append(f"{row['label']}, {row['reference_label']}")
    said += row["notes"]
    return f" ({'; '.join(said)})" if said else ""
