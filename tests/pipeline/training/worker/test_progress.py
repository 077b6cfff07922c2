import time

import pytest

from pipeline.data.ingest.stream import Timed
from pipeline.progress import duration
from pipeline.training.worker.progress import Speed, SpeedMeter


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0s"),
        (45.2, "45s"),
        (59.6, "1m00s"),
        (60, "1m00s"),
        (200, "3m20s"),
        (3599.7, "1h00m"),
        (7500, "2h05m"),
        (90_000, "25h00m"),
    ],
)
def test_durations_read_as_people_say_them(seconds, text):
    assert duration(seconds) == text


def test_a_lap_measures_speed_waiting_and_what_is_left():
    progress, batches = SpeedMeter(step=10, total=110, batch_size=8), Timed(iter([]))
    time.sleep(0.2)
    batches.waited_s = 0.1
    speed = progress.lap(20, batches)
    elapsed = 10 * 8 / speed.images_per_s
    assert 0.19 < elapsed < 2
    assert speed.data_wait_share == pytest.approx(0.1 / elapsed)
    assert speed.eta_s == pytest.approx(9 * elapsed)
    assert batches.waited_s == 0


def test_each_lap_starts_anew():
    progress, batches = SpeedMeter(0, 100, 4), Timed(iter([]))
    time.sleep(0.3)
    slow = progress.lap(1, batches)
    fast = progress.lap(50, batches)
    assert slow.images_per_s < 4 / 0.29
    assert fast.images_per_s > 10 * slow.images_per_s
    assert fast.data_wait_share == 0


def test_skipped_time_does_not_count():
    progress, batches = SpeedMeter(0, 100, 4), Timed(iter([]))
    time.sleep(0.5)
    progress.skip()
    assert progress.lap(1, batches).images_per_s > 4 / 0.4


def test_waiting_never_exceeds_the_time_that_passed():
    progress, batches = SpeedMeter(0, 100, 4), Timed(iter([]))
    batches.waited_s = 1e6
    assert progress.lap(1, batches).data_wait_share == 1.0


def test_the_line_says_where_how_fast_and_how_long():
    line = SpeedMeter(0, 600, 16).line(25, 1.23456, Speed(41.27, 0.034, 222))
    assert line == "step 25/600  loss 1.2346  41.3 images/s  data wait 3%  ETA 3m42s"
