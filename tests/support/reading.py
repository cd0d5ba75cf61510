"""What the read stage makes of urls, for tests."""

from typing import Any

import pyarrow as pa

from clipbatch.config import ReadSettings
from clipbatch.stages.read import Read
from clipbatch.types import Encoded, Item, ItemBatch, Reject


def slots(*urls: str, fence: str | None = None, **settings: Any) -> list[Encoded | Reject]:
    items = tuple(Item(row_id=n, uri=url, path=url, fence=fence) for n, url in enumerate(urls))
    batch = ItemBatch(shard=0, start=0, items=items, rows=pa.table({}), last=True)
    read = Read(ReadSettings(**{"read_timeout": 20.0, "read_retries": 1, **settings}))
    return [slot for slot in read(batch).slots if slot is not None]


def told(slot: Encoded | Reject) -> Any:
    return bytes(slot.data) if isinstance(slot, Encoded) else (slot.status, slot.error)
