"""Progress of a run: lines in a log, and silence with quiet."""

import os
import pty
import re
import subprocess
import sys
import termios
import time

import pytest

from clipbatch.workers import progress, words
from clipbatch.workers.progress import Progress


def test_a_log_gets_a_line_at_intervals_with_a_rate_once_one_is_known(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "LINE_EVERY_S", 0.0)
    shown = Progress(total=100, done=10, bad=0, quiet=False)
    shown.show(20, 1, "decode")
    time.sleep(0.2)
    shown.show(20, 1, "")  # before the first batch
    shown.skip(10)  # which another rank has done
    shown.show(31, 2, "encode")
    monkeypatch.setattr(progress, "LINE_EVERY_S", 30.0)
    shown.show(80, 2, "encode")
    shown.say("a remark", "warning")
    first, second, remark = (line.split(" ", 1)[1] for line in capfd.readouterr().err.splitlines())
    assert first == "INFO    20 of 100 images, 1 bad, bound by decode"
    assert (rest := re.fullmatch(r"INFO    31 of 100 images, (.*)/s, (.*) left, 2 bad, bound by encode", second))
    assert 0 < float(rest[1]) <= 5  # one image in 0.2 s or more; a rate of less than 10 has a decimal
    assert "." in rest[1]
    assert re.match(r"[1-9]\d*(\.\d)? (s|min)\b", rest[2])
    assert remark == "WARNING a remark"


def test_a_bar_counts_only_when_the_model_is_loaded() -> None:
    """On a real terminal, whose rate leaves out the time of loading."""
    code = (
        "import time; from clipbatch.workers.progress import Progress\n"
        "p = Progress(total=2472, done=72, bad=0, quiet=False)\n"
        "p.tick(); p.say('a remark'); time.sleep(0.3); p.loaded(); p.show(2000, 1, 'decode'); p.close()"
    )
    leader, follower = pty.openpty()
    termios.tcsetwinsize(follower, (24, 120))
    with subprocess.Popen([sys.executable, "-c", code], stderr=follower) as process:
        assert process.wait(60) == 0
    os.close(follower)
    said = os.read(leader, 2**16).decode()
    os.close(leader)
    loading, counting = said.split("a remark")
    assert "loading the model, then 2400 images (00:00)" in loading
    assert "2472" not in loading
    assert "a remark\r\n" in said  # without a time: a terminal shows when
    assert "2000/2472" in counting


def test_low_rates_keep_their_digits() -> None:
    assert [words.rate(rate) for rate in (0.0421, 0.94, 0.96, 3.44, 9.94, 9.96, 57.4)] == [
        *("0.042", "0.94", "1.0", "3.4", "9.9", "10", "57")
    ]


def test_quiet_prints_nothing(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "LINE_EVERY_S", 0.0)
    for as_json in (False, True):
        shown = Progress(total=100, done=0, bad=0, quiet=True, as_json=as_json)
        shown.show(50, 0, "read")
        shown.say("a remark")
    assert capfd.readouterr() == ("", "")
