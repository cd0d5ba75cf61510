"""The run directory: where its files are, which shards are done, and whether two runs are the same run.

    run.json                    the frozen `Plan`
    manifest/part-*.parquet     row_id, uri, root, span, and the columns copied from the input
    model.json, text.npy        facts of the loaded model, and its label features; written by the first worker
    copies/                     second copies of run.json, model.json and text.npy (`copies`)
    parts/part-*.parquet        one file per shard. A shard is done if its file exists; there is no other record.

Newer versions finish the runs of older ones. So a field that is added to the identity, to `Plan` or to the model's
facts has the default None, which means "as before". None is the same as a missing field and is not written, so old runs
keep their fingerprints. `records` lists the names that are always written; all others are optional. `FORMAT` does not
change, and a fingerprint is computed with the run's own format. An unknown key is refused, since a newer version wrote
it. The plan decides which columns a run has, never the version of the code.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from clipbatch.errors import InputError, OtherRunError
from clipbatch.rundir import copies, records
from clipbatch.rundir.differences import difference
from clipbatch.rundir.frozen_plan import Plan
from clipbatch.rundir.records import ModelFacts
from clipbatch.storage.atomic import as_json, publish, sync_folder, temp_name, writing_failed
from clipbatch.storage.paths import AnyPath, StorePath, as_path, list_names, parquet_source

if TYPE_CHECKING:
    import pyarrow as pa

# The name of a run directory in a dataset of increments.
INCREMENT = re.compile(r"increment-(0[0-9]{4}|[1-9][0-9]{4,})")
_REPLACED = "another run has replaced this one in {} (--overwrite, {}), so this run stops writing: choose another --out"


class RunDir:
    """The run directory at `path`, which is local or a url in a store. Creating the object does not touch the disk."""

    def __init__(self, path: str | os.PathLike[str] | StorePath) -> None:
        self.path = as_path(path)
        self.plan_file = self.path / "run.json"
        self.model_file = self.path / "model.json"
        self.manifest = self.path / "manifest"
        self.parts = self.path / "parts"
        self._read: tuple[bytes, Plan] | None = None

    def exists(self) -> bool:
        return self.plan_file.is_file()

    def is_begun(self) -> bool:
        """Whether there is a plan. Raises: InputError with the remedy if it is missing and its copy is there."""
        return copies.read(self.path, self.plan_file.name) is not None

    def plan(self) -> Plan:
        """Read the plan. Raises: InputError with the remedy if it is missing, damaged, or of another version."""
        content = copies.read(self.path, self.plan_file.name)
        if content is None:
            beside = sorted(self.path.glob("increment-*")) if not isinstance(self.path, StorePath) else []
            runs = [path for path in beside if INCREMENT.fullmatch(path.name)]
            remedy = f"it is a dataset, so name a run in it: {runs[-1]}" if runs else "start one with clipbatch run"
            raise InputError(f"{self.path} is not a run directory: it has no run.json; {remedy}")
        return self._parsed(content)

    def _parsed(self, content: bytes) -> Plan:
        """The plan in the bytes of `run.json`. Raises: as `plan`."""
        if self._read is None or self._read[0] != content:
            plan = copies.parsed(self.path, self.plan_file.name, content, Plan.of)
            if plan.sha256 is None:
                _check_rows(self, plan)
            self._read = content, plan
        return self._read[1]

    def plan_of(self, fingerprint: str) -> Plan:
        """Read the plan, and check that it still has this fingerprint. Raises: OtherRunError if it does not."""
        content = copies.present(self.path, self.plan_file.name)
        if content is None:
            raise OtherRunError(
                f"{self.plan_file} is missing, so this run stops writing: another run has replaced this one in "
                f"{self.path} (--overwrite), or the folder has gone: put it back, or choose another --out"
            )
        if (plan := self._parsed(content)).fingerprint == fingerprint:
            return plan
        raise OtherRunError(_REPLACED.format(self.path, "or other settings before the first image"))

    def check_stands(self, plan: Plan, fingerprint: str) -> None:
        """Check that `plan`, whose fingerprint is given, is still that of the run. Raises: OtherRunError if not."""
        if self.plan_of(fingerprint).replacement != plan.replacement:
            raise OtherRunError(_REPLACED.format(self.path, "with the same settings"))

    def freeze_plan(self, plan: Plan) -> Plan:
        """Create `run.json` unless it exists. From then on the run exists. Returns the plan that `run.json` holds."""
        self.freeze(self.plan_file.name, plan.content())
        if (frozen := self.plan()).sha256 is not None:
            copies.make(self.path, self.plan_file.name)
        return frozen

    def freeze_model(self, facts: Mapping[str, Any]) -> str:
        """Write the facts of the loaded model, or compare them with those that the first worker wrote.

        Returns the fingerprint of plan and model, which is in every part of the run.
        Raises: OtherRunError naming the fact that differs.
        """
        facts = json.loads(json.dumps(records.sparse(facts, records.FACTS_3)))
        if (frozen := self.model_facts()) is None:
            has_digests = self.plan().sha256 is not None
            self.freeze(self.model_file.name, records.seal(as_json(facts)) if has_digests else as_json(facts))
            frozen = self.model_facts() or {}
            if has_digests:
                copies.make(self.path, self.model_file.name)
        _check_equal(
            frozen, facts, f"{self.path} was begun with another model", "use the same weights, or choose another --out"
        )
        return self.fingerprint() or ""

    def frozen(self, name: str) -> bytes | None:
        """The bytes of the file `name`; None if it does not exist yet."""
        with contextlib.suppress(FileNotFoundError):
            return (self.path / name).read_bytes()
        return None

    def freeze(self, name: str, content: bytes) -> bytes:
        """Create the file `name` unless it exists. Returns its bytes. Of several writers, the first one wins.

        In a store, two writers at the same instant may both believe that they were first. If they are planners,
        `plan_of` later stops the one whose plan was overwritten. If they are workers, both write the same bytes.
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

    def model_facts(self) -> ModelFacts | None:
        """The content of `model.json`; None if no worker has loaded the model yet.

        Raises: InputError with the remedy if the file is damaged.
        """
        content = copies.read(self.path, self.model_file.name)
        return None if content is None else copies.parsed(self.path, self.model_file.name, content, records.parse_facts)

    def fingerprint(self) -> str | None:
        """The fingerprint of plan and model; None if no worker has loaded the model yet."""
        facts = self.model_facts()
        return None if facts is None else records.digest_of({"plan": self.plan().fingerprint, "model": facts})

    def part(self, shard: int, shards: int) -> AnyPath:
        return self.parts / part_name(shard, shards)

    def manifest_schema(self) -> pa.Schema:
        """The columns of the manifest. Raises: InputError if it cannot be read."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        path = self.manifest / "part-00000.parquet"
        try:
            return pq.read_schema(parquet_source(path))
        except (OSError, pa.ArrowException) as error:
            raise InputError(f"cannot read the manifest {path}: {error}; restore it from a backup") from error

    def make_parts(self) -> None:
        """Create the folder of the parts if it does not exist."""
        if isinstance(self.parts, StorePath):
            return
        try:
            self.parts.mkdir(exist_ok=True)
        except OSError as error:
            raise writing_failed(self.parts, error) from error

    def remove_folder_of_part(self, shard: int, plan: Plan) -> None:
        """Remove an empty folder with the name of a part: the part could not be published there."""
        path = self.part(shard, plan.shards)
        try:
            if not isinstance(path, StorePath) and path.is_dir() and not path.is_symlink():
                path.rmdir()
        except OSError as error:
            raise writing_failed(path, error) from error

    def done(self, plan: Plan) -> set[int]:
        """The shards with a part file. Lists the folder once."""
        names, shards = list_names(self.parts), plan.shards
        return {shard for shard in range(shards) if part_name(shard, shards) in names}

    def check_same(self, plan: Plan, identity: Mapping[str, Any], *, may_overwrite: bool = True) -> None:
        """Raises: OtherRunError naming the first field in which `identity` differs from the plan's.

        may_overwrite: whether `--overwrite` is a remedy.
        """
        _check_equal(
            plan.identity,
            identity,
            f"{self.path} belongs to a run with other settings",
            "choose another --out, give the same settings, or --overwrite"
            if may_overwrite
            else "choose another --out, or give the same settings",
        )


def part_name(shard: int, shards: int) -> str:
    """File name of a part in a run of `shards` shards. Sorted by name, parts are in the order of shards."""
    return f"part-{shard:0{max(5, len(str(shards - 1)))}d}.parquet"


def _check_rows(run: RunDir, plan: Plan) -> None:
    """For a run without digests: check that the manifest files have the number of rows that `run.json` implies.

    Raises: InputError if they do not, or cannot be read.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    for number, name in enumerate(sorted(plan.manifest_sha256)):
        path = run.manifest / name
        try:
            rows = pq.read_metadata(parquet_source(path)).num_rows
        except (OSError, pa.ArrowException) as error:
            what = "it is missing" if isinstance(error, FileNotFoundError) else str(error).splitlines()[0]
            raise InputError(f"cannot read the manifest {path}: {what}; restore it from a backup") from error
        if rows != plan.file_rows(number):
            what = f"it expects {plan.file_rows(number)} rows in the manifest file {name}, which has {rows}"
            raise copies.damaged(run.path, run.plan_file.name, what)


def _check_equal(frozen: Mapping[str, Any], current: Mapping[str, Any], what: str, remedy: str) -> None:
    if differs := difference(frozen, current):
        raise OtherRunError(f"{what}: {differs}; {remedy}")
