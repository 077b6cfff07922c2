"""The protocol of the four behaviours, with askers whose answers are known."""

import numpy as np
import pytest

from pipeline.evaluation.behaviours.protocol import THRESHOLDS, FourBehaviours
from pipeline.evaluation.behaviours.questions import OTHER, Behaviours, super_class_question
from tests.pipeline.evaluation.behaviours.test_questions import (
    VOCABULARY,
    Always,
    Guesser,
    Oracle,
    picture,
)

SUPERS = {"traffic": ("traffic_light", "traffic_sign"), "animal": ("horse",)}
PICTURES = [
    picture("wall", "floor", "bed", "table"),
    picture("sky", "road", "car", None),
    picture("traffic_light", "horse", "traffic_sign", "road"),
]


class SuperOracle(Oracle):
    """Knows the super-class words too."""

    def ask(self, picture, texts) -> np.ndarray:
        answer = super().ask(picture, texts)
        from pipeline.data.taxonomy import universal

        for word, members in SUPERS.items():
            if word in texts:
                for name in members:
                    answer[picture.label == universal().id_of(name)] = list(texts).index(word)
        return answer


def run(asker) -> FourBehaviours:
    behaviours = FourBehaviours(VOCABULARY, SUPERS, seed=3)
    for shown in PICTURES:
        behaviours.add(asker, shown)
    return behaviours


def test_a_perfect_network_holds_all_four():
    behaviours = run(SuperOracle())
    assert {v.name: v.value for v in behaviours.verdicts()} == {
        "present": 1.0, "absent": 0.0, "other": 1.0, "superclass": 1.0,
    }  # fmt: skip
    assert all(behaviours.report()["reached"].values())


@pytest.mark.parametrize(
    ("place", "held"),
    [(-1, {"absent", "other"}), (-2, set())],
    ids=["other everywhere", "an absent label everywhere"],
)
def test_degenerate_networks_fail(place, held):
    reached = run(Always(place)).report()["reached"]
    assert {name for name, holds in reached.items() if holds} == held


def test_figures_are_those_of_the_two_questions_asked_apart():
    together, questions, supers = run(Guesser(5)), Behaviours(VOCABULARY, 3), None
    asker, supers = Guesser(5), super_class_question(SUPERS)
    for shown in PICTURES:
        supers.add(asker, shown)
        questions.add(asker, shown)
    expected = {**questions.figures(), "superclass": supers.miou}
    assert {name: together.figures()[name] for name in THRESHOLDS} == expected


def test_the_picture_shows_each_behaviour():
    rows = run(SuperOracle()).rows(SuperOracle(), PICTURES)
    assert [row.title.split(": ")[1] for row in rows] == [
        "present", "absent", "other", "super-class words",
    ]  # fmt: skip
    assert all(row.labels[-1] == OTHER and row.has_other for row in rows)
    assert len(rows[1].labels) == 3 + 5 + 1 or len(rows[1].labels) == 4 + 5 + 1
    # A perfect network draws its images as they are labelled.
    for row in rows:
        counted = row.truth != 255
        assert np.array_equal(row.prediction[counted], row.truth[counted])
    assert set(rows[3].labels) == {"traffic", "animal", OTHER}
