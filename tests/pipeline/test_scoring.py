"""From scores to classes, and reading ahead: what validation and evaluation share."""

import threading
from dataclasses import replace

import numpy as np
import pytest
import torch

from pipeline.data.taxonomy import IGNORE
from pipeline.scoring import DROPPED, READ_AHEAD, choose, evenly, read_ahead, space_of

LUT = np.full(256, IGNORE, np.uint8)


def scores(*probabilities: float) -> torch.Tensor:
    """One pixel whose softmax is this: (1, T, 1, 1)."""
    return torch.tensor(probabilities).log()[None, :, None, None]


def answer(space, *probabilities: float) -> int:
    return int(choose(scores(*probabilities), space)[0, 0, 0])


def test_probabilities_of_a_class_are_summed():
    space = space_of(("a", "b"), ("t", "u", "v"), LUT, (0, 1, 1))
    assert answer(space, 0.4, 0.35, 0.25) == 1
    assert answer(space, 0.6, 0.2, 0.2) == 0


def test_texts_that_do_not_compete_have_a_probability_of_their_own():
    """Three unlikely ones: one of them would have nearly all of a softmax, or their sum half."""
    space = space_of(("a", "b"), ("t", "u", "v"), LUT, (0, 1, 1))
    unlikely = torch.tensor([-3.0, -3.2, -3.3])[None, :, None, None]
    assert int(choose(unlikely, space, apart=True)) == 0
    assert int(choose(unlikely, space)) == 1
    sure = replace(space, threshold=0.4)
    assert int(choose(unlikely, sure, apart=True)) == sure.none
    assert int(choose(unlikely + 3, sure, apart=True)) == 0
    assert int(choose(unlikely, sure)) == 1


def test_texts_without_a_class_cannot_win():
    space = space_of(("a", "b"), ("t", "u", "v"), LUT, (DROPPED, 0, 1))
    assert answer(space, 0.9, 0.04, 0.06) == 1


def test_reading_goes_ahead_in_order_and_hands_on_what_is_bad():
    begun: list[int] = []

    def read(position: int) -> int:
        begun.append(position)
        assert threading.current_thread() is not threading.main_thread()
        if position == 3:
            raise KeyError(position)
        return 10 * position

    seen = []
    for position, value in read_ahead(read, [1, 2, 3, 4, 5], KeyError):
        seen.append((position, value if isinstance(value, int) else "bad"))
        # Only so many more than are asked for: the rest would fill the memory.
        assert len(begun) <= len(seen) + READ_AHEAD
    assert seen == [(1, 10), (2, 20), (3, "bad"), (4, 40), (5, 50)]
    with pytest.raises(KeyError):
        list(read_ahead(read, [1, 3], OSError))
    assert list(read_ahead(read, [], OSError)) == []


def test_positions_lie_evenly():
    assert evenly(10, 3) == (0, 3, 6)
    assert evenly(3, 10) == evenly(3, 0) == (0, 1, 2)
    assert evenly(0, 5) == ()


def test_offsets_are_added_to_the_scores_of_their_texts():
    logits = torch.tensor([[2.0, 1.0, 0.5]]).reshape(1, 3, 1, 1)
    space = space_of(("a", "b", "c"), ("a", "b", "c"), np.zeros(256, int))
    assert int(choose(logits, space)) == 0
    assert int(choose(logits, replace(space, offsets=(-1.2, 0.0, 0.0)))) == 1
    # Of a probability, too, which a threshold is compared with.
    sure = replace(space, offsets=(0.0, 9.0, 0.0), threshold=0.9)
    assert int(choose(logits, sure)) == 1
    assert int(choose(logits, replace(sure, offsets=()))) == sure.none
