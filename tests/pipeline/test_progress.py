import re

import pytest

from pipeline.progress import Progress


def test_rate_and_remaining_time_follow_the_clock(caplog, monkeypatch):
    now = [100.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    progress = Progress(1000, "images", every_s=5)
    with caplog.at_level("INFO"):
        for seconds, count in ((104, 40), (110, 60), (112, 20), (150, 880)):
            now[0] = seconds
            progress.add(count, "x.tar")
    told = [re.sub(" +", " ", record.getMessage()) for record in caplog.records]
    # Nothing is told within 5 s of the last line, except the end.
    assert told == [
        "100/1000 images 10.0 images/s ETA 1m30s x.tar",
        "1000/1000 images 20.0 images/s ETA 0s x.tar",
    ]


@pytest.mark.parametrize("count", [0, 1])
def test_an_instant_start_divides_by_nothing(caplog, monkeypatch, count):
    monkeypatch.setattr("time.monotonic", lambda: 7.0)
    with caplog.at_level("INFO"):
        Progress(1, "images", every_s=0).add(count)
    assert f"{count}/1 images" in caplog.text
