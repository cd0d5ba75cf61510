"""Datasets of the Hugging Face hub as inputs: a stand-in for the hub, and one that is out of reach."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from tests.support.servers import Handler, body, web

HUB = """
import json, sys
from clipbatch.config import ReadSettings
from clipbatch.config import SourceSettings
from clipbatch.errors import InputError
from clipbatch.stages.read import Fetch
from clipbatch.inputs.listing import listers
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


def _told(script: str, endpoint: str) -> list[Any]:
    """The output of `script`, run in a separate process with the hub at `endpoint`."""
    env = {**os.environ, "HF_ENDPOINT": endpoint, "HF_HUB_OFFLINE": "0"}
    said = subprocess.check_output([sys.executable, "-c", script], env=env, cwd=Path(__file__).parents[2], timeout=120)
    told: list[Any] = json.loads(said)
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
        uris, good, (status, _) = _told(HUB, hub.root)
    assert uris == ["hf://datasets/u/d/p/a.jpg", "hf://datasets/u/d/p/q/c.jpg"]
    assert (good, status) == ("a.jpg", "missing")


PLACE = """
import json
from clipbatch.storage.paths import as_path, list_names
print(json.dumps([sorted(list_names(as_path("hf://datasets/u/d/p"))) for _ in range(2)]))
"""


def test_a_folder_of_a_run_is_listed_again_each_time() -> None:
    trees = [_tree("p/a.parquet"), _tree("p/a.parquet", "p/b.parquet")]
    with web() as hub:
        hub.answers |= {
            "/api/datasets/u/d": body(json.dumps({"id": "u/d", "sha": "0" * 40, "siblings": []}).encode()),
            "/api/datasets/u/d/tree/main": body(_tree("p")),
            "/api/datasets/u/d/tree/main/p": lambda handler: body(trees.pop(0) if len(trees) > 1 else trees[0])(
                handler
            ),
        }
        assert _told(PLACE, hub.root) == [["a.parquet"], ["a.parquet", "b.parquet"]]


TABLE = """
import json
from clipbatch.config import SourceSettings
from clipbatch.inputs.listing import Listing
from clipbatch.inputs.listing import listers
from tests.support.packing import read
rows = [row for batch in Listing(listers(SourceSettings(inputs=("hf://datasets/u/d/p/*.parquet",))), None, ()).batches()
        for row in batch.to_pylist()]
print(json.dumps([[row["uri"] for row in rows], [data.decode() for data in read(rows)]]))
"""


def test_a_table_of_images_on_a_hub_is_read_by_ranges(tmp_path: Path) -> None:
    pq.write_table(pa.table({"image": [b"one", b"two"]}), tmp_path / "t.parquet")
    data = (tmp_path / "t.parquet").read_bytes()

    def ranges(handler: Handler) -> None:
        first, last = map(int, handler.headers["Range"].removeprefix("bytes=").split("-"))
        part = data[first : last + 1]
        end = first + len(part) - 1
        handler.head(206, Content_Length=len(part), Content_Range=f"bytes {first}-{end}/{len(data)}")
        handler.send(part)

    with web() as hub:
        hub.answers |= {
            "/api/datasets/u/d": body(json.dumps({"id": "u/d", "sha": "0" * 40, "siblings": []}).encode()),
            "/api/datasets/u/d/tree/main": body(_tree("p")),
            "/api/datasets/u/d/tree/main/p": body(
                _tree("p/t.parquet").replace(b'"size": 5', b'"size": %d' % len(data))
            ),
            "/datasets/u/d/resolve/main/p/t.parquet": ranges,
        }
        uris, images = _told(TABLE, hub.root)
    assert uris == ["hf://datasets/u/d/p/t.parquet#0", "hf://datasets/u/d/p/t.parquet#1"]
    assert images == ["one", "two"]


def test_a_hub_that_is_out_of_reach_is_one_line_or_a_status() -> None:
    refused, *slots = _told(HUB, "http://127.0.0.1:1")
    assert refused.startswith("cannot list hf://datasets/u/d/p/: ")
    assert "\n" not in refused
    assert [status for status, _ in slots] == ["unreadable"] * 2
    assert all("Connection refused" in error for _, error in slots)
