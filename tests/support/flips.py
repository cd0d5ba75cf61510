"""Single bits that flip in the files of a finished run: what notices it, and what the remedy that is printed leaves.

A flip is tried twice. First `verify` is asked, and its remedy followed to the letter; then the run has to be what it
was, byte for byte. The second time somebody works with the damaged run at once: they are refused, or get what an
undisturbed run gives.
"""

import random
import re
import shlex
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tests.support.heads import DEMO_WIDTH, random_layers, save_head
from tests.support.old_run import FIXTURE

COMMAND = (
    *("run", "images", "--labels", "groups.toml", "--head", "fine=fine.safetensors"),
    *("--model", "clipbatch-demo", "--device", "cpu", "--embeddings"),
)
SIZES = ("--precision", "fp32", "--batch-size", "4", "--shard-size", "4")
# What a flip may hit, by name.
KINDS = {
    "run.json": "run/run.json",
    "its copy": "run/copies/run.json",
    "model.json": "run/model.json",
    "the copy of that": "run/copies/model.json",
    "text.npy": "run/text.npy",
    "the copy of that one": "run/copies/text.npy",
    "heads.safetensors": "run/heads.safetensors",
    "the copy of the heads": "run/copies/heads.safetensors",
    ".counts.json": "run/.counts.json",
    "manifest": "run/manifest/part-*.parquet",
    "parts": "run/parts/part-*.parquet",
    "cache": "cache/clipbatch/text/*",
}
# Files that say when and where; a damaged one is removed and made anew.
NOT_COMPARED = re.compile(r"run/(report\.json|\.counts\.json)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Flip:
    """What became of one flipped bit."""

    kind: str
    file: str
    at: int
    bit: int
    # The line that noticed it; empty where nothing did.
    said: str
    # What should not have happened.
    faults: tuple[str, ...]


class Flips:
    """A finished run in `folder`, with the cache that it was made with."""

    def __init__(self, cli: Callable[..., Any], folder: Path) -> None:
        """cli: called as `conftest.cli` is, with `code` None for any exit code."""
        self._folder = shutil.copytree(FIXTURE, folder, ignore=shutil.ignore_patterns("run", "finished"))
        save_head(self._folder / "fine.safetensors", random_layers(np.random.default_rng(0), [DEMO_WIDTH, 1]))
        self._cli = lambda *args, code=0: cli(
            *args, code=code, cwd=self._folder, env={"XDG_CACHE_HOME": str(self._folder / "cache")}
        )
        self._cli(*COMMAND, *SIZES, "--out", "run")
        self._whole = self._now()
        self._others = {name: (folder / name).read_bytes() for name in self._names() - self._whole.keys()}

    def try_one(self, kind: str, rng: random.Random) -> Flip:
        """Flip one bit of a file of `kind`; afterwards the run is whole again, whatever came of it."""
        path = rng.choice(sorted(self._folder.glob(KINDS[kind])))
        content = path.read_bytes()
        at, bit = rng.randrange(len(content)), rng.randrange(8)
        damaged = content[:at] + bytes([content[at] ^ 1 << bit]) + content[at + 1 :]
        path.write_bytes(damaged)
        said, faults = self._cached() if kind == "cache" else self._verified(kind)
        faults += self._differences("after the remedy")
        self._put_back()
        if kind != "cache":
            path.write_bytes(damaged)
            faults += self._used(kind)
            self._put_back()
        file = str(path.relative_to(self._folder))
        return Flip(kind=kind, file=file, at=at, bit=bit, said=said, faults=tuple(faults))

    def _verified(self, kind: str) -> tuple[str, list[str]]:
        """What `verify` says, after which its remedy is followed."""
        made = self._cli("verify", "run", code=None)
        if made.returncode not in (3, 5):
            return "", [f"verify ended with {made.returncode}"]
        lines = made.stderr.removeprefix("clipbatch: ").splitlines()
        said = lines[0] if made.returncode == 3 else lines[1]
        advice = re.findall(r"clipbatch ((?:verify|run) .*?(?:--restore|--repair))", made.stderr)
        if kind == "manifest" and not advice and "plan the same input in another folder" in said:
            self._cli("plan", *COMMAND[1:], *SIZES, "--out", "planned")
            shutil.copytree(
                self._folder / "planned" / "manifest", self._folder / "run" / "manifest", dirs_exist_ok=True
            )
        elif len(advice) != 1 or ("--repair" in advice[0]) != (kind == "parts"):
            return said, [f"the advice was {advice}"]
        for command in advice:
            self._cli(*shlex.split(command))
        again = self._cli("verify", "run", code=None)
        return said, [f"verify says afterwards: {again.stderr}"] if again.returncode else []

    def _cached(self) -> tuple[str, list[str]]:
        """What the next run with the same labels says of the cache."""
        made = self._cli(*COMMAND, *SIZES, "--out", "next")
        said = [line for line in (made.stdout + made.stderr).splitlines() if "computing them again" in line]
        parts = {path.name: path.read_bytes() for path in (self._folder / "next" / "parts").iterdir()}
        wrong = parts != {Path(name).name: data for name, data in self._whole.items() if name.startswith("run/parts")}
        faults = ["the next run's parts are others"] if wrong else []
        return "".join(said), faults if len(said) == 1 else [*faults, f"the next run said {said}"]

    def _used(self, kind: str) -> list[str]:
        """Label a part anew with what is damaged, or put the parts together; refused, or done right."""
        if kind == "parts":
            code = self._cli("compact", "run", "--out", "files", code=None).returncode
            return [] if code in (3, 5) else [f"compact ended with {code}"]
        part = self._folder / "run" / "parts" / "part-00002.parquet"
        part.unlink()
        code = self._cli("run", "--out", "run", code=None).returncode
        if code == 3:
            return [] if not part.exists() else ["the run was refused and left a part"]
        if code:
            return [f"the run ended with {code}"]
        return [] if part.read_bytes() == self._whole["run/parts/part-00002.parquet"] else ["the run left another part"]

    def _differences(self, when: str) -> list[str]:
        now = self._now()
        names = sorted(name for name in now.keys() | self._whole.keys() if now.get(name) != self._whole.get(name))
        return [f"{when} these files are others: {names}"] if names else []

    def _now(self) -> dict[str, bytes]:
        names = (name for name in self._names() if not NOT_COMPARED.fullmatch(name))
        return {name: (self._folder / name).read_bytes() for name in names}

    def _names(self) -> set[str]:
        files = [path for top in ("run", "cache") for path in (self._folder / top).rglob("*") if path.is_file()]
        return {str(path.relative_to(self._folder)) for path in files}

    def _put_back(self) -> None:
        for name in ("next", "planned", "files"):
            shutil.rmtree(self._folder / name, ignore_errors=True)
        whole = self._whole | self._others
        for name in self._names() - whole.keys():
            (self._folder / name).unlink()
        for name, data in whole.items():
            path = self._folder / name
            if not path.is_file() or path.read_bytes() != data:
                path.parent.mkdir(exist_ok=True)
                path.write_bytes(data)
