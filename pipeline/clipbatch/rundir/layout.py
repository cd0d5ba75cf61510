"""The run directory: what is where, which shards are done, and what makes a run the same run.

    run.json                    the frozen `Plan`
    manifest/part-*.parquet     row_id, uri, root, span, and the columns that the input carries
    model.json, text.npy        facts of the loaded model and its label features, frozen by the first worker
    parts/part-*.parquet        one file a shard; there or not there is the only record of what is done

Knows nothing of images or models.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from clipbatch.config import Settings, from_flat
from clipbatch.config.labels import LabelSet
from clipbatch.errors import InputError, OtherRunError
from clipbatch.storage.atomic import as_json, publish, sync_folder, temp_name, writing_failed
from clipbatch.storage.paths import Place, StorePath, names, place

FORMAT = 3
"""Version of the run directory's layout and output schema; part of every fingerprint."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What `run.json` holds. Frozen before the first image is read, and the same for every worker."""

    rows: int
    identity: dict[str, Any]
    """Every field that decides what the output is; two runs are the same run if these agree."""
    settings: dict[str, Any]
    """All settings by name, as resolved on the planning machine."""
    manifest_rows: int
    """Rows in a manifest file, a multiple of the shard size."""
    manifest_sha256: dict[str, str]
    """Digest of each manifest file, by name."""
    passed_over: dict[str, int]
    """Files of the input folders that were not taken, by suffix."""
    versions: dict[str, str]
    duplicates: int | None = None
    """Rows whose uri an earlier row has; None: not counted."""
    rescored: str | None = None
    """The run directory whose embeddings are scored in place of images: a url or an absolute path."""

    @property
    def shard_size(self) -> int:
        return int(self.identity["shard_size"])

    @property
    def batch_size(self) -> int:
        return int(self.identity["batch_size"])

    @property
    def pixels(self) -> int | None:
        """The rules by which files become pixels; None: those from before they had a number."""
        return self.identity.get("pixels")

    @property
    def shards(self) -> int:
        return -(-self.rows // self.shard_size)

    @property
    def fingerprint(self) -> str:
        return digest_of({**self.identity, "manifest": self.manifest_sha256, "format": FORMAT})

    @property
    def labels(self) -> LabelSet:
        return LabelSet.from_identity(self.identity)

    def run_settings(self) -> Settings:
        return from_flat({"pixels": None} | self.settings)

    def shard_rows(self, shard: int) -> range:
        """The row_ids of `shard`."""
        return range(shard * self.shard_size, min((shard + 1) * self.shard_size, self.rows))


class RunDir:
    """A run directory at `path`, a local one or a url in a store; making the object touches nothing."""

    def __init__(self, path: str | os.PathLike[str] | StorePath) -> None:
        self.path = place(path)
        self.plan_file = self.path / "run.json"
        self.model_file = self.path / "model.json"
        self.manifest = self.path / "manifest"
        self.parts = self.path / "parts"

    def exists(self) -> bool:
        return self.plan_file.is_file()

    def plan(self) -> Plan:
        """Raises: InputError where there is no plan, or one of another version."""
        found = self._read_json(self.plan_file)
        if found is None:
            inside = sorted(self.path.glob("increment-*")) if not isinstance(self.path, StorePath) else []
            remedy = f"it is a dataset, so name a run in it: {inside[-1]}" if inside else "start one with clipbatch run"
            raise InputError(f"{self.path} is not a run directory: it has no run.json; {remedy}")
        if found.pop("format", None) != FORMAT:
            raise InputError(f"{self.plan_file} is of another clipbatch version: finish it with that one")
        return Plan(**found)

    def plan_of(self, fingerprint: str) -> Plan:
        """The plan, if it is still the one with `fingerprint`. Raises: OtherRunError where it is not."""
        if self.exists() and (plan := self.plan()).fingerprint == fingerprint:
            return plan
        if not self.exists():
            raise OtherRunError(
                f"{self.plan_file} is gone, so nothing more is written: {self.path} has been taken by another run "
                "(--overwrite), or the folder has gone: put it back, or choose another --out"
            )
        raise OtherRunError(
            f"{self.path} has been taken by another run since this one began (--overwrite, or other settings before "
            "the first image): nothing more is written; choose another --out"
        )

    def freeze_plan(self, plan: Plan) -> Plan:
        """Publish `run.json`, from when on the run exists, unless it is there already; returns the plan that stands."""
        self.freeze(self.plan_file.name, as_json(dataclasses.asdict(plan) | {"format": FORMAT}))
        return self.plan()

    def freeze_model(self, facts: Mapping[str, Any]) -> str:
        """Record the loaded model's facts, or compare them with what the first worker recorded.

        Returns the fingerprint that every part of this run carries: the plan's and the model's together.
        Raises: OtherRunError naming the fact that differs.
        """
        facts = json.loads(json.dumps(facts))
        frozen = json.loads(self.freeze(self.model_file.name, json.dumps(facts, indent=2).encode()))
        _same(
            frozen, facts, f"{self.path} was begun with another model", "use the same weights, or choose another --out"
        )
        return self.fingerprint() or ""

    def frozen(self, name: str) -> bytes | None:
        """What the file `name` holds; None where it is not there yet."""
        with contextlib.suppress(FileNotFoundError):
            return (self.path / name).read_bytes()
        return None

    def freeze(self, name: str, content: bytes) -> bytes:
        """Write the file `name` unless it is there already; returns what it holds. The first of many writers wins.

        In a store, two that write at the same instant may both be told that they were first; `plan_of` then stops the
        one whose plan does not stand, and what workers freeze is the same for all workers of a plan.
        """
        target = self.path / name
        if isinstance(target, StorePath):
            if not target.exists():
                target.write_bytes(content)
            return target.read_bytes()
        if not target.exists():
            scratch = temp_name(target.with_name(f"{name}.scratch"))
            with publish(scratch) as file:
                file.write(content)
            try:
                os.link(scratch, target)  # exactly one of many workers succeeds
            except FileExistsError:
                pass
            except OSError:  # no hard links on this file system
                os.replace(scratch, target)
            finally:
                scratch.unlink(missing_ok=True)
            sync_folder(target.parent)
        return target.read_bytes()

    def model_facts(self) -> dict[str, Any] | None:
        return self._read_json(self.model_file)

    def fingerprint(self) -> str | None:
        """Of the plan and the model together; None before a worker has loaded the model."""
        facts = self.model_facts()
        return None if facts is None else digest_of({"plan": self.plan().fingerprint, "model": facts})

    def part(self, shard: int, shards: int) -> Place:
        return self.parts / part_name(shard, shards)

    def make_parts(self) -> None:
        """Make the folder of the parts, also where somebody removed it."""
        if isinstance(self.parts, StorePath):
            return
        try:
            self.parts.mkdir(exist_ok=True)
        except OSError as error:
            raise writing_failed(self.parts, error) from error

    def remove_part(self, shard: int, plan: Plan) -> None:
        """Remove what stands in the place of a part, whatever it is."""
        path = self.part(shard, plan.shards)
        try:
            if not isinstance(path, StorePath) and path.is_dir() and not path.is_symlink():
                path.rmdir()
            else:
                path.unlink(missing_ok=True)
        except OSError as error:
            raise writing_failed(path, error) from error

    def done(self, plan: Plan) -> set[int]:
        """Shards that have a part file: one directory listing."""
        found, shards = names(self.parts), plan.shards
        return {shard for shard in range(shards) if part_name(shard, shards) in found}

    def check_same(self, plan: Plan, identity: Mapping[str, Any]) -> None:
        """Raises: OtherRunError naming the first field in which `identity` is not the plan's."""
        _same(
            plan.identity,
            identity,
            f"{self.path} belongs to a run with other settings",
            "choose another --out, give the same settings, or --overwrite",
        )

    def _read_json(self, path: Place) -> dict[str, Any] | None:
        try:
            found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        except (FileNotFoundError, NotADirectoryError):
            return None
        except (OSError, ValueError) as error:
            raise InputError(f"cannot read {path}: {error}; restore it, or start again with --overwrite") from error
        return found


def part_name(shard: int, shards: int) -> str:
    """The part's file name in a run of `shards` shards; sorted, names are in the order of shards."""
    return f"part-{shard:0{max(5, len(str(shards - 1)))}d}.parquet"


def digest_of(value: Any) -> str:
    """sha256 of `value` as canonical JSON, in which the order of keys does not count."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, ensure_ascii=True).encode()).hexdigest()


def _same(frozen: Mapping[str, Any], given: Mapping[str, Any], what: str, remedy: str) -> None:
    for name in sorted(frozen.keys() | given.keys()):
        ours, theirs = (_comparable(side.get(name)) for side in (frozen, given))
        if ours != theirs:
            ours, theirs = (_short(side, other) for side, other in ((ours, theirs), (theirs, ours)))
            raise OtherRunError(f"{what}: {name} is {theirs} now and {ours} there; {remedy}")


def _comparable(value: Any) -> Any:
    return json.dumps(value)


def _short(text: str, other: str) -> str:
    """`text` cut to a line's worth from where it begins to differ from `other`."""
    if len(text) <= 80:
        return text
    differ = next((at for at, (a, b) in enumerate(zip(text, other, strict=False)) if a != b), 0)
    at = max(0, differ - 20)
    return f"{'...' if at else ''}{text[at : at + 60]}... ({len(text)} characters)"
