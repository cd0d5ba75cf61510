"""Sums up the differences between the fast path and open_clip over all images, and judges them in words."""

from __future__ import annotations

import math
from collections import Counter
from typing import TypedDict

# The lowest mean cosine between the embeddings of both paths with which they still agree.
MIN_COSINE = 0.999
# The lowest cosine for any single image.
MIN_OF_ONE = 0.99
# The lowest share of images with the same best label. If two labels score nearly the same, rounding in bf16 or fp16
# decides between them.
MIN_SAME = 0.98
# How clipbatch differs from open_clip by design, by the note on an image.
ON_PURPOSE = {
    "palette": "palettes become RGB before they are resized",
    "1-bit": "1-bit images become RGB before they are resized",
    "transparent": "transparency of palettes and of one colour is an alpha channel; open_clip shows what it hides",
    "16-bit": "16-bit gray is scaled; open_clip clips it at 255, which is white",
}


class Facts(TypedDict):
    """The fast path that is compared with the reference."""

    model: str
    pretrained: str | None
    decoder: str
    precision: str
    device: str
    batch_size: int | None
    orientation: str


class Row(TypedDict, total=False):
    """The comparison of an image. The keys after `reference_status` exist if both paths decoded it, those after
    `cosine` if labels are compared."""

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
    """Means and worst cases over some images. The keys after `cosine_worst` exist if labels are compared."""

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
    """The output of `clipbatch parity --json`."""

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
    """Sum up all images. facts, rows: the messages of `compare_main`. listed: how many images the input has."""
    compared = sorted((row for row in rows if "cosine" in row), key=lambda row: order(row["cosine"]))
    alike = [row for row in compared if not ON_PURPOSE.keys() & set(row["notes"])]
    only = Counter(
        "reference" if row["status"] != "ok" else "clipbatch"
        for row in rows
        if (row["status"] == "ok") != (row["reference_status"] == "ok")
    )
    result = Summary(
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
    result["agrees"], result["verdict"] = verdict(result)
    return result


def totals(rows: list[Row]) -> Totals | None:
    """Means and worst cases over `rows`; None if there are none."""
    if not rows:
        return None
    result = Totals(
        images=len(rows),
        pixel_mean=sum(row["pixel_mean"] for row in rows) / len(rows),
        pixel_max=max(row["pixel_max"] for row in rows),
        cosine_mean=sum(row["cosine"] for row in rows) / len(rows),
        cosine_worst=min((row["cosine"] for row in rows), key=order),
    )
    if "label" in rows[0]:
        other = [row for row in rows if row["label"] != row["reference_label"]]
        result["same_label"] = len(rows) - len(other)
        result["score_off_mean"] = sum(row["score_off"] for row in rows) / len(rows)
        result["score_off_max"] = -min((-row["score_off"] for row in rows), key=order)
        result["other_label_margin"] = max((row["margin"] for row in other if row["margin"] is not None), default=None)
    return result


def order(value: float) -> float:
    """A key that sorts values in ascending order, with NaN as the lowest."""
    return -math.inf if math.isnan(value) else value


def verdict(result: Summary) -> tuple[bool | None, str]:
    """Whether the fast path is as good as open_clip's, and why. None: there is nothing to judge."""
    alike, on_purpose = result["alike"], result["compared"] - (result["alike"]["images"] if result["alike"] else 0)
    if alike is None:
        return None, "Nothing to judge: no image was decoded by both, except those treated differently on purpose."
    reasons = []
    for what, cosine, least in (
        ("the mean cosine", alike["cosine_mean"], MIN_COSINE),
        ("one image's cosine", alike["cosine_worst"], MIN_OF_ONE),
    ):
        if not cosine >= least:  # also NaN, as of an encoder that overflows
            reasons.append(f"{what} is {apart(cosine, least)}, " + ("below" if cosine < least else "not") + f" {least}")
    others = alike["images"] - alike.get("same_label", alike["images"])
    if others > (1 - MIN_SAME) * alike["images"]:
        reasons.append(f"{others} of {alike['images']} images get another label")
    if result["only_reference"]:
        reasons.append(f"{_images_are(result['only_reference'])} decoded by open_clip alone")
    if reasons:
        text = f"This machine's fast path differs from open_clip: {'; '.join(reasons)}. "
        text += "Look at the worst images; clipbatch run --reference gives open_clip's own answers."
    else:
        text = f"This machine's fast path agrees with open_clip: cosine {apart(alike['cosine_worst'])} at worst"
        if "same_label" in alike:
            text += f", the same label for {alike['same_label']} of {alike['images']} images"
        text += "."
    if others and alike["other_label_margin"] is not None:
        margin = alike["other_label_margin"]
        text += f" Where labels differ, open_clip's two best scores are at most {margin:.2g} apart."
    if on_purpose:
        kinds = "; ".join(ON_PURPOSE[note] for note in result["notes"] if note in ON_PURPOSE)
        text += f" {_images_are(on_purpose, 'more ')} treated differently on purpose and not counted here: {kinds}."
    if (turned := result["notes"].get("turned")) and result["orientation"] == "upright":
        text += f" {_images_are(turned)} turned by EXIF; open_clip alone would take them as stored."
    return not reasons, text


def _images_are(count: int, more: str = "") -> str:
    return f"{count} {more}image is" if count == 1 else f"{count} {more}images are"


def text(result: Summary) -> str:
    """The result for a terminal: what was compared, totals, the images that differ most, the verdict."""
    lines = [compared(result), ""]
    for title, part in (
        ("all images", result["all"]),
        ("without those treated differently on purpose", result["alike"]),
    ):
        if part is None or (part is result["alike"] and part["images"] == result["compared"]):
            continue
        lines += [f"{part['images']} images, {title}", *(f"  {what:24} {value}" for what, value in shown(part)), ""]
    if result["worst"]:
        lines.append(
            f"{'cosine':>12} {'pixels: mean':>13} {'max':>4}  most different (label, open_clip's label; notes)"
        )
    for row in result["worst"][:10]:
        figures = f"{apart(row['cosine']):>12} {small(row['pixel_mean']):>13} {row['pixel_max']:4}"
        lines.append(f"{figures}  {ascii(row['uri'])[1:-1]}{_notes(row)}")
    return "\n".join([*lines, "", result["verdict"]])


def compared(result: Summary) -> str:
    """What was compared, in a sentence."""
    weights = f" ({result['pretrained']})" if result["pretrained"] else ""
    excluded = [
        f"{count} {what}"
        for what, count in (
            ("bad for both", result["bad"]),
            ("that only clipbatch decodes", result["only_clipbatch"]),
            ("that only open_clip decodes", result["only_reference"]),
        )
        if count
    ]
    return (
        f"{result['compared']} of {result['images']} images{', besides ' + ', '.join(excluded) if excluded else ''}: "
        f"{result['model']}{weights}, {result['decoder']}, {result['precision']} on {result['device']}, "
        f"batches of {result['batch_size']}, compared with open_clip's transform (Pillow) and model in fp32"
    )


def shown(part: Totals) -> list[tuple[str, str]]:
    """Totals as lines of name and value."""
    lines = [
        ("pixel difference", f"{small(part['pixel_mean'])} on average, {part['pixel_max']} at most, of 255"),
        ("cosine of embeddings", f"{apart(part['cosine_mean'])} on average, {apart(part['cosine_worst'])} at worst"),
    ]
    if "same_label" in part:
        share = 100 * part["same_label"] / part["images"]
        lines += [
            ("score difference", f"{small(part['score_off_mean'])} on average, {small(part['score_off_max'])} at most"),
            ("same best label", f"{part['same_label']} of {part['images']} ({share:.1f}%)"),
        ]
    return lines


def apart(value: float, other: float = 1.0) -> str:
    """`value` with four decimals, or as many as show two digits of its distance from `other`: 0.9987, 0.99999982. It
    may also be nan."""
    distance = abs(value - other)
    is_known = distance and math.isfinite(distance)
    return f"{value:.{max(4, 1 - math.floor(math.log10(distance)))}f}" if is_known else f"{value:.4f}"


def small(difference: float) -> str:
    """A difference with three decimals, or with two digits if it is smaller: 0.069, 0.00012, 0."""
    return f"{difference:.3f}" if difference >= 0.01 else f"{difference:.2g}"


def _notes(row: Row) -> str:
    notes = []
    if row.get("label") != row.get("reference_label"):
        notes.append(f"{row['label']}, {row['reference_label']}")
    notes += row["notes"]
    return f" ({'; '.join(notes)})" if notes else ""
