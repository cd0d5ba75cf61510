"""A Classifier leaves its user's process as it was, and says so at once where it cannot work: in a forked process."""

import multiprocessing
import os
import subprocess
import sys
import threading
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from clipbatch import Classifier
from clipbatch.stages.pillow import with_image
from tests.support.corpus import make_folder, photo

SNAPSHOT = """
import asyncio, logging, os, random, signal, sys, threading, warnings
import numpy, torch
from PIL import Image

def snapshot():
    descriptors = {}
    for number in os.listdir("/proc/self/fd"):
        try:
            descriptors[number] = os.readlink(f"/proc/self/fd/{number}")
        except OSError:  # that of the listing
            pass
    return {
        "torch's threads": torch.get_num_threads(),
        "torch's random state": torch.random.get_rng_state().numpy().tobytes(),
        "NumPy's random state": numpy.random.get_state()[1].tobytes(),
        "Python's random state": random.getstate(),
        "attention": torch.backends.mha.get_fastpath_enabled(),
        "TF32": torch.backends.cudnn.allow_tf32,
        "root logger": (list(logging.root.handlers), logging.root.level, logging.root.disabled),
        "warnings": list(warnings.filters),
        "signals": {number: signal.getsignal(number) for number in signal.valid_signals()},
        "Pillow's limit": Image.MAX_IMAGE_PIXELS,
        "environment": dict(os.environ),
        "hub": getattr(sys.modules.get("huggingface_hub.constants"), "HF_HUB_OFFLINE", False),
        "files": descriptors,
        "threads": sorted(thread.name for thread in threading.enumerate()),
        "folder": os.getcwd(),
        "hooks": (sys.excepthook, threading.excepthook),
    }

def check(what, before, *allowed):
    now = snapshot()
    changed = {name for name in before if before[name] != now[name]} - set(allowed)
    assert not changed, (what, {name: (before[name], now[name]) for name in changed})

"""
USE = (
    SNAPSHOT
    + """
torch.set_num_threads(2)
before = snapshot()
from clipbatch import Classifier
check("import", before)
paths = sys.argv[1:]

def opened():
    return Classifier(model="clipbatch-demo", labels="cifar10", device="cpu", batch_size=8)

def use(classifier):
    assert len(classifier.classify(paths)) == len(paths)
    assert sum(map(len, classifier.stream(iter(paths)))) == len(paths)
    assert len(asyncio.run(classifier.aclassify(paths[:3]))) == 3

one = opened()
check("open", before, "torch's threads")
use(one)
check("use", before, "torch's threads", "threads")
one.close()
one.close()
check("close", before)
first, second = opened(), opened()
use(first), use(second)
first.close()
assert torch.get_num_threads() == 1
use(second)
second.close()
check("closed in the order of opening", before)
try:
    Classifier(model="clipbatch-demo", labels="cifar10", device="cpu", pretrained=paths[0])
except Exception as error:
    assert "cannot be built with the weights" in str(error), error
else:
    raise AssertionError("a picture has been loaded as weights")
check("a Classifier that cannot be opened", before)
logging.basicConfig(level=logging.INFO)
assert logging.root.handlers
print("unchanged")
"""
)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("files")
    make_folder(folder, 30, seed=2, bad_fraction=0.3)
    return sorted(str(path) for path in folder.rglob("*") if path.is_file())


def test_the_process_is_as_it_was_after_import_open_use_and_close(files: list[str], tmp_path: Path) -> None:
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path), "HF_HUB_OFFLINE": "0"}
    environment.pop("OMP_NUM_THREADS", None)
    done = subprocess.run(
        [sys.executable, "-c", USE, *files], capture_output=True, text=True, env=environment, timeout=600
    )
    assert (done.returncode, done.stdout) == (0, "unchanged\n"), done.stderr


def test_pillow_has_its_limit_and_its_warnings_outside_of_our_calls(tmp_path: Path) -> None:
    photo(np.random.default_rng(1), 60, 40).save(tmp_path / "a.png")
    data, before = (tmp_path / "a.png").read_bytes(), Image.MAX_IMAGE_PIXELS
    inside, leave = threading.Event(), threading.Event()

    def work(image: Image.Image, _: int) -> int:
        inside.set()
        leave.wait(60)
        return image.width

    slow = threading.Thread(target=with_image, args=(data, work))
    filters = list(warnings.filters)
    slow.start()
    inside.wait(60)
    assert Image.MAX_IMAGE_PIXELS is None
    assert with_image(data, lambda image, _: image.width) == 60
    assert Image.MAX_IMAGE_PIXELS is None  # as the other one is still at work
    leave.set()
    slow.join()
    assert (Image.MAX_IMAGE_PIXELS, warnings.filters) == (before, filters)
    with pytest.raises(ZeroDivisionError):
        with_image(data, lambda image, _: 1 // 0)
    assert (Image.MAX_IMAGE_PIXELS, warnings.filters) == (before, filters)


def classify_in_child(classifier: Classifier, file: str, answers: "multiprocessing.SimpleQueue[str]") -> None:
    for call in (
        lambda: classifier.classify([file]),
        lambda: classifier.classify_batch([file]),
        lambda: next(iter(classifier.stream([file]))),
    ):
        try:
            call()
            answers.put("worked")
        except RuntimeError as error:
            answers.put(str(error))
    classifier.close()
    with Classifier(model="clipbatch-demo", labels="cifar10", device="cpu") as own:
        answers.put(str(own.classify([file]).table["status"].to_pylist()))


def test_a_forked_process_is_told_at_once_and_may_open_its_own(
    files: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    file = next(file for file in files if file.endswith("-jpeg.jpg"))
    with warnings.catch_warnings(), Classifier(model="clipbatch-demo", labels="cifar10", device="cpu") as classifier:
        warnings.simplefilter("ignore", DeprecationWarning)  # of a fork beside threads, from Python 3.12 on
        assert len(classifier.classify(files)) == len(files)  # its threads are there
        context = multiprocessing.get_context("fork")
        answers = context.SimpleQueue()
        child = context.Process(target=classify_in_child, args=(classifier, file, answers))
        child.start()
        child.join(timeout=120)
        hangs = child.is_alive()
        child.kill()
        assert not hangs
        said = [answers.get() for _ in range(4)]
        assert all("get_context('spawn')" in text for text in said[:3])
        assert said[3] == "['ok']"
        assert len(classifier.classify(files[:3])) == 3
        assert torch.get_num_threads() == 1
