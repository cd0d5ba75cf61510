"""The plan of a run, as `run.json` holds it: what is to be labelled, how, and in which shards."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from clipbatch.config import Settings, SettingValues, from_flat
from clipbatch.config.heads import Head, from_identity
from clipbatch.config.label_set import LabelSet
from clipbatch.config.nesting import JsonObject
from clipbatch.rundir import records
from clipbatch.rundir.records import ModelFacts
from clipbatch.storage.atomic import as_json

# Version of the run directory's layout and of the output schema. Part of every fingerprint.
FORMAT = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """The content of `run.json`. It is frozen before the first image is read, and the same for every worker."""

    rows: int
    # All fields that decide the output. Two runs are the same run if these are equal.
    identity: JsonObject
    # All settings by name, as resolved on the machine that planned the run.
    settings: SettingValues
    # Rows per manifest file, a multiple of the shard size.
    manifest_rows: int
    # Digest of each manifest file, by name.
    manifest_sha256: dict[str, str]
    # Number of input files that were left out, by suffix, and notes for the user in parentheses.
    passed_over: dict[str, int]
    versions: dict[str, str]
    # Number of rows whose uri an earlier row has; None: not counted.
    duplicates: int | None = None
    # The run directory whose saved embeddings are scored instead of images: a url or an absolute path.
    rescored: str | None = None
    # What the first worker of an earlier increment changed or measured, and this run takes over; None: nothing.
    fitted: ModelFacts | None = None
    # For which device the settings were chosen: cpu or cuda. None: an older version planned the run.
    device: str | None = None
    # A random id, if the plan has replaced a run by `--overwrite`. It tells workers of that run that theirs has ended,
    # even if the plans are the same.
    replacement: str | None = None
    # The format in which the run was created.
    format: int = FORMAT
    # Digest in `run.json`. None if that has not been written yet, or was written by an old version without digests.
    sha256: str | None = dataclasses.field(default=None, compare=False)

    @property
    def shard_size(self) -> int:
        return int(self.identity["shard_size"])

    @property
    def batch_size(self) -> int:
        return int(self.identity["batch_size"])

    @property
    def pixels(self) -> int | None:
        """Version of the rules that turn files into pixels; None: the rules from before they had a number."""
        return self.identity.get("pixels")

    @property
    def shards(self) -> int:
        return -(-self.rows // self.shard_size)

    @property
    def fingerprint(self) -> str:
        identity = records.sparse(self.identity, records.IDENTITY_3)
        return records.digest_of({**identity, "manifest": self.manifest_sha256, "format": self.format})

    @property
    def labels(self) -> LabelSet:
        return LabelSet.from_identity(self.identity)

    @property
    def heads(self) -> tuple[Head, ...]:
        return from_identity(self.identity)

    def run_settings(self) -> Settings:
        return from_flat({"pixels": None} | self.settings)

    def shard_rows(self, shard: int) -> range:
        """The row_ids of `shard`."""
        return range(shard * self.shard_size, min((shard + 1) * self.shard_size, self.rows))

    def file_rows(self, number: int) -> int:
        """Number of rows in file `number` of the manifest."""
        return min(self.manifest_rows, self.rows - number * self.manifest_rows)

    def content(self) -> bytes:
        """The bytes of `run.json`, with its digest."""
        value = dataclasses.asdict(self) | {"sha256": None}
        value["identity"] = records.sparse(self.identity, records.IDENTITY_3)
        value["settings"] = records.sparse(self.settings, records.SETTINGS_3)
        return records.seal(as_json(records.sparse(value, records.PLAN_3)))

    @staticmethod
    def of(content: bytes) -> Plan:
        """Parse the bytes of `run.json`. Raises: DamagedRecordError, OtherVersionError."""
        value, sha256 = records.unseal(content)
        records.check_format(value, FORMAT)
        records.check_plan(value)
        return Plan(**value, sha256=sha256)
