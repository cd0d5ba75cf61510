"""The JSON files of a run directory: each carries a digest of its own bytes, and is checked in full when it is read.

    {"sha256": "<of the file without this key>",
      "rows": ...

A file without the key is of an old version, which wrote none. Knows what `run.json` and `model.json` may hold, and by
which rule they may hold more (`rundir`); knows of no place where a file is.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Mapping
from typing import Any

from clipbatch.config import ANEW, from_flat
from clipbatch.config.labels import LabelSet
from clipbatch.errors import InputError


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


PLAN_3 = _words("format rows identity settings manifest_rows manifest_sha256 passed_over versions duplicates rescored")
"""Keys that `run.json` has had from the beginning of format 3, null or not. Every other one is optional."""
SETTINGS_3 = _words(
    """all_files batch_size columns compile compression cpu_share cpus_per_worker decode_threads decode_timeout decoder
    device embeddings engine gpus hw_decoder_load image_column inputs jpeg_scale labels layout limit max_bad max_bytes
    max_pixels model orientation precision pretrained profile rank read_retries read_threads read_timeout root score
    scores_dtype shard_size shards template top_k uri_column worker_timeout workers world_size"""
)
"""The same for its settings."""
_TOLD_APART = frozenset(("inputs", "labels"))
"""Names of settings and of fields of the identity that hold something else in each."""
IDENTITY_3 = SETTINGS_3 - {*ANEW, "template", "root"} | {"templates", "threshold"}
"""The same for its identity."""
FACTS_3 = _words(
    """name weights_sha256 height width mean std interpolation resize_mode fill logit_scale logit_bias score"""
)
"""The same for `model.json`."""
LATER_IDENTITY = frozenset(("rescored",))
"""Fields of the identity that are optional and no settings."""

_MOST = 2**53
_MOST_SIDE = 2**16
_SEAL = re.compile(rb'\{"sha256": "([0-9a-f]{64})"(,|\})')


class DamagedRecordError(ValueError):
    """A file that does not hold what was written; the message says why, in a few words."""


class OtherVersionError(ValueError):
    """A file that another version wrote; the message names that version, and what shows it."""


def sparse(values: Mapping[str, Any], always: frozenset[str]) -> dict[str, Any]:
    """`values` without what is None and optional: it is not written, and no part of a fingerprint."""
    return {name: value for name, value in values.items() if value is not None or name in always}


def seal(body: bytes) -> bytes:
    """The JSON object `body` with the digest of its bytes as its first key."""
    rest = body[1:] if body.strip() == b"{}" else b"," + body[1:]
    return b'{"sha256": "' + _sha256(body).encode() + b'"' + rest


def unseal(content: bytes) -> tuple[dict[str, Any], str | None]:
    """The object in a JSON file, and the digest that it carries, which is right; None where it carries none.

    Raises: DamagedRecordError.
    """
    found = _SEAL.match(content)
    if found:
        rest = content[found.end() - 1 :]
        body = b"{" + (rest[1:] if rest.startswith(b",") else rest)
        if _sha256(body).encode() != found[1]:
            raise DamagedRecordError("its bytes are not those that were written")
    try:
        value = json.loads(content.decode("utf-8"), parse_constant=_refuse)
    except RecursionError as error:
        raise DamagedRecordError("it is nested too deep") from error
    except ValueError as error:
        raise DamagedRecordError(f"it is no JSON: {str(error).splitlines()[0]}") from error
    if not isinstance(value, dict):
        raise DamagedRecordError(f"it holds {_name(value)}, not an object")
    if found is None and "sha256" in value:
        raise DamagedRecordError("its bytes are not those that were written")
    value.pop("sha256", None)
    return value, found[1].decode() if found else None


def check_format(value: Mapping[str, Any], known: int) -> None:
    """Whether `run.json` is of the format `known`. Raises: DamagedRecordError, OtherVersionError."""
    _keys(value, frozenset(["format"]), value.keys())
    _check(value["format"], _COUNT, "format")
    if value["format"] != known:
        older = "an older" if value["format"] < known else "a newer"
        raise OtherVersionError(f"{older} clipbatch: its format is {value['format']}, and this version knows {known}")


def check_plan(value: Mapping[str, Any]) -> None:
    """Whether `run.json` holds what a plan has to. Raises: DamagedRecordError, OtherVersionError."""
    _keys(value, PLAN_3, frozenset())
    _check(value, _PLAN, "")
    settings, identity = value["settings"], value["identity"]
    _settings(settings)
    _keys(identity, IDENTITY_3, (settings.keys() | LATER_IDENTITY) - _TOLD_APART, "identity.")
    _check(identity, _IDENTITY, "identity.")
    for name in (identity.keys() & settings.keys()) - _TOLD_APART:
        if json.dumps(identity[name]) != json.dumps(settings[name]):
            raise DamagedRecordError(f"identity.{name} and settings.{name} differ")
    _labels(identity)
    rows, per_file = value["rows"], value["manifest_rows"]
    _whole(identity["batch_size"], identity["shard_size"], "identity.shard_size is no multiple of identity.batch_size")
    _whole(identity["shard_size"], per_file, "manifest_rows is no multiple of identity.shard_size")
    if set(value["manifest_sha256"]) != {f"part-{n:05d}.parquet" for n in range(len(value["manifest_sha256"]))}:
        raise DamagedRecordError("manifest_sha256 does not name the files of a manifest")
    if -(-rows // per_file) != len(value["manifest_sha256"]):
        raise DamagedRecordError(f"rows, {rows}, are not those of {len(value['manifest_sha256'])} manifest file(s)")


def check_facts(value: Mapping[str, Any]) -> None:
    """Whether `model.json` holds what facts of a model have to. Raises: as `check_plan`."""
    _keys(value, FACTS_3, frozenset(LATER_FACTS))
    _check(value, {**_FACTS, **LATER_FACTS}, "")
    if len(value["mean"]) != len(value["std"]):
        raise DamagedRecordError("mean and std differ in length")


def _settings(settings: dict[str, Any]) -> None:
    known = from_flat({}).flat()
    _keys(settings, SETTINGS_3, frozenset(known), "settings.")
    try:
        from_flat(settings)
    except InputError as error:
        raise DamagedRecordError(f"settings: {error}") from error


def _labels(identity: Mapping[str, Any]) -> None:
    try:
        groups = LabelSet.from_identity(identity).groups
    except ValueError as error:
        raise DamagedRecordError("its labels, templates and thresholds do not go together") from error
    for labels, group in zip(identity["labels"], groups, strict=True):
        if len(group.phrases) != len(labels["names"]) or not all(prompts for prompts in group.prompts):
            raise DamagedRecordError("a label stands twice in a group, or has no prompt")
    if not groups or len({group.name for group in groups}) != len(groups):
        raise DamagedRecordError("its groups of labels have no names of their own")


def _keys(value: Mapping[str, Any], needed: frozenset[str], known: Any, where: str = "") -> None:
    for name in sorted(needed - value.keys()):
        raise DamagedRecordError(f"{where}{name} is missing")
    for name in sorted(value.keys() - needed - known):
        raise OtherVersionError(f"a newer clipbatch: it has {where}{name}, which this version does not know")


def _whole(of: int, value: int, what: str) -> None:
    if value % of:
        raise DamagedRecordError(what)


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no JSON")


def _name(value: Any) -> str:
    kinds = {list: "a list", str: "a text", bool: "true or false", type(None): "null", dict: "an object"}
    return kinds.get(type(value), "a number")


class _Test:
    """Values of `kind` for which `holds`; what they are, in words."""

    def __init__(
        self, words: str, kind: type | tuple[type, ...], holds: Callable[[Any], bool] = lambda _: True
    ) -> None:
        self.words, self.kind, self.holds = words, kind, holds


def _integers(least: int, most: int) -> _Test:
    return _Test(f"a whole number from {least} to {most}", int, lambda value: least <= value <= most)


class _Every:
    """A list of a `least` number of values, or an object of any keys, each value being an `entry`."""

    def __init__(self, kind: type, entry: Any, least: int = 0) -> None:
        self.kind, self.entry, self.least = kind, entry, least


_TEXT = _Test("a text", str)
_NUMBER = _Test("a number", (int, float), lambda value: -_MOST <= value <= _MOST)
_DIGEST = _Test("a digest", str, lambda value: re.fullmatch("[0-9a-f]{64}", value) is not None)
_SHARE = _Test("a number from -1 to 1", (int, float), lambda value: -1 <= value <= 1)
_NOTHING = _Test("null", type(None))
_COUNT, _SIDE = _integers(0, _MOST), _integers(1, _MOST_SIDE)
_SIZE = _integers(1, _MOST)
_TEXTS = _Every(list, _TEXT, 1)
_PLAN: dict[str, Any] = {
    "rows": _SIZE,
    "identity": _Every(dict, None),
    "settings": _Every(dict, None),
    "manifest_rows": _SIZE,
    "manifest_sha256": _Every(dict, _DIGEST, 1),
    "passed_over": _Every(dict, _COUNT),
    "versions": _Every(dict, _TEXT),
    "duplicates": (_COUNT, _NOTHING),
    "rescored": (_TEXT, _NOTHING),
}
_IDENTITY: dict[str, Any] = {
    "batch_size": _SIZE,
    "shard_size": _SIZE,
    "inputs": _Every(list, _TEXT),
    "labels": _Every(list, {"group": _TEXT, "names": _TEXTS, "phrases": _Every(list, _TEXTS, 1)}, 1),
    "templates": _Every(list, _TEXTS, 1),
    "threshold": _Every(list, (_SHARE, _NOTHING), 1),
    "rescored": _DIGEST,
}
_FACTS: dict[str, Any] = {
    "name": _TEXT,
    "weights_sha256": _DIGEST,
    "height": _SIDE,
    "width": _SIDE,
    "mean": _Every(list, _NUMBER, 1),
    "std": _Every(list, _Test("a number above 0", (int, float), lambda value: 0 < value <= _MOST), 1),
    "interpolation": _TEXT,
    "resize_mode": _Test("shortest, longest or squash", str, ("shortest", "longest", "squash").__contains__),
    "fill": _integers(0, 255),
    "logit_scale": _NUMBER,
    "logit_bias": (_NUMBER, _NOTHING),
    "score": _Test("softmax, sigmoid or cosine", str, ("softmax", "sigmoid", "cosine").__contains__),
}
LATER_FACTS: dict[str, Any] = {"text_sha256": _DIGEST}
"""Facts of the model that are optional, with what each may be."""


def _check(value: Any, shape: Any, where: str) -> None:
    """Raises: DamagedRecordError naming the first place in `value` that is not as `shape` says."""
    if isinstance(shape, Mapping):
        if not isinstance(value, dict) or (where.endswith("]") and value.keys() != shape.keys()):
            raise DamagedRecordError(f"{where or 'it'} is {_name(value)}, not an object with its keys")
        for name in shape.keys() & value.keys():
            _check(value[name], shape[name], f"{where}{'.' * where.endswith(']')}{name}")
    elif isinstance(shape, _Every):
        if not isinstance(value, (dict, list)) or type(value) is not shape.kind or len(value) < shape.least:
            kind = "an object" if shape.kind is dict else "a list"
            raise DamagedRecordError(f"{where} is {_short(value)}, not {kind} of {shape.least} or more")
        if shape.entry is not None:
            for key, entry in value.items() if isinstance(value, dict) else enumerate(value):
                _check(entry, shape.entry, f"{where}[{key!r}]")
    elif isinstance(shape, tuple):
        if not any(_is(value, test) for test in shape):
            raise DamagedRecordError(f"{where} is {_short(value)}, not {' or '.join(test.words for test in shape)}")
    elif not _is(value, shape):
        raise DamagedRecordError(f"{where} is {_short(value)}, not {shape.words}")


def _is(value: Any, test: _Test) -> bool:
    return isinstance(value, test.kind) and not isinstance(value, bool) and test.holds(value)


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 40 else f"{text[:40]}..."
