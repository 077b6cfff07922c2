"""At which size images are seen: as configured, as published, else as in the training."""

from typing import Any

import pytest

from pipeline.checkpoints.provenance import PUBLISHED_SIZE, Provenance, TrainedSize
from pipeline.errors import UserError
from pipeline.evaluation.config import EvaluateConfig, Geometry
from pipeline.evaluation.views import View, size_remark, view_of

SMALL = TrainedSize(base_px=160, crop_px=96)


def view(size: TrainedSize, protocol: Any = "unified", **geometry: Any) -> View:
    given = Geometry(**geometry) if geometry else None
    return view_of(EvaluateConfig(checkpoint="x", protocol=protocol, geometry=given), size)


@pytest.mark.parametrize("protocol", ["unified", "native-names", "native-mapped", "held-out"])
def test_what_no_protocol_publishes_is_as_in_the_training(protocol):
    assert view(SMALL, protocol) == View(mode="whole", base_px=160, window_px=96)
    assert view(PUBLISHED_SIZE, protocol) == View(mode="whole", base_px=520, window_px=480)


def test_what_is_configured_counts_and_the_rest_is_as_in_the_training():
    assert view(SMALL, mode="single") == View(mode="single", base_px=160, window_px=96)
    assert view(SMALL, base_px=300) == View(mode="whole", base_px=300, window_px=96)
    assert view(SMALL, base_px=0).base_px == 0
    assert view(SMALL, mode="squash", window_px=64) == View(
        mode="squash", base_px=160, window_px=64
    )


@pytest.mark.parametrize(
    ("protocol", "mode"), [("ade20k-150", "published"), ("pascal-5i", "squash")]
)
def test_a_published_geometry_is_that_of_the_paper(protocol, mode):
    assert view(SMALL, protocol) == View(mode=mode, base_px=520, window_px=480)
    assert view(SMALL, protocol, mode="whole").base_px == 160


@pytest.mark.parametrize(
    ("seen", "words"),
    [
        (View(base_px=520), "seen at 520 px, and the training saw them at 160 px"),
        (View(base_px=60), "seen at 60 px"),
        (View(mode="squash", base_px=160, window_px=480), "seen at 480 px"),
        (View(base_px=0), "at their own size; the training saw them at 160 px"),
        (View(base_px=160), ""),
        (View(base_px=200), ""),
    ],
)
def test_a_size_far_from_the_trainings_is_remarked(seen, words):
    remark = size_remark(seen, SMALL)
    assert words in remark
    assert bool(words) == bool(remark)


def test_a_checkpoint_that_names_no_size_is_refused_or_published():
    assert Provenance((), {}, {}).trained_size == PUBLISHED_SIZE
    augment = {"data": {"augment": {"base_px": 160, "crop_px": 96, "flip_probability": 0.5}}}
    assert Provenance((), augment, {}).trained_size == SMALL
    for value in ("big", 0, -3, True, [160], None, 48_000_000):
        wrong = {"data": {"augment": {"crop_px": value}}}
        with pytest.raises(UserError, match=r"data\.augment\.crop_px=.*whole number"):
            _ = Provenance((), wrong, {}).trained_size
