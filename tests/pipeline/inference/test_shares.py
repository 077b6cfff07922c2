import numpy as np

from pipeline.inference.shares import ShareTotals, in_words, percent, shares_of


def test_shares_are_those_of_the_pixels():
    ids = np.array([[0, 0, 2, -1], [0, 0, 2, 2]])
    assert shares_of(ids) == {-1: 1 / 8, 0: 4 / 8, 2: 3 / 8}


def test_the_largest_come_first_and_the_rest_together():
    shares = {0: 0.5, 2: 0.375, -1: 0.125}
    assert in_words(shares, ["road", "dog", "sky"], "other") == "road 50%, sky 38%, other 12%"
    many = {number: 0.1 for number in range(10)}
    words = in_words(many, [f"l{n}" for n in range(10)], "")
    assert words.endswith("l5 10%, 4 more 40%")
    assert in_words({0: 1.0}, ["a\nb"], "") == "a\\nb 100%"
    assert [percent(s) for s in (0.5, 0.0123, 0.0001)] == ["50%", "1.2%", "<0.1%"]


def test_means_count_images_without_a_label_too():
    totals = ShareTotals()
    totals.add({0: 1.0})
    totals.add({1: 0.5, -1: 0.5})
    assert totals.means() == {0: 0.5, 1: 0.25, -1: 0.25}
