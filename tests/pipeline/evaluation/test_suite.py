"""The protocols of the open-vocabulary suite: what they ask, how they see, how they count."""

from pathlib import Path

import numpy as np
import pytest
import torch

from model.metrics import ConfusionMatrix
from model.sliding import AS_IT_IS, window_grid
from pipeline.checkpoints.provenance import TrainedSize
from pipeline.data.datasets.suite.readers import LAYOUTS, UNLABELLED
from pipeline.errors import UserError
from pipeline.evaluation.config import SUITE_PROTOCOLS, EvaluateConfig, Geometry
from pipeline.evaluation.protocols import make_plan
from pipeline.evaluation.suite import suite_space
from pipeline.evaluation.views import (
    View,
    network_input,
    scored_target,
    sliding_config,
    view_of,
)
from pipeline.scoring import choose
from tests.pipeline.data.datasets.suite.test_readers import write

SMALL = TrainedSize(base_px=160, crop_px=96)


def config(root: Path, protocol: str = "a-847", **values: object) -> EvaluateConfig:
    return EvaluateConfig(
        checkpoint="x",
        protocol=protocol,  # type: ignore[arg-type]
        roots={protocol: str(root)},
        **values,  # type: ignore[arg-type]
    )


@pytest.mark.parametrize("protocol", SUITE_PROTOCOLS)
def test_a_set_is_planned_as_published_and_says_what_departs(protocol, tmp_path):
    write(tmp_path, protocol, LAYOUTS[protocol][0], np.array([[0, 3, -1]]))
    plan = make_plan(config(tmp_path, protocol), (), SMALL)
    (part,) = plan.parts
    assert (plan.mean_over, plan.kind, part.name) == ("target", "classes", protocol)
    assert part.geometry == View(mode="cat-seg", base_px=640, window_px=384)
    (note,) = plan.notes
    assert note.startswith("1 images; published: ")
    item = part.source.open()(0)
    assert part.space.target(item.stored).tolist() == [[0, 3, UNLABELLED]]
    changed = make_plan(
        config(
            tmp_path,
            protocol,
            mean_over="union",
            synonyms="best",
            geometry=Geometry(mode="whole"),
        ),
        (),
        SMALL,
    )
    assert changed.mean_over == "union"
    assert len(changed.notes) == 4


def test_ids_above_255_are_counted(tmp_path):
    write(tmp_path, "a-847", LAYOUTS["a-847"][1], np.array([[300, 846, -1, 44]]))
    (part,) = make_plan(config(tmp_path), (), SMALL).parts
    target = part.space.target(part.source.open()(0).stored)
    matrix = ConfusionMatrix(len(part.space.classes) + 1)
    matrix.update(np.array([[300, 845, 3, 44]]), target)
    assert matrix.counts.nonzero().tolist() == [[44, 44], [300, 300], [846, 845]]


def test_of_several_names_the_best_counts_and_many_words_are_background():
    space = suite_space("pas-20b")
    words = [i for i, number in enumerate(space.text_class) if number == 20]
    assert len(words) == 39
    logits = torch.zeros(1, 59, 1, 2)
    logits[0, 4, 0, 0] = 2.0  # One word of a class against a sum of 39 that is larger.
    logits[0, words[7], 0, 1] = 0.1
    assert choose(logits, space).tolist() == [[[4, 20]]]
    best = suite_space("pas-20", "best")
    position = best.texts.index("airplanes")
    logits = torch.zeros(1, len(best.texts), 1, 1)
    logits[0, position] = 1
    assert choose(logits, best).tolist() == [[[0]]]


def test_the_published_view_is_four_windows_and_the_whole():
    view = View(mode="cat-seg", base_px=640, window_px=384)
    image = np.random.default_rng(0).integers(0, 256, (48, 90, 3), dtype=np.uint8)
    assert network_input(image, view).shape == (640, 640, 3)
    sliding = sliding_config(view)
    windows, whole = (window_grid((640, 640), scale, sliding) for scale in sliding.scales)
    assert (windows.height, windows.width, windows.tops, windows.lefts) == (
        640,
        640,
        (0, 256),
        (0, 256),
    )
    assert (whole.height, whole.width, whole.tops, whole.lefts) == (384, 384, (0,), (0,))


def test_others_see_a_square_or_a_short_side():
    """SED's 768 px squared, FC-CLIP's 800 px with at most 1333 beside: one pass each."""

    def seen(mode: str, height: int, width: int) -> tuple[int, ...]:
        given = config(Path("x"), "a-150", geometry=Geometry(mode=mode))  # type: ignore[arg-type]
        view = view_of(given, SMALL)
        assert sliding_config(view) == AS_IT_IS
        assert scored_target(np.zeros((height, width), np.uint8), view).shape == (height, width)
        return network_input(np.zeros((height, width, 3), np.uint8), view).shape

    assert seen("sed", 48, 90) == (768, 768, 3)
    assert seen("fc-clip", 60, 80) == (800, 1067, 3)
    assert seen("fc-clip", 90, 30) == (1333, 444, 3)


def test_other_sets_and_settings_without_effect_are_refused(tmp_path):
    write(tmp_path, "a-847", LAYOUTS["a-847"][1], np.array([[1]]))
    with pytest.raises(UserError, match=r"needs its own set and no other: set roots.pc-59"):
        make_plan(EvaluateConfig(checkpoint="x", protocol="pc-59"), (), SMALL)
    given = {"a-847": str(tmp_path), "ade20k": "x"}
    with pytest.raises(UserError, match="leave out ade20k"):
        make_plan(EvaluateConfig(checkpoint="x", protocol="a-847", roots=given), (), SMALL)
    with pytest.raises(UserError, match="synonyms=best: has no effect on protocol unified"):
        EvaluateConfig(checkpoint="x", synonyms="best")


@pytest.mark.parametrize(("over", "expected"), [("target", 0.5), ("union", 1 / 3), ("all", 0.25)])
def test_the_mean_rules_differ_where_a_class_is_only_predicted(over, expected):
    """Of four classes one is right, one is labelled and never found, one only found."""
    matrix = ConfusionMatrix(4)
    matrix.update(np.array([0, 0, 2, 2]), np.array([0, 0, 1, 1]))
    assert matrix.miou(over=over) == pytest.approx(expected)


@pytest.mark.parametrize(
    "values",
    [
        {"labels": "checkpoint"},
        {"split": "train"},
        {"shards": "shards"},
        {"splits": "lists"},
        {"folds": (0,)},
    ],
)
def test_what_a_set_does_not_read_is_refused(values, tmp_path):
    (name,) = values
    with pytest.raises(UserError, match=f"^{name}=.*: has no effect on protocol a-150: leave it"):
        config(tmp_path, "a-150", **values)
