"""HTTP under load by wrk (https://github.com/wg/wrk; `apt-get install wrk`), which takes next to nothing of the cores.

Every connection sends the next of the prepared requests as soon as the last one is answered.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterable
from pathlib import Path

_SCRIPT = Path(__file__).with_name("load.lua")


def prepare(folder: Path, requests: Iterable[tuple[str, bytes]]) -> Path:
    """Write requests, of content type and body, into the new folder `folder`; returns what `load` takes."""
    folder.mkdir()
    lines = []
    for number, (kind, body) in enumerate(requests):
        path = folder / str(number)
        path.write_bytes(body)
        lines.append(f"{kind}\t{path}\n")
    listing = folder / "requests.tsv"
    listing.write_text("".join(lines))
    return listing


def load(url: str, listing: Path, *, clients: int, seconds: int) -> tuple[int, float]:
    """Requests that were answered, and in how many seconds. Raises: RuntimeError where one was not, or not with 2xx."""
    command = ["wrk", "--threads", "1", "--connections", clients, "--duration", seconds, "--timeout", 60]
    command += ["--script", _SCRIPT, url, "--", listing]
    try:
        made = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    except FileNotFoundError:
        raise SystemExit("wrk makes the load over HTTP, and is not installed: apt-get install wrk") from None
    found = re.search(r"(\d+) requests in ([\d.]+)(m?s)", made.stdout)
    if made.returncode or not found or "Non-2xx" in made.stdout or "Socket errors" in made.stdout:
        raise RuntimeError(f"wrk: {made.stdout}{made.stderr}")
    return int(found[1]), float(found[2]) / (1000 if found[3] == "ms" else 1)
