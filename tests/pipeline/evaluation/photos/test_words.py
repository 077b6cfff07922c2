"""The table of words: of four kinds, none twice, and none that a training asks unseen."""

from pathlib import Path

import yaml

from pipeline.data.taxonomy import spelling
from pipeline.evaluation.photos.words import KINDS, Word, of_kind, photo_words

RECIPE = Path(__file__).resolve().parents[4] / "jobs" / "recipes" / "photos.yaml"


def test_each_line_is_of_a_kind_and_comes_once():
    words = photo_words()
    assert {word.kind for word in words} == set(KINDS)
    assert len({(word.kind, word.word) for word in words}) == len(words)
    for word in of_kind(words, "synonym", "super-class"):
        assert word.names, word
    assert all(len(word.names) == 1 for word in of_kind(words, "synonym"))


def test_the_recipe_asks_no_word_that_its_evaluation_calls_new():
    train = yaml.safe_load(RECIPE.read_text())["train"]
    asked = {spelling(word) for word in (*train["distractors"]["words"], *train["other"]["words"])}
    new = {spelling(w.word) for w in of_kind(photo_words(), "synonym", "super-class", "absent")}
    assert not asked & new


def test_a_word_finds_names_in_any_spelling_and_itself():
    word = Word("super-class", "headwear", ("hat", "traffic sign"))
    assert word.among(["Hat", "sky", "Traffic_Sign", "HEADWEAR"]) == (0, 2, 3)
    assert word.among(["sky"]) == ()
