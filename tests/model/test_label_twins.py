import numpy as np
import pytest

from model.label_twins import label_twins
from model.stand_in import stand_in_vectors


def unit(*shape: int, seed: int = 0) -> np.ndarray:
    vectors = np.random.default_rng(seed).standard_normal(shape)
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


@pytest.mark.parametrize(
    ("labels", "twins"),
    [
        (["Road", "road", "sky"], [(0, 1)]),
        (["traffic light", "sky", "traffic_light", "TRAFFIC-LIGHT"], [(0, 2), (0, 3)]),
        (["road", "roads", "sky", "a sky road"], []),
        (["road"], []),
    ],
)
def test_spellings_of_one_label(labels, twins):
    assert label_twins(stand_in_vectors(labels)) == twins


def test_among_very_many_labels_as_a_full_comparison():
    text = unit(3000, 64)
    text[[2999, 17, 1500]] = text[[5, 2000, 5]]
    text[9] += 1e-6  # rounding
    text[10] = text[9]
    assert label_twins(text) == [(9, 10), (5, 1500), (17, 2000), (5, 2999)]


def test_the_tolerance_is_a_cosine():
    base = unit(1, 512)[0].astype(np.float64)
    other = unit(1, 512, seed=1)[0]
    other = other - base * (other @ base)
    other /= np.linalg.norm(other)

    def rows(cosine: float) -> np.ndarray:
        return np.stack([base, cosine * base + np.sqrt(1 - cosine**2) * other])

    assert label_twins(rows(1 - 0.9e-6)) == [(0, 1)]
    assert label_twins(rows(1 - 1.1e-6)) == []


def test_all_equal_and_the_most_that_an_index_holds():
    assert label_twins(np.repeat(unit(1, 8), 50, axis=0)) == [(0, later) for later in range(1, 50)]
    assert label_twins(unit(20_000, 32)) == []
