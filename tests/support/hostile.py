"""A run whose every name tries to become a part of the page that shows it: files, folders, labels, errors, its own."""

import os
from pathlib import Path

import numpy as np

from tests.conftest import Cli
from tests.support.corpus import make_folder, photo

PWN = "window.pwned=1"
LABELS = [
    "cat",
    "dog",
    f"<script>{PWN}</script>",
    f'"><img src=x onerror="{PWN}">',
    "{{ 7*7 }}",
    "&lt;b&gt;",
    "\u202egnp.elohw",
    "قطة",
]
NAMES = [
    f"<img src=x onerror={PWN}>.jpg",
    f"'\" onmouseover={PWN} x=.jpg",
    f"<script>{PWN}</script>.jpg",  # a folder and a file in it
    "new\nline\ttab\x07bell\x1b[31m.jpg",
    "\u202egpj.exe.jpg",
    "صورة.jpg",
    "]]>--><!--.jpg",
    f"javascript:{PWN}.jpg",
    "\udcff\udcfe.jpg",  # bytes that are not UTF-8
    "long-" + "x" * 200 + ".jpg",
]


def make_run(warm: Cli, place: Path) -> Path:
    """Label a folder of hostile names and of the corpus's good and broken images; returns the run directory."""
    folder, other = place / "pictures", place / "pictures\udcff"  # bytes that are not UTF-8
    make_folder(other, 4, seed=6, bad_fraction=0)
    make_folder(folder, 60, seed=5, bad_fraction=0.3)
    rng = np.random.default_rng(5)
    for name in NAMES:
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        photo(rng, 240, 160).save(os.fsencode(path), "JPEG")
    (folder / "page.jpg").write_bytes(f"<script>{PWN}</script>".encode())
    labels = place / "labels.txt"
    labels.write_text("\n".join(LABELS), encoding="utf-8")
    out = place / f"<img src=x onerror={PWN}>"
    warm("run", folder, other, "--labels", labels, "--model", "clipbatch-demo", "--shard-size", 16, "--out", out)
    return out
