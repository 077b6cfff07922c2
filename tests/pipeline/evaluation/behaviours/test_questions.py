"""The zero-shot figures, with askers whose answers are known."""

import numpy as np
import pytest

from model.metrics import ConfusionMatrix
from pipeline.data.taxonomy import IGNORE, label_text, universal
from pipeline.evaluation.behaviours.questions import (
    OTHER,
    Behaviours,
    ClosedQuestion,
    ViewedSample,
    class_question,
    super_class_question,
)

VOCABULARY = (
    "wall", "floor", "ceiling", "bed", "table", "lamp", "car", "road", "sky", "horse", "bus",
    "traffic_light", "traffic_sign",
)  # fmt: skip


def picture(*stripes: str | None, height: int = 8) -> ViewedSample:
    """An image of equal vertical stripes; None is ignored."""
    ids = [IGNORE if name is None else universal().id_of(name) for name in stripes]
    label = np.repeat(np.array(ids, np.uint8), 6)[None].repeat(height, 0)
    image = np.zeros((*label.shape, 3), np.uint8)
    return ViewedSample("idd", image, label, views=None)


class Oracle:
    """Knows the right answer: the label's word where it is asked for, otherwise "other"."""

    def __init__(self):
        self.questions: list[list[str]] = []

    def ask(self, picture: ViewedSample, texts) -> np.ndarray:
        self.questions.append(list(texts))
        answer = np.full(picture.label.shape, len(texts) - 1)
        for universal_id in np.unique(picture.label).tolist():
            if universal_id != IGNORE:
                word = label_text(universal().classes[universal_id])
                if word in texts:
                    answer[picture.label == universal_id] = list(texts).index(word)
        return answer


class Always:
    """Gives every pixel the label at one place of the question."""

    def __init__(self, place: int):
        self.place = place

    def ask(self, picture: ViewedSample, texts) -> np.ndarray:
        return np.full(picture.label.shape, range(len(texts))[self.place])


class Guesser:
    """Answers at random."""

    def __init__(self, seed: int):
        self.rng = np.random.default_rng(seed)

    def ask(self, picture: ViewedSample, texts) -> np.ndarray:
        return self.rng.integers(0, len(texts), picture.label.shape)


class TestClosed:
    def test_a_perfect_answer_scores_one(self):
        closed = class_question(("horse", "traffic_light", "bus"), with_other=True)
        oracle = Oracle()
        closed.add(oracle, picture("horse", "road", None, "traffic_light"))
        closed.add(oracle, picture("bus", "sky"))
        assert oracle.questions == [["horse", "traffic light", "bus", OTHER]] * 2
        assert closed.miou == 1.0
        assert closed.matrix.counts.diagonal().tolist() == [48, 48, 48, 96]

    def test_without_other_only_named_classes_are_scored(self):
        closed = class_question(("horse", "bus"), with_other=False)
        closed.add(Always(0), picture("horse", "road", "bus", "horse", None))
        assert closed.texts == ("horse", "bus")
        assert closed.matrix.counts.tolist() == [[96, 0], [48, 0]]
        assert closed.miou == pytest.approx((96 / 144 + 0) / 2)

    def test_pixels_wrongly_taken_from_other_lower_the_score(self):
        closed = class_question(("horse",), with_other=True)
        closed.add(Always(0), picture("horse", "road", "road"))
        assert closed.miou == pytest.approx(1 / 3)

    def test_classes_that_never_occur_do_not_count(self):
        closed = class_question(("horse", "bus"), with_other=True)
        closed.add(Oracle(), picture("horse", "road"))
        assert closed.miou == 1.0

    def test_pictures_without_a_scored_pixel_are_not_asked(self):
        oracle = Oracle()
        class_question(("horse",), with_other=False).add(oracle, picture("road", None))
        class_question(("horse",), with_other=True).add(oracle, picture(None))
        assert oracle.questions == []

    def test_a_super_class_is_right_for_each_of_its_members(self):
        closed = super_class_question(
            {"traffic": ("traffic_light", "traffic_sign"), "animal": ("horse",)}
        )
        assert closed.texts == ("traffic", "animal", OTHER)
        closed.add(Always(0), picture("traffic_light", "traffic_sign", "horse", "road"))
        assert closed.matrix.counts[:, 0].tolist() == [96, 48, 48]
        assert closed.miou == pytest.approx((96 / 192 + 0) / 2)

    @pytest.mark.parametrize("with_other", [True, False])
    @pytest.mark.parametrize(
        "stripes", [("horse", "bus"), ("horse", "horse", "horse", "bus", "road", "road", "sky")]
    )
    def test_chance_is_what_random_answers_score(self, with_other, stripes):
        closed = class_question(("horse", "bus", "bed"), with_other)  # No bed is shown.
        guesser = Guesser(1)
        big = picture(*stripes, height=6000)
        closed.add(guesser, big)
        assert closed.miou == pytest.approx(closed.chance_miou, rel=0.02)
        # The same by hand, over pixels drawn one by one.
        ids = [universal().id_of(name) for name in ("horse", "bus", "bed")]
        target = np.select([big.label == i for i in ids], [0, 1, 2], 3 if with_other else IGNORE)
        guesses = np.random.default_rng(2).integers(0, len(closed.texts), target.shape)
        matrix = ConfusionMatrix(len(closed.texts))
        matrix.update(guesses, target)
        by_hand = matrix.miou(over="target", classes=range(3))
        assert closed.chance_miou == pytest.approx(by_hand, rel=0.02)

    def test_chance_does_not_depend_on_the_answers(self):
        figures = []
        for asker in (Oracle(), Always(0), Guesser(0)):
            closed = ClosedQuestion(("horse", "bus"), (("horse",), ("bus",)), with_other=True)
            closed.add(asker, picture("horse", "bus", "bus", "road"))
            figures.append(closed.chance_miou)
        assert figures[0] == figures[1] == figures[2]
        assert 0 < figures[0] < 0.5


class TestBehaviours:
    SHOWN = (
        ("wall", "floor", "bed", "table"),
        ("sky", "road", "car", None),
        ("wall", "horse", "floor"),
    )

    def figures(self, asker, seed=0) -> dict[str, float]:
        behaviours = Behaviours(VOCABULARY, seed)
        for stripes in self.SHOWN:
            behaviours.add(asker, picture(*stripes))
        return behaviours.figures()

    def test_a_perfect_answer(self):
        assert self.figures(Oracle()) == {"present": 1.0, "absent": 0.0, "other": 1.0}

    def test_other_everywhere_finds_nothing_and_hallucinates_nothing(self):
        assert self.figures(Always(-1)) == {"present": 0.0, "absent": 0.0, "other": 1.0}

    def test_an_absent_label_everywhere_is_all_hallucination(self):
        # Just before "other" stand the absent labels.
        assert self.figures(Always(-2)) == {"present": 0.0, "absent": 1.0, "other": 0.0}

    def test_the_first_label_everywhere_finds_one_class_a_picture(self):
        # 2 of 4, 2 of 3 and 2 of 3 classes are named; the first of each is found.
        found = self.figures(Always(0))
        assert found == {"present": pytest.approx(3 / 6), "absent": 0.0, "other": 0.0}

    def test_random_answers_score_by_the_length_of_the_question(self):
        behaviours = Behaviours(VOCABULARY, seed=0)
        behaviours.add(Guesser(3), picture("wall", "floor", "bed", "table", height=2000))
        # Two named, five absent, "other".
        expected = {"present": 1 / 8, "absent": 5 / 8, "other": 1 / 8}
        assert behaviours.figures() == pytest.approx(expected, rel=0.05)

    def test_questions_name_half_of_what_is_there_and_five_that_are_not(self):
        for seed in range(20):
            oracle = Oracle()
            Behaviours(VOCABULARY, seed).add(
                oracle, picture("wall", "floor", "bed", "traffic_light")
            )
            (texts,) = oracle.questions
            assert texts[-1] == OTHER
            there = {"wall", "floor", "bed", "traffic light"}
            assert len(set(texts)) == len(texts) == 2 + 5 + 1
            assert set(texts[:2]) <= there
            assert not set(texts[2:-1]) & there
            assert set(texts[2:-1]) <= {label_text(name) for name in VOCABULARY}

    def test_the_seed_decides_the_questions(self):
        def asked(seed):
            oracle = Oracle()
            behaviours = Behaviours(VOCABULARY, seed)
            for stripes in self.SHOWN:
                behaviours.add(oracle, picture(*stripes))
            return tuple(map(tuple, oracle.questions))

        assert asked(1) == asked(1)
        assert len({asked(seed) for seed in range(5)}) == 5

    def test_pictures_of_a_single_class_are_left_out(self):
        oracle = Oracle()
        behaviours = Behaviours(VOCABULARY, seed=0)
        behaviours.add(oracle, picture("wall", None))
        # A speck of another class does not count as present, and is not asked as absent either.
        speck = picture(*["wall"] * 20)
        speck.label[0, 0] = universal().id_of("horse")
        behaviours.add(oracle, speck)
        assert oracle.questions == []
