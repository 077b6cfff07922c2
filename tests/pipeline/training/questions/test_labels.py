import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.data.shards.format import Manifest
from pipeline.data.taxonomy import IGNORE, Taxonomy, universal
from pipeline.errors import UserError
from pipeline.training.questions.labels import ask_for_fewer, label_space, training_labels

TINY = Taxonomy("tiny", ("wall", "chair_other", "sky", "road"))


def manifest(*class_pixels: int) -> Manifest:
    return Manifest(
        1, "idd", "train", "tiny", TINY.fingerprint, "", {}, (), class_pixels, (), (), TINY.classes
    )


def test_a_label_space_maps_its_classes_and_ignores_the_rest():
    space = label_space(("sky", "chair_other"), TINY)
    assert len(space) == 2
    assert space.texts == ("sky", "chair other")
    assert space.lut.dtype == np.uint8
    assert space.lut[2] == 0
    assert space.lut[1] == 1
    assert np.flatnonzero(space.lut != IGNORE).tolist() == [1, 2]


def test_an_unknown_class_is_named_with_its_neighbour():
    with pytest.raises(UserError, match=r"'skye'.*did you mean 'sky'"):
        label_space(["skye"], TINY)


def test_training_labels_are_those_with_pixels_in_any_manifest():
    found = training_labels([manifest(0, 5, 0, 0), manifest(0, 1, 0, 9)], "present", TINY)
    assert found.names == ("chair_other", "road")


def test_all_takes_the_whole_taxonomy():
    found = training_labels([], "all")
    assert found.names == universal().classes
    assert np.array_equal(found.lut[:194], np.arange(194))
    assert (found.lut[194:] == IGNORE).all()


def test_shards_without_a_labelled_pixel_are_refused():
    with pytest.raises(UserError, match=r"data\.shards: no class .* has a pixel"):
        training_labels([manifest(0, 0, 0, 0)], "present", TINY)


def test_a_manifest_of_another_taxonomy_does_not_pass_unseen():
    longer = dataclasses.replace(manifest(0, 0, 0, 0), class_pixels=(1, 2, 3, 4, 5))
    with pytest.raises(ValueError, match="longer"):
        training_labels([longer], "present", TINY)


@given(num_labels=st.integers(1, 194), drop=st.floats(0, 1), seed=st.integers(0, 2**32))
def test_a_smaller_question_keeps_some_and_joins_the_rest(num_labels, drop, seed):
    words = ("other", "background")
    kept, lut, word = ask_for_fewer(num_labels, drop, words, np.random.default_rng(seed))
    assert word in words
    assert 1 <= len(kept) <= num_labels
    assert (np.diff(kept) > 0).all()
    assert (lut.shape, lut.dtype) == ((256,), np.uint8)
    assert np.array_equal(lut[kept], np.arange(len(kept)))
    dropped = np.setdiff1d(np.arange(num_labels), kept)
    assert (lut[dropped] == len(kept)).all()
    assert (lut[num_labels:] == IGNORE).all()


def test_the_share_of_dropped_labels_and_the_words_are_as_asked():
    rng = np.random.default_rng(0)
    drawn = [ask_for_fewer(100, 0.3, ("other", "others", "rest"), rng) for _ in range(300)]
    assert np.mean([len(kept) for kept, _, _ in drawn]) == pytest.approx(70, abs=2)
    counts = [sum(word == w for _, _, word in drawn) for w in ("other", "others", "rest")]
    assert min(counts) > 60
    nothing_dropped = ask_for_fewer(5, 0.0, ("other",), rng)[0]
    assert nothing_dropped.tolist() == [0, 1, 2, 3, 4]
    assert len(ask_for_fewer(5, 1.0, ("other",), rng)[0]) == 1


def test_the_draw_depends_on_the_generator_alone():
    one = ask_for_fewer(50, 0.5, ("a", "b"), np.random.default_rng([3, 17]))
    other = ask_for_fewer(50, 0.5, ("a", "b"), np.random.default_rng([3, 17]))
    assert np.array_equal(one[0], other[0])
    assert np.array_equal(one[1], other[1])
    assert one[2] == other[2]
    assert not np.array_equal(one[1], ask_for_fewer(50, 0.5, ("a",), np.random.default_rng(4))[1])


def test_classes_that_are_held_out_are_neither_trained_nor_asked():
    shown = manifest(3, 2, 1, 0)
    space = training_labels([shown], "present", TINY, ("Chair Other",))
    assert space.names == ("wall", "sky")
    assert space.held_out == ("chair_other",)
    assert space.lut[TINY.id_of("chair_other")] == IGNORE
    assert len(training_labels([], "all", None, ("sky",))) == len(universal().classes) - 1
    with pytest.raises(UserError, match=r"train\.held_out=skyy: .*sky"):
        training_labels([shown], "present", TINY, ("skyy",))
    with pytest.raises(UserError, match="leaves no class to train"):
        training_labels([manifest(3, 0, 0, 0)], "present", TINY, ("wall",))
