"""Datasets of the Hugging Face hub as inputs: a stand-in for the hub, and one that is out of reach."""

import json
import os
import subprocess
import sys
from typing import Any

from servers import body, web

HUB = """
import json, sys
from clipbatch.config import ReadSettings, SourceSettings
from clipbatch.errors import InputError
from clipbatch.read import Fetch
from clipbatch.source import listers
from clipbatch.types import Item
fetch = Fetch(ReadSettings(read_retries=0))
try:
    (lister,) = listers(SourceSettings(inputs=("hf://datasets/u/d/p",)))
    uris = [uri for batch in lister.batches() for uri in batch["uri"].to_pylist()]
except InputError as error:
    uris = str(error)
slots = [fetch(Item(row_id=0, uri="", path=f"hf://datasets/u/d/p/{name}")) for name in ("a.jpg", "none.jpg")]
print(json.dumps([uris, *(s.data.decode() if hasattr(s, "data") else [s.status, s.error] for s in slots)]))
"""


def _from_hub(endpoint: str) -> list[Any]:
    """What a dataset of the hub at `endpoint` is listed and read as, by a process of its own."""
    told: list[Any] = json.loads(
        subprocess.check_output(
            [sys.executable, "-c", HUB], env={**os.environ, "HF_ENDPOINT": endpoint, "HF_HUB_OFFLINE": "0"}, timeout=120
        )
    )
    return told


def _tree(*names: str) -> bytes:
    """The hub's answer for a folder; a name without a suffix is a folder."""
    kinds = [("file" if "." in name else "directory", name) for name in names]
    return json.dumps([{"type": kind, "oid": "0" * 40, "size": 5, "path": name} for kind, name in kinds]).encode()


def test_a_dataset_of_a_hub_is_listed_and_read() -> None:
    with web() as hub:  # the few answers that huggingface_hub asks for here; no hub is within reach of a test
        hub.answers |= {
            "/api/datasets/u/d": body(json.dumps({"id": "u/d", "sha": "0" * 40, "siblings": []}).encode()),
            "/api/datasets/u/d/tree/main": body(_tree("p")),
            "/api/datasets/u/d/tree/main/p": body(_tree("p/a.jpg", "p/q", "p/b.txt")),
            "/api/datasets/u/d/tree/main/p%2Fq": body(_tree("p/q/c.jpg")),
            "/datasets/u/d/resolve/main/p/a.jpg": body(b"a.jpg"),
        }
        uris, good, (status, _) = _from_hub(hub.root)
    assert uris == ["hf://datasets/u/d/p/a.jpg", "hf://datasets/u/d/p/q/c.jpg"]
    assert (good, status) == ("a.jpg", "missing")


def test_a_hub_that_is_out_of_reach_is_one_line_or_a_status() -> None:
    refused, *slots = _from_hub("http://127.0.0.1:1")
    assert refused.startswith("cannot list hf://datasets/u/d/p/: ")
    assert "\n" not in refused
    assert [status for status, _ in slots] == ["unreadable"] * 2
    assert all("Connection refused" in error for _, error in slots)
