"""What is counted when photographs are asked by other words, on answers that are made by hand."""

from types import SimpleNamespace

import numpy as np
import pytest

from pipeline.data.taxonomy import IGNORE
from pipeline.evaluation.photos.questions import PhotoQuestions
from pipeline.evaluation.photos.words import Word

NAMES = ("car", "road", "sky")
WORDS = (
    Word("synonym", "vehicle", ("car",)),
    Word("synonym", "auto", ("car",)),
    Word("synonym", "sky", ("sky",)),
    Word("super-class", "thing", ("car", "road")),
    Word("super-class", "headwear", ("hat",)),
    Word("absent", "boat"),
    Word("absent", "road"),
    Word("other", "other"),
)
LABEL = np.array([[0, 0, 1, 1], [2, 2, 2, 255]], np.uint8)
LUT = np.full(256, IGNORE, np.uint8)
LUT[:3] = range(3)


class Oracle:
    """Knows the truth, and what some words mean; what nobody asked goes to the last text."""

    meaning = {0: ("car", "vehicle"), 1: ("road", "thing"), 2: ("sky",)}  # noqa: RUF012

    def __init__(self) -> None:
        self.asked: list[tuple[str, ...]] = []

    def ask(self, sample, texts):
        self.asked.append(tuple(texts))
        answer = np.full(sample.label.shape, len(texts) - 1)
        for number, words in self.meaning.items():
            for position, text in enumerate(texts):
                if text in words:
                    answer[sample.label == number] = position
        return answer

    def ask_surely(self, sample, texts, threshold):
        answer = self.ask(sample, texts)
        known = [n for n, words in self.meaning.items() if set(words) & set(texts)]
        return np.where(np.isin(sample.label, known), answer, -1)


def asked(words=WORDS):
    questions, oracle = PhotoQuestions(NAMES, LUT, words, seed=0), Oracle()
    questions.add(oracle, SimpleNamespace(label=LABEL))
    return questions.figures(), oracle


def test_each_word_stands_beside_its_names():
    figures, oracle = asked()
    assert figures["images"] == 1
    assert figures["own_miou"] == 1
    # A word that is a name of the set is none, nor is one for names that the set lacks.
    assert set(figures["words"]) == {"synonym: vehicle", "synonym: auto", "super-class: thing"}
    assert figures["words"]["synonym: vehicle"] == {"names": "car", "iou": 1, "iou_by_names": 1}
    # The oracle knows `thing` as the road alone: 2 of its 4 pixels, and the cars go to it as last.
    assert figures["words"]["super-class: thing"]["names"] == "car, road"
    assert ("road", "sky", "vehicle") in oracle.asked
    # It does not know `auto`, asked last, so that all else stays right.
    assert figures["words"]["synonym: auto"]["iou"] == 1


def test_the_first_synonym_takes_the_place_of_its_name():
    figures, oracle = asked()
    assert figures["renamed"] == {"car": "vehicle"}
    assert ("vehicle", "road", "sky") in oracle.asked
    assert figures["synonyms_miou"] == 1
    figures, _ = asked(WORDS[-1:])
    assert figures["synonyms_miou"] is None


def test_absent_words_are_those_that_the_set_does_not_have():
    figures, oracle = asked()
    assert figures["absent"] == {"boat": 0}
    assert (*NAMES, "boat") in oracle.asked

    class Boats(Oracle):
        def ask(self, sample, texts):
            answer = super().ask(sample, texts)
            if "boat" in texts:
                answer[0, 0] = texts.index("boat")
            return answer

    questions = PhotoQuestions(NAMES, LUT, WORDS, seed=0)
    questions.add(Boats(), SimpleNamespace(label=LABEL))
    assert questions.figures()["absent_share"] == pytest.approx(1 / 7, abs=1e-4)


def test_unnamed_pixels_go_to_the_word_or_below_the_threshold():
    figures, _ = asked()
    assert figures["unnamed_to_other"] == {"other": 1, "(below 0.5)": 1}
    assert figures["named_kept"] == {"other": 1, "(below 0.5)": 1}


def test_an_image_without_a_label_is_not_counted():
    questions = PhotoQuestions(NAMES, LUT, WORDS, seed=0)
    questions.add(Oracle(), SimpleNamespace(label=np.full((2, 2), 255, np.uint8)))
    assert questions.num_images == 0
