"""When the client of Hugging Face's hub may use the network: only for files that are not in its cache."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Callable, Iterator
from typing import TypeVar
from urllib.parse import urlsplit

from huggingface_hub import constants

# How long the hub's host may take to answer.
_TIMEOUT_S = 10.0
T = TypeVar("T")


@contextlib.contextmanager
def hub(*, offline: bool) -> Iterator[None]:
    """Meanwhile the hub's client uses the network or its cache alone; then as the process had it before."""
    before = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = offline
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before


def locally_first(action: Callable[[], T]) -> T:
    """Do `action` offline, with cached files only. If that fails and the hub answers, do it again with the network."""
    try:
        with hub(offline=True):
            return action()
    except Exception:
        if not reachable():
            raise
        with hub(offline=False):
            return action()


def reachable() -> bool:
    """Whether the hub's host answers. Its client would keep trying for most of a minute."""
    if os.environ.get("HF_HUB_OFFLINE", "0") not in ("", "0"):
        return False
    if any(os.environ.get(name) for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy")):
        return True
    url = urlsplit(constants.ENDPOINT)
    try:
        with socket.create_connection((url.hostname or "", url.port or 443), timeout=_TIMEOUT_S):
            return True
    except OSError:
        return False
