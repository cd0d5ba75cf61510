"""Puts a status into words: lines of a name and a value."""

from __future__ import annotations

from clipbatch.runs.status import AtWork, Status
from clipbatch.types import counts_text
from clipbatch.workers.words import number, seconds, share

_MAX_SHOWN = 20


def text(status: Status) -> str:
    """`status` in a line for each fact that is known."""
    facts: dict[str, object] = {
        "rows": status["rows"],
        "rows_done": status["rows_done"],
        "parts": status["parts"],
        "parts_done": status["parts_done"],
        "complete": status["complete"],
        "model": status["model"],
        "fingerprint": status["fingerprint"],
    }
    if "increments" in status:
        unfinished = [each["folder"] for each in status["increments"] if not each["complete"]]
        facts["increments"] = len(status["increments"])
        if unfinished:
            facts["unfinished"] = _some(unfinished)
    facts["images"] = _images(status)
    if status["images_per_s"] is not None:
        facts["rate now"] = f"{number(status['images_per_s'])} images/s"
    if status["images_per_s_overall"] is not None:
        facts["rate over all"] = f"{number(status['images_per_s_overall'])} images/s"
    if status["left_s"] is not None:
        facts["time left"] = seconds(status["left_s"])
    facts["last activity"] = status["last_activity"] or "none"
    if status["parts_failed"]:
        facts["failed parts"] = f"{_some(list(map(str, status['parts_failed'])))}: workers have died over them"
    facts["at work"] = _some([_worker(entry) for entry in status["at_work"]], f"\n{'':14} ") or "nobody that is known"
    facts["next"] = status["next_step"]
    return "\n".join(f"{name:14} {value}" for name, value in facts.items())


def _images(status: Status) -> str:
    """The rows by status, with the share of bad ones."""
    counts = status["status"]
    total = sum(counts.values())
    if not total:
        return "none counted" if status["parts_done"] else "none yet"
    bad = total - counts.get("ok", 0)
    left = status["parts_done"] - status["parts_counted"]
    where = f", without {left} parts that are not counted yet" if left else ""
    return f"{share(bad, total) if bad else 'none'} bad: {counts_text(counts)}{where}"


def _worker(entry: AtWork) -> str:
    rank = f", rank {entry['rank']} of {entry['world_size']}" if entry["world_size"] > 1 else ""
    devices = ", ".join(entry["devices"]) or "no device yet"
    rate = f", {number(entry['images_per_s'])}/s" if entry["images_per_s"] is not None else ""
    bound = f", bound by {entry['bottleneck']}" if entry["bottleneck"] else ""
    bad = sum(entry["bad"].values())
    return (
        f"{entry['host']}, pid {entry['pid']}{rank} on {devices} since {entry['since']}: {entry['rows']} images, "
        f"{bad} bad{rate}{bound}; heard of {seconds(entry['heard_s_ago'])} ago"
    )


def _some(words: list[str], between: str = ", ") -> str:
    more = [f"and {len(words) - _MAX_SHOWN} more, which --json lists"] if len(words) > _MAX_SHOWN else []
    return between.join([*words[:_MAX_SHOWN], *more])
