"""The run directory: what is where, which shards are done, and what makes a run the same run.

    run.json                    the frozen `Plan`
    manifest/part-*.parquet     row_id, uri, root, span, and the columns that the input carries
    model.json, text.npy        facts of the loaded model and its label features, frozen by the first worker
    copies/                     run.json, model.json and text.npy once more (`copies`)
    parts/part-*.parquet        one file a shard; there or not there is the only record of what is done

Old runs go on. The rule for a field that is added to the identity, to `Plan` or to the facts of the model after format
3 was begun: its default is None, which means "as before"; absent and None are the same, and None is not written, so
that a run without it keeps its fingerprint. `records` has the names that are always written; whatever is not among
them is optional, without more ado. `FORMAT` stays, a fingerprint is computed with the run's own format, and a key that
is not known is refused as a newer version's. Columns follow the run's plan, never the version of the code.

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
from clipbatch.config.label_set import LabelSet
from clipbatch.errors import InputError, OtherRunError
from clipbatch.rundir import copies, records
from clipbatch.storage.atomic import as_json, publish, sync_folder, temp_name, writing_failed
from clipbatch.storage.paths import AnyPath, StorePath, as_path, list_names, parquet_source

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
    format: int = FORMAT
    """In which the run was begun."""
    sha256: str | None = dataclasses.field(default=None, compare=False)
    """Which `run.json` carries; None where it has not been written, or by an old version, which wrote no digests."""

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
        identity = records.sparse(self.identity, records.IDENTITY_3)
        return digest_of({**identity, "manifest": self.manifest_sha256, "format": self.format})

    @property
    def labels(self) -> LabelSet:
        return LabelSet.from_identity(self.identity)

    def run_settings(self) -> Settings:
        return from_flat({"pixels": None} | self.settings)

    def shard_rows(self, shard: int) -> range:
        """The row_ids of `shard`."""
        return range(shard * self.shard_size, min((shard + 1) * self.shard_size, self.rows))

    def file_rows(self, number: int) -> int:
        """Rows in file `number` of the manifest."""
        return min(self.manifest_rows, self.rows - number * self.manifest_rows)

    def content(self) -> bytes:
        """What `run.json` is to hold, with its digest."""
        value = dataclasses.asdict(self) | {"sha256": None}
        value["identity"] = records.sparse(self.identity, records.IDENTITY_3)
        value["settings"] = records.sparse(self.settings, records.SETTINGS_3)
        return records.seal(as_json(records.sparse(value, records.PLAN_3)))

    @staticmethod
    def of(content: bytes) -> Plan:
        """The plan in `content`. Raises: DamagedRecordError, OtherVersionError."""
        value, sha256 = records.unseal(content)
        records.check_format(value, FORMAT)
        records.check_plan(value)
        return Plan(**value, sha256=sha256)


class RunDir:
    """A run directory at `path`, a local one or a url in a store; making the object touches nothing."""

    def __init__(self, path: str | os.PathLike[str] | StorePath) -> None:
        self.path = as_path(path)
        self.plan_file = self.path / "run.json"
        self.model_file = self.path / "model.json"
        self.manifest = self.path / "manifest"
        self.parts = self.path / "parts"
        self._read: tuple[bytes, Plan] | None = None

    def exists(self) -> bool:
        return self.plan_file.is_file()

    def plan(self) -> Plan:
        """Raises: InputError where there is no plan, one of another version, or a damaged one, with the remedy."""
        content = copies.read(self.path, self.plan_file.name)
        if content is None:
            inside = sorted(self.path.glob("increment-*")) if not isinstance(self.path, StorePath) else []
            remedy = f"it is a dataset, so name a run in it: {inside[-1]}" if inside else "start one with clipbatch run"
            raise InputError(f"{self.path} is not a run directory: it has no run.json; {remedy}")
        if self._read is None or self._read[0] != content:
            plan = copies.parsed(self.path, self.plan_file.name, content, Plan.of)
            if plan.sha256 is None:
                _check_rows(self, plan)
            self._read = content, plan
        return self._read[1]

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
        self.freeze(self.plan_file.name, plan.content())
        if (standing := self.plan()).sha256 is not None:
            copies.make(self.path, self.plan_file.name)
        return standing

    def freeze_model(self, facts: Mapping[str, Any]) -> str:
        """Record the loaded model's facts, or compare them with what the first worker recorded.

        Returns the fingerprint that every part of this run carries: the plan's and the model's together.
        Raises: OtherRunError naming the fact that differs.
        """
        facts = json.loads(json.dumps(records.sparse(facts, records.FACTS_3)))
        if (frozen := self.model_facts()) is None:
            old = self.plan().sha256 is None
            self.freeze(self.model_file.name, as_json(facts) if old else records.seal(as_json(facts)))
            frozen = self.model_facts() or {}
            if not old:
                copies.make(self.path, self.model_file.name)
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
        """What `model.json` holds; None where no worker has loaded the model.

        Raises: InputError where it is damaged, with the remedy."""
        content = copies.read(self.path, self.model_file.name)
        return None if content is None else copies.parsed(self.path, self.model_file.name, content, facts_of)

    def fingerprint(self) -> str | None:
        """Of the plan and the model together; None before a worker has loaded the model."""
        facts = self.model_facts()
        return None if facts is None else digest_of({"plan": self.plan().fingerprint, "model": facts})

    def part(self, shard: int, shards: int) -> AnyPath:
        return self.parts / part_name(shard, shards)

    def make_parts(self) -> None:
        """Make the folder of the parts, also where somebody removed it."""
        if isinstance(self.parts, StorePath):
            return
        try:
            self.parts.mkdir(exist_ok=True)
        except OSError as error:
            raise writing_failed(self.parts, error) from error

    def remove_folder_of_part(self, shard: int, plan: Plan) -> None:
        """Remove an empty folder that has the name of a part, which no file could get."""
        path = self.part(shard, plan.shards)
        try:
            if not isinstance(path, StorePath) and path.is_dir() and not path.is_symlink():
                path.rmdir()
        except OSError as error:
            raise writing_failed(path, error) from error

    def done(self, plan: Plan) -> set[int]:
        """Shards that have a part file: one directory listing."""
        found, shards = list_names(self.parts), plan.shards
        return {shard for shard in range(shards) if part_name(shard, shards) in found}

    def check_same(self, plan: Plan, identity: Mapping[str, Any]) -> None:
        """Raises: OtherRunError naming the first field in which `identity` is not the plan's."""
        _same(
            plan.identity,
            identity,
            f"{self.path} belongs to a run with other settings",
            "choose another --out, give the same settings, or --overwrite",
        )


def facts_of(content: bytes) -> dict[str, Any]:
    """The facts of the model in `content`. Raises: DamagedRecordError, OtherVersionError."""
    facts, _ = records.unseal(content)
    records.check_facts(facts)
    return facts


def part_name(shard: int, shards: int) -> str:
    """The part's file name in a run of `shards` shards; sorted, names are in the order of shards."""
    return f"part-{shard:0{max(5, len(str(shards - 1)))}d}.parquet"


def digest_of(value: Any) -> str:
    """sha256 of `value` as canonical JSON, in which the order of keys does not count."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, ensure_ascii=True).encode()).hexdigest()


def _check_rows(run: RunDir, plan: Plan) -> None:
    """Of a run that carries no digests: whether the files of its manifest have the rows that `run.json` says.

    Raises: InputError where they do not, or cannot be read.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    for number, name in enumerate(sorted(plan.manifest_sha256)):
        path = run.manifest / name
        try:
            rows = pq.read_metadata(parquet_source(path)).num_rows
        except (OSError, pa.ArrowException) as error:
            what = "it is gone" if isinstance(error, FileNotFoundError) else str(error).splitlines()[0]
            raise InputError(f"cannot read the manifest {path}: {what}; restore it from a backup") from error
        if rows != plan.file_rows(number):
            what = f"by it the manifest file {name} has {plan.file_rows(number)} rows, and it has {rows}"
            raise copies.damaged(run.path, run.plan_file.name, what)


def _same(frozen: Mapping[str, Any], given: Mapping[str, Any], what: str, remedy: str) -> None:
    if differs := records.difference(frozen, given):
        raise OtherRunError(f"{what}: {differs}; {remedy}")
