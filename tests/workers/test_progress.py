"""Progress of a run: lines in a log, and silence with quiet."""

import time

import pytest

from clipbatch.workers import progress
from clipbatch.workers.progress import Progress


def test_a_log_gets_a_line_at_intervals_with_a_rate_once_one_is_known(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "LINE_EVERY_S", 0.0)
    shown = Progress(total=100, done=10, bad=0, quiet=False)
    shown.show(20, 1, "decode")
    time.sleep(0.01)
    shown.show(60, 2, "encode")
    monkeypatch.setattr(progress, "LINE_EVERY_S", 30.0)
    shown.show(80, 2, "encode")
    shown.say("a remark")
    first, second, remark = capfd.readouterr().err.splitlines()
    assert first == "20 of 100 images, 1 bad, bound by decode"
    assert second.startswith("60 of 100 images, ")
    assert second.endswith("/s, 0 min left, 2 bad, bound by encode")
    assert remark == "a remark"


def test_quiet_prints_nothing(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "LINE_EVERY_S", 0.0)
    for as_json in (False, True):
        shown = Progress(total=100, done=0, bad=0, quiet=True, as_json=as_json)
        shown.show(50, 0, "read")
        shown.say("a remark")
    assert capfd.readouterr() == ("", "")
