import time

import pytest

from pipeline.data.ingest.stream import Timed
from pipeline.progress import duration
from pipeline.training.config import RunConfig, TrainConfig, TrainMixConfig
from pipeline.training.worker.progress import Speed, SpeedMeter
from tests.support.shown_metrics import Shown, shown  # noqa: F401


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


class Clock:
    """Time that passes when the test says so."""

    def __init__(self) -> None:
        self.now = 1000.0

    def pass_by(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def clock(monkeypatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(time, "perf_counter", lambda: clock.now)
    return clock


def run_of(steps: int, batch_size: int) -> TrainMixConfig:
    train = TrainConfig(steps=steps, batch_size=batch_size, checkpoint_every=50)
    return TrainMixConfig(run=RunConfig(name="mine"), train=train)


def test_a_lap_measures_speed_waiting_and_what_is_left(clock):
    progress, batches = SpeedMeter(10, run_of(110, 8), 0, 1), Timed(iter([]))
    clock.pass_by(2.5)
    batches.waited_s = 0.5
    speed = progress.lap(20, batches)
    assert speed.images_per_s == pytest.approx(10 * 8 / 2.5)
    assert speed.data_wait_share == pytest.approx(0.2)
    assert speed.eta_s == pytest.approx(9 * 2.5)
    assert batches.waited_s == 0


def test_each_lap_starts_anew(clock):
    progress, batches = SpeedMeter(0, run_of(100, 4), 0, 1), Timed(iter([]))
    clock.pass_by(30)
    batches.waited_s = 3
    assert progress.lap(1, batches).images_per_s == pytest.approx(4 / 30)
    clock.pass_by(49)
    fast = progress.lap(50, batches)
    assert fast.images_per_s == pytest.approx(4)
    assert fast.eta_s == pytest.approx(50)
    assert fast.data_wait_share == 0


def test_skipped_time_does_not_count(clock):
    progress, batches = SpeedMeter(0, run_of(100, 4), 0, 1), Timed(iter([]))
    clock.pass_by(500)
    progress.skip()
    clock.pass_by(2)
    assert progress.lap(1, batches).images_per_s == pytest.approx(4 / 2)


def test_waiting_never_exceeds_the_time_that_passed(clock):
    progress, batches = SpeedMeter(0, run_of(100, 4), 0, 1), Timed(iter([]))
    clock.pass_by(1)
    batches.waited_s = 1e6
    assert progress.lap(1, batches).data_wait_share == 1.0


def test_the_line_says_where_how_fast_and_how_long():
    line = SpeedMeter(0, run_of(600, 16), 0, 1).line(25, 1.23456, Speed(41.27, 0.034, 222))
    assert line == "step 25/600  loss 1.2346  41.3 images/s  data wait 3%  ETA 3m42s"


def test_prometheus_sees_the_speed_of_the_run_and_the_waiting_of_each_worker(clock, shown: Shown):  # noqa: F811
    for rank in (0, 1):
        progress, batches = SpeedMeter(10, run_of(110, 8), rank, 2), Timed(iter([]))
        clock.pass_by(2.5)
        batches.waited_s = 0.5 + rank
        progress.lap(20, batches)
    assert shown.of(run="mine") == {
        "lseg_training_step": 20,
        "lseg_training_steps_planned": 110,
        "lseg_training_workers": 2,
        "lseg_training_images_total": 80,
        "lseg_training_images_per_second": pytest.approx(32),
        "lseg_training_checkpoint_interval_seconds": pytest.approx(50 * 0.25),
    }
    for worker, share in (("0", 0.2), ("1", 0.6)):
        waits = shown.of(run="mine", worker=worker)
        assert waits == {"lseg_training_data_wait_ratio": pytest.approx(share)}
