"""What strangers may put into a spool: nothing ends the service, leads out of the root, or is written over."""

import json
import os
import time
from pathlib import Path

import numpy as np
import pytest

from clipbatch.errors import InputError
from clipbatch.serving.spool import MAX_NAME_BYTES, Spool
from tests.support.corpus import photo
from tests.support.serving import answer, drop, serving

LONG = "n" * 246 + ".txt"


@pytest.fixture(scope="module")
def photos_(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of three pictures."""
    folder = tmp_path_factory.mktemp("root")
    for number in range(3):
        photo(np.random.default_rng(number), 40, 30).save(folder / f"{number}.jpg")
    return folder


def test_hostile_jobs_fail_or_are_passed_by_and_the_others_are_done(photos_: Path, tmp_path: Path) -> None:
    spool, secret = tmp_path / "spool", tmp_path / "secret"
    place = spool / "in"
    place.mkdir(parents=True)
    secret.mkdir()
    photo(np.random.default_rng(9), 40, 30).save(secret / "secret.jpg")
    (secret / "lines.txt").write_text("a secret line\n")
    (place / LONG).write_text("0.jpg\n")
    (place / "link.txt").symlink_to(secret / "lines.txt")
    (place / "linked").symlink_to(secret)
    (place / "nowhere.txt").symlink_to("nowhere")
    os.mkfifo(place / "pipe.txt")
    (place / os.fsdecode(b"\xff.txt")).write_text("0.jpg\n")
    (place / "a\nb.txt").write_text("1.jpg\n")
    (place / "folder").mkdir()
    photo(np.random.default_rng(3), 40, 30).save(place / "folder" / "own.jpg")
    (place / "folder" / "root.jpg").symlink_to(photos_ / "2.jpg")
    (place / "leads-out").mkdir()
    (place / "leads-out" / "x.jpg").symlink_to(secret / "secret.jpg")
    (place / "leads-out-deep" / "a").mkdir(parents=True)
    (place / "leads-out-deep" / "a" / "b").symlink_to(secret)
    (place / "a").write_text("no manifest")
    (place / "a.json").write_text("the job file")
    (place / "a.json.json").write_text("another one")
    (place / "deep.jsonl").write_text("[" * 100_000)
    with serving(spool, "--root", photos_) as service:
        (short,) = [name for name in wait(spool, "done", "nnn") if not name.endswith(".json")]
        assert len(os.fsencode(short)) == MAX_NAME_BYTES
        assert short.endswith(".txt")
        assert (answer(spool, short)["status"], answer(spool, short)["dropped_as"]) == ({"ok": 1}, LONG)
        assert answer(spool, "a\nb.txt")["status"] == {"ok": 1}
        assert answer(spool, "folder")["status"] == {"ok": 2}
        for name, said in (
            ("link.txt", "is a link"),
            ("linked", "is a link"),
            ("nowhere.txt", "is a link"),
            ("pipe.txt", "a pipe"),
            ("leads-out", "leads out of the job"),
            ("leads-out-deep", "leads out of the job"),
            ("deep.jsonl", "nested more than 100 levels"),
        ):
            assert said in answer(spool, name, "failed")["error"], name
        assert "UTF-8" in answer(spool, os.fsdecode(b"\xff.txt"), "failed")["error"]
        drop(spool, "last.txt", [photos_ / "0.jpg"])
        assert answer(spool, "last.txt")["rows"] == 1
        failed = spool / "failed"
        contents = [path.read_text() for path in failed.iterdir() if path.is_file() and path.name.startswith("a")]
        assert {"no manifest", "the job file", "another one"} <= set(contents)  # nothing was written over
        jobs = [json.loads(text)["job"] for text in contents if text.startswith("{")]
        assert len(jobs) == len(set(jobs)) == 3
        assert service.process.poll() is None
        manifests = list(spool.glob("runs/*/manifest/*"))
        assert manifests
        assert not [path for path in manifests if b"secret" in path.read_bytes()]
        assert list((spool / "working").iterdir()) == []


def wait(spool: Path, result: str, start: str) -> list[str]:
    """Names in a folder of results that begin with `start`, when a job and its answer are there."""
    for _ in range(6000):
        names = [path.name for path in (spool / result).iterdir() if path.name.startswith(start)]
        if len(names) >= 2:
            return names
        time.sleep(0.02)
    raise AssertionError(sorted(map(str, spool.glob("*/*"))))


def test_what_cannot_be_taken_is_said_once_and_passed_by(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said = list[str]()
    spool = Spool(tmp_path, say=said.append)
    for name in ("a.txt", "b.txt"):
        drop(tmp_path, name, [])
    rename = os.rename

    def other_file_system(source: Path, target: Path) -> None:
        if Path(source).name == "a.txt":
            raise OSError(18, os.strerror(18))  # as between file systems
        rename(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "rename", other_file_system)
        assert [spool.take(name) for name in sorted(spool.waiting())] == [None, "b.txt"]
        assert spool.waiting() == []
        assert spool.waiting() == []
    assert said == [f"cannot take the job 'a.txt': {os.strerror(18)}; it stays in {tmp_path / 'in'}"]
    (tmp_path / "in" / "a.txt").unlink()
    assert spool.waiting() == []
    drop(tmp_path, "a.txt", [])  # a new one of that name
    assert spool.waiting() == ["a.txt"]
    assert spool.take("a.txt") == "a.txt"


def test_an_answer_that_was_written_before_the_service_was_killed_is_put_in_its_place(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    for moved in (False, True):
        name = f"job-{moved}.txt"
        drop(tmp_path, name, [])
        assert spool.take(name) == name
        (tmp_path / "working" / f".{name}.done").write_text('{"rows": 7}')
        if moved:
            os.rename(tmp_path / "working" / name, tmp_path / "done" / name)
    again = Spool(tmp_path)
    again.recover()
    assert again.interrupted() == []
    assert list((tmp_path / "working").iterdir()) == []
    for name in ("job-False.txt", "job-True.txt"):
        assert (tmp_path / "done" / name).exists()
        assert json.loads((tmp_path / "done" / f"{name}.json").read_text()) == {"rows": 7}


def test_names_are_never_in_use_twice(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    taken = []
    for name in ("a", "a.json", "a.json.json", "a", LONG, LONG):
        (tmp_path / "in" / name).touch()
        taken.append(spool.take(name))
        assert taken[-1] is not None
        spool.finish(taken[-1], {}, failed=True)
    written = [*taken, *(f"{name}.json" for name in taken)]
    assert len(written) == len(set(written)) == 12
    assert sorted(path.name for path in (tmp_path / "failed").iterdir()) == sorted(written)
    assert all(len(os.fsencode(name)) <= MAX_NAME_BYTES + 2 for name in taken if name)


def test_with_only_own_files_all_of_a_job_has_to_be_the_services(tmp_path: Path) -> None:
    if os.geteuid():
        pytest.skip("only root can give files away")
    spool, careless = Spool(tmp_path, only_own_files=True), Spool(tmp_path)
    (tmp_path / "working" / "folder").mkdir()
    (tmp_path / "working" / "folder" / "a.jpg").touch()
    spool.check("folder")
    os.chown(tmp_path / "working" / "folder" / "a.jpg", 12345, 12345)
    careless.check("folder")
    with pytest.raises(InputError, match=r"'folder/a.jpg' belongs to user 12345: --only-own-files"):
        spool.check("folder")
