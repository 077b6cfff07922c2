import itertools
from dataclasses import replace

import pytest
import torch
from torch.nn import functional

from model import sliding
from model.config import RegularizerConfig
from model.errors import ModelError
from model.lseg import build_lseg
from model.prediction import NO_LABEL
from model.sliding import (
    PUBLISHED,
    SINGLE_SCALE,
    WHOLE,
    SlidingConfig,
    sliding_label_ids,
    sliding_logits,
    window_grid,
)
from tests.support.plain_sliding import summed_logits

SMALL = replace(PUBLISHED, base_px=52, window_px=48)
"""The published protocol, ten times smaller."""


@pytest.fixture
def vivid_lseg(tiny_config):
    """A tiny network whose scores vary much over pixels, labels and mirror images."""
    return vivid(tiny_config)


def vivid(config):
    torch.manual_seed(0)
    lseg = build_lseg(config, embed_dim=512).eval()
    with torch.no_grad():
        for parameter in lseg.parameters():
            if parameter.ndim > 1:
                parameter.mul_(2)
    # Not the same in all channels, so that black is not one number either.
    lseg.mean_C.copy_(torch.tensor([0.2, 0.5, 0.7]))
    lseg.std_C.copy_(torch.tensor([0.3, 0.5, 0.6]))
    return lseg


def plainly(lseg, picture, text, config):
    def net(x):
        assert x.shape[2] % 2 == 0
        half = lseg(x, text)
        return functional.interpolate(half, scale_factor=2, mode="bilinear", align_corners=True)

    with torch.no_grad():
        return summed_logits(
            net,
            picture,
            -lseg.mean_C / lseg.std_C,
            len(text),
            scales=config.scales,
            base=config.base_px,
            window=config.window_px,
            flip=config.flip,
        )


@pytest.mark.parametrize(
    "size",
    [
        (30, 40),  # smaller than a window
        (48, 48),
        (52, 52),
        (75, 101),  # odd, larger
        (101, 75),
        (131, 29),  # extreme: the short side fits into a window at every scale
        (7, 200),
        (201, 5),
        (1, 1),
    ],
)
def test_equals_the_plain_transcription_of_the_published_rules(vivid_lseg, size):
    picture, text = torch.randn(1, 3, *size), torch.randn(5, 512)
    expected = plainly(vivid_lseg, picture, text, SMALL)
    found = sliding_logits(vivid_lseg, picture, text, SMALL)
    assert found.shape == (1, 5, *size)
    if min(size) > 20:  # The answer varies over the picture, much more than the tolerance.
        assert expected.std((2, 3)).min() > 0.02
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-4)


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("scales", [(1.0,), (2.5,), (0.75, 4.0)])
def test_equals_it_in_many_bands_and_small_batches(vivid_lseg, monkeypatch, flip, scales):
    monkeypatch.setattr(sliding, "BAND_MIB_CPU", 0.005)  # a few rows each
    monkeypatch.setattr(sliding, "WINDOWS_CPU", 3)
    config = replace(SMALL, scales=scales, flip=flip)
    picture, text = torch.randn(1, 3, 67, 90), torch.randn(5, 512)
    views = sliding.Views(vivid_lseg, picture, config)
    bands = list(views.bands(text))
    assert len(bands) > 10
    assert [rows.start for rows, _ in bands] == [0, *(rows.stop for rows, _ in bands[:-1])]
    found = torch.cat([band for _, band in bands], dim=2)
    expected = plainly(vivid_lseg, picture, text, config)
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-4)


def test_a_side_that_would_vanish_keeps_one_pixel(vivid_lseg):
    logits = sliding_logits(vivid_lseg, torch.randn(1, 3, 201, 3), torch.randn(2, 512), SMALL)
    assert window_grid((201, 3), 0.5, SMALL).width == 1
    assert bool(logits.isfinite().all())


def test_pictures_of_one_size_together_equal_each_alone_also_with_labels_of_their_own(vivid_lseg):
    pictures, text = torch.randn(3, 3, 60, 95), torch.randn(3, 2, 512)
    config = replace(SMALL, scales=(1.0, 1.75))
    together = sliding_logits(vivid_lseg, pictures, text, config)
    for number in range(3):
        alone = plainly(vivid_lseg, pictures[number : number + 1], text[number], config)
        torch.testing.assert_close(together[number : number + 1], alone, rtol=0, atol=2e-4)


def test_whole_at_its_own_size_is_one_forward_pass(vivid_lseg, monkeypatch):
    picture, text = torch.randn(1, 3, 45, 70), torch.randn(4, 512)
    with torch.no_grad():
        half = vivid_lseg(picture, text)
    expected = functional.interpolate(half, (45, 70), mode="bilinear", align_corners=True)
    whole = replace(WHOLE, base_px=None)
    for mib in (32, 0.01):  # in one band, and in many
        monkeypatch.setattr(sliding, "BAND_MIB_CPU", mib)
        found = sliding_logits(vivid_lseg, picture, text, whole)
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)
        ids = sliding_label_ids(vivid_lseg, picture, text, whole)
        assert float((ids == expected.argmax(1)).float().mean()) > 0.999
    enlarged = sliding_logits(vivid_lseg, picture, text, whole, size=(90, 141))
    again = functional.interpolate(expected, (90, 141), mode="bilinear", align_corners=True)
    torch.testing.assert_close(enlarged, again, rtol=0, atol=1e-4)


@pytest.mark.parametrize("kind", ["none", "depthwise", "bottleneck"])
@pytest.mark.parametrize("threshold", [None, "from the scores"])
def test_labels_in_chunks_give_the_same_ids(tiny_config, monkeypatch, kind, threshold):
    depth = 0 if kind == "none" else 2
    regularizer = RegularizerConfig(kind=kind, depth=depth)
    lseg = vivid(replace(tiny_config, regularizer=regularizer))
    pictures = torch.randn(2, 3, 61, 90)
    with torch.no_grad():  # Each label is what some pixels look like, so that many of them win.
        pixels = lseg.embed(pictures)[0].flatten(1).T
    text = pixels[torch.randperm(len(pixels))[:11]] - pixels.mean(0)
    logits = sliding_logits(lseg, pictures, text, SMALL)
    probability, expected = (logits / 12).softmax(1).max(1)
    assert len((expected // 4).unique()) > 1  # labels of several chunks win
    if threshold is not None:
        threshold = float(probability.quantile(0.2))
        expected = expected.where(probability >= threshold, NO_LABEL)
        assert 0.05 < float((expected == NO_LABEL).float().mean()) < 0.95
    asked, passes = [], []
    views = sliding.Views(lseg, pictures, SMALL)
    monkeypatch.setattr(sliding, "SCORES_MIB", 4.5 * views.mib_per_label)
    cosines, trunk = lseg.score_trunk, lseg.trunk
    monkeypatch.setattr(lseg, "score_trunk", lambda t, x: asked.append(len(x)) or cosines(t, x))
    monkeypatch.setattr(lseg, "trunk", lambda x: passes.append(len(x)) or trunk(x))
    found = sliding_label_ids(lseg, pictures, text, SMALL, threshold=threshold)
    assert set(asked) == ({11} if kind == "bottleneck" else {4, 3})
    # Each window, mirrored or not, goes through the network once whatever the number of chunks.
    windows = [window_grid((61, 90), scale, SMALL) for scale in SMALL.scales]
    assert sum(passes) == 2 * 2 * sum(len(g.tops) * len(g.lefts) for g in windows)
    assert float((found == expected).float().mean()) > 0.9999


def test_windows_above_are_forgotten(vivid_lseg, monkeypatch):
    """A tall picture at its own size holds three rows of windows at most."""
    monkeypatch.setattr(sliding, "BAND_MIB_CPU", 0.01)
    monkeypatch.setattr(sliding, "WINDOWS_CPU", 1)
    config = SlidingConfig(base_px=None, window_px=48)
    views = sliding.Views(vivid_lseg, torch.randn(1, 3, 500, 40), config)
    (view,) = views._scales
    most = 0
    for _ in views.bands(torch.randn(3, 512)):
        most = max(most, len(view._window_rows))
    assert len(view.grid.tops) == 16
    assert most <= 3
    assert views.mib_per_label == pytest.approx(3 * 24 * 24 * 4 / 2**20)


@pytest.mark.parametrize(
    ("size", "scale", "expected"),
    [
        ((375, 500), 0.5, (195, 260, 1, 1)),
        ((375, 500), 1.0, (390, 520, 1, 2)),
        ((375, 500), 1.75, (683, 910, 2, 3)),
        ((512, 683), 1.25, (487, 650, 2, 2)),
        ((683, 512), 1.25, (650, 487, 2, 2)),
        ((100, 100), 0.923, (480, 480, 1, 1)),
        ((100, 100), 0.925, (481, 481, 2, 2)),
        ((100, 1000), 1.75, (91, 910, 1, 3)),
        ((1, 3000), 1.0, (1, 520, 1, 2)),
    ],
)
def test_published_grids(size, scale, expected):
    grid = window_grid(size, scale, PUBLISHED)
    assert (grid.height, grid.width, len(grid.tops), len(grid.lefts)) == expected
    assert grid.tops == tuple(320 * i for i in range(expected[2]))
    assert grid.window == (480, 480)


def test_the_cost_of_the_presets():
    """Forward passes of one window on a usual picture."""

    def passes(config):
        grids = [window_grid((512, 683), scale, config) for scale in config.scales]
        return sum(len(g.tops) * len(g.lefts) for g in grids) * (1 + config.flip)

    assert (passes(PUBLISHED), passes(SINGLE_SCALE), passes(WHOLE)) == (36, 2, 1)
    assert (PUBLISHED.num_views, SINGLE_SCALE.num_views) == (12, 1)
    assert list(itertools.accumulate(PUBLISHED.scales))[-1] == 6.75


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"scales": ()}, "scales="),
        ({"scales": (1.0, 0.0)}, "scales="),
        ({"base_px": 0}, "base_px=0"),
        ({"window_px": None, "stride_px": 100}, "stride_px=100"),
        ({"window_px": 48, "stride_px": 49}, "stride_px=49"),
    ],
)
def test_what_cannot_work_is_refused(wrong, message):
    with pytest.raises(ModelError, match=message):
        SlidingConfig(**wrong)
