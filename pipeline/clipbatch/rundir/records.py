"""The JSON files of a run directory: what they may hold. Every value is checked when a file is read.

Each file contains a digest of its own bytes:

    {"sha256": "<of the file without this key>",
      "rows": ...

Old versions wrote files without this key. `layout` explains the rule for fields that newer versions add.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, TypedDict, cast

from clipbatch.config import SettingValues, from_flat, heads, names_of
from clipbatch.config.label_set import SCORING, LabelSet
from clipbatch.config.nesting import JsonObject
from clipbatch.errors import InputError
from clipbatch.rundir.shapes import (
    COUNT,
    DIGEST,
    MAX,
    NOTHING,
    NUMBER,
    SIZE,
    TEXT,
    TEXTS,
    DamagedRecordError,
    Every,
    Kind,
    Shape,
    check,
    integers,
    name_of,
)


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


# The keys that `run.json` has had since format 3 began. They are always written, even as null; all others are optional.
PLAN_3 = _names("format rows identity settings manifest_rows manifest_sha256 passed_over versions duplicates rescored")
# Optional keys of `run.json`.
LATER_PLAN: dict[str, Shape] = {"device": Kind("cpu or cuda", str, ("cpu", "cuda").__contains__), "replacement": TEXT}
# The same for the settings in `run.json`.
SETTINGS_3 = _names(
    """all_files batch_size columns compile compression cpu_share cpus_per_worker decode_threads decode_timeout decoder
    device embeddings engine gpus hw_decoder_load image_column inputs jpeg_scale labels layout limit max_bad max_bytes
    max_pixels model orientation precision pretrained profile rank read_retries read_threads read_timeout root score
    scores_dtype shard_size shards template top_k uri_column worker_timeout workers world_size"""
)
# Names that hold different values in the settings and in the identity.
_NOT_SHARED = frozenset(("inputs", "labels"))
# The same for the identity in `run.json`.
IDENTITY_3 = SETTINGS_3 - {*names_of("invocation", "worker", "placement"), "template", "root"} | {
    "templates",
    "threshold",
}
# The same for `model.json`.
FACTS_3 = _names(
    """name weights_sha256 height width mean std interpolation resize_mode fill logit_scale logit_bias score"""
)
_GROUP = _names("group names phrases")
# Optional fields of the identity that are not settings.
LATER_IDENTITY = frozenset(("rescored", "thresholds", "multiple", "opposites", "scoring", "heads"))

_PLAN: dict[str, Shape] = {
    "rows": SIZE,
    "identity": Every(dict, None),
    "settings": Every(dict, None),
    "manifest_rows": integers(1, 2**40),
    "manifest_sha256": Every(dict, DIGEST, 1),
    "passed_over": Every(dict, COUNT),
    "versions": Every(dict, TEXT),
    "duplicates": (COUNT, NOTHING),
    "rescored": (TEXT, NOTHING),
}
_THRESHOLD = Kind("a number from -1 to 1", (int, float), lambda value: -1 <= value <= 1)
_IDENTITY: dict[str, Shape] = {
    "batch_size": SIZE,
    "shard_size": SIZE,
    "inputs": Every(list, TEXT),
    "labels": Every(list, {"group": TEXT, "names": TEXTS, "phrases": Every(list, TEXTS, 1)}),
    "templates": Every(list, TEXTS),
    "threshold": Every(list, (_THRESHOLD, NOTHING)),
    "thresholds": Every(list, Every(dict, _THRESHOLD), 1),
    "multiple": Every(list, None, 1),
    "opposites": Every(list, None, 1),
    "scoring": integers(SCORING, SCORING),
    "heads": Every(list, Kind("the record of a head", dict, heads.is_record), 1),
    "rescored": DIGEST,
}
_FACTS: dict[str, Shape] = {
    "name": TEXT,
    "weights_sha256": DIGEST,
    "height": integers(1, 2**16),
    "width": integers(1, 2**16),
    "mean": Every(list, NUMBER, 1),
    "std": Every(list, Kind("a number above 0", (int, float), lambda value: 0 < value <= MAX), 1),
    "interpolation": TEXT,
    "resize_mode": Kind("shortest, longest or squash", str, ("shortest", "longest", "squash").__contains__),
    "fill": integers(0, 255),
    "logit_scale": NUMBER,
    "logit_bias": (NUMBER, NOTHING),
    "score": Kind("softmax, sigmoid or cosine", str, ("softmax", "sigmoid", "cosine").__contains__),
}
# Optional facts of the model.
LATER_FACTS: dict[str, Shape] = {
    "text_sha256": DIGEST,
    "decoder": TEXT,
    "compile": Kind("on or off", str, ("on", "off").__contains__),
    "hw_decoder_load": Kind("a number from 0 to 1", (int, float), lambda value: 0 <= value <= 1),
}

# The settings that the first worker may change or fill in, as far as they are in `model.json`.
FITTED = ("decoder", "compile", "hw_decoder_load")

_SEAL = re.compile(rb'\{"sha256": "([0-9a-f]{64})"(,|\})')


class ModelFacts(TypedDict, total=False):
    """The content of `model.json`: what decides the scores of a run, apart from labels and pixels."""

    name: str
    weights_sha256: str
    # Size of the model's input in pixels.
    height: int
    width: int
    # Mean and standard deviation of each channel, for pixels from 0 to 1.
    mean: Sequence[float]
    std: Sequence[float]
    interpolation: str
    resize_mode: str
    fill: int
    logit_scale: float
    logit_bias: float | None
    score: str
    # Digest of `text.npy`. Runs of older versions have none.
    text_sha256: str
    # What the first worker found out on its machine, where it differs from the plan or the plan leaves it open.
    decoder: str
    compile: str
    hw_decoder_load: float


def frozen_choices(facts: ModelFacts) -> ModelFacts:
    """Those of `FITTED` that the first worker of a run froze in `model.json`."""
    return cast(ModelFacts, {name: value for name, value in facts.items() if name in FITTED})


class OtherVersionError(ValueError):
    """Another version wrote the file. The message says which one, and how we know."""


def sparse(values: Mapping[str, Any], always: frozenset[str]) -> JsonObject:
    """`values` without optional fields that are None. Those are not written, and not part of a fingerprint."""
    return {name: value for name, value in values.items() if value is not None or name in always}


def seal(body: bytes) -> bytes:
    """Add the digest of the JSON object `body` to it, as its first key."""
    rest = body[1:] if body.strip() == b"{}" else b"," + body[1:]
    return b'{"sha256": "' + _sha256(body).encode() + b'"' + rest


def unseal(content: bytes) -> tuple[JsonObject, str | None]:
    """Parse a JSON file and check its digest. Returns the object and the digest, which is None if the file has none.

    Raises: DamagedRecordError.
    """
    digest = _SEAL.match(content)
    if digest:
        rest = content[digest.end() - 1 :]
        body = b"{" + (rest[1:] if rest.startswith(b",") else rest)
        if _sha256(body).encode() != digest[1]:
            raise DamagedRecordError("its bytes are not those that were written")
    try:
        value = json.loads(content.decode("utf-8"), parse_constant=_refuse)
    except RecursionError as error:
        raise DamagedRecordError("it is nested too deeply") from error
    except ValueError as error:
        raise DamagedRecordError(f"it is not JSON: {str(error).splitlines()[0]}") from error
    if not isinstance(value, dict):
        raise DamagedRecordError(f"it holds {name_of(value)}, not an object")
    if digest is None and "sha256" in value:
        raise DamagedRecordError("its bytes are not those that were written")
    value.pop("sha256", None)
    return value, digest[1].decode() if digest else None


def digest_of(value: Any) -> str:
    """sha256 of `value` as canonical JSON, in which the order of keys does not matter."""
    return _sha256(json.dumps(value, sort_keys=True, ensure_ascii=True).encode())


def check_format(value: Mapping[str, Any], known: int) -> None:
    """Check that `run.json` has the format `known`. Raises: DamagedRecordError, OtherVersionError."""
    _keys(value, frozenset(["format"]), value.keys())
    check(value["format"], COUNT, "format")
    if value["format"] != known:
        older = "an older" if value["format"] < known else "a newer"
        raise OtherVersionError(f"{older} clipbatch: its format is {value['format']}, and this version knows {known}")


def check_plan(value: Mapping[str, Any]) -> None:
    """Check the content of `run.json`. Raises: DamagedRecordError, OtherVersionError."""
    _keys(value, PLAN_3, LATER_PLAN.keys() | {"fitted"})
    check({name: value[name] for name in _PLAN}, _PLAN, "")
    check(value, _present(LATER_PLAN, value), "")
    if "fitted" in value:
        check(value["fitted"], Every(dict, None), "fitted")
        _keys(value["fitted"], frozenset(), frozenset(FITTED), "fitted.")
        check(value["fitted"], _present(LATER_FACTS, value["fitted"]), "fitted.")
    settings, identity = value["settings"], value["identity"]
    _settings(settings)
    _keys(identity, IDENTITY_3, (settings.keys() | LATER_IDENTITY) - _NOT_SHARED, "identity.")
    check(identity, _present(_IDENTITY, identity), "identity.")
    for name in (identity.keys() & settings.keys()) - _NOT_SHARED:
        if json.dumps(identity[name]) != json.dumps(settings[name]):
            raise DamagedRecordError(f"identity.{name} and settings.{name} differ")
    _labels(identity)
    if (value["rescored"] is None) != ("rescored" not in identity):
        raise DamagedRecordError("only one of rescored and identity.rescored is set")
    rows, per_file = value["rows"], value["manifest_rows"]
    if identity["shard_size"] % identity["batch_size"]:
        raise DamagedRecordError("identity.shard_size is not a multiple of identity.batch_size")
    if per_file % identity["shard_size"]:
        raise DamagedRecordError("manifest_rows is not a multiple of identity.shard_size")
    if set(value["manifest_sha256"]) != {f"part-{n:05d}.parquet" for n in range(len(value["manifest_sha256"]))}:
        raise DamagedRecordError("manifest_sha256 does not name the files of a manifest")
    if -(-rows // per_file) != len(value["manifest_sha256"]):
        raise DamagedRecordError(f"rows is {rows}, which does not fit {len(value['manifest_sha256'])} manifest file(s)")


def parse_facts(content: bytes) -> ModelFacts:
    """Parse the bytes of `model.json`. Raises: DamagedRecordError, OtherVersionError."""
    return check_facts(unseal(content)[0])


def check_facts(value: JsonObject) -> ModelFacts:
    """Check the content of `model.json`. Raises: DamagedRecordError, OtherVersionError."""
    _keys(value, FACTS_3, frozenset(LATER_FACTS))
    check(value, _present({**_FACTS, **LATER_FACTS}, value), "")
    if len(value["mean"]) != len(value["std"]):
        raise DamagedRecordError("mean and std differ in length")
    return cast(ModelFacts, value)


def _settings(settings: SettingValues) -> None:
    known = from_flat({}).flat()
    _keys(settings, SETTINGS_3, frozenset(known), "settings.")
    try:
        from_flat(settings)
    except InputError as error:
        raise DamagedRecordError(f"settings: {error}") from error


def _labels(identity: Mapping[str, Any]) -> None:
    try:
        groups = LabelSet.from_identity(identity).groups
    except (ValueError, TypeError) as error:
        raise DamagedRecordError("its labels, templates and thresholds do not match") from error
    for labels, group in zip(identity["labels"], groups, strict=True):
        _keys(labels, _GROUP, frozenset(), "identity.labels.")
        if len(group.phrases) != len(labels["names"]) or not all(prompts for prompts in group.prompts):
            raise DamagedRecordError("a label appears twice in a group, or has no prompt")
        if not isinstance(group.multiple, bool) or not group.thresholds.keys() <= group.phrases.keys():
            raise DamagedRecordError("its labels, templates and thresholds do not match")
        if group.opposites is not None:
            check(list(group.opposites.values()), Every(list, TEXTS, 1), "identity.opposites")
    has_others = identity.get("caption_column") is not None or identity["embeddings"] or identity.get("heads")
    if not (groups or has_others) or len({group.name for group in groups}) != len(groups):
        raise DamagedRecordError("it has no groups of labels, or two with the same name")


def _keys(value: Mapping[str, Any], needed: frozenset[str], known: Any, where: str = "") -> None:
    for name in sorted(needed - value.keys()):
        raise DamagedRecordError(f"{where}{name} is missing")
    for name in sorted(value.keys() - needed - known):
        raise OtherVersionError(f"a newer clipbatch: it has {where}{name}, which this version does not know")


def _present(shape: Mapping[str, Shape], value: Mapping[str, Any]) -> dict[str, Shape]:
    """`shape` without the optional keys that `value` lacks."""
    return {name: each for name, each in shape.items() if name in value}


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON")
