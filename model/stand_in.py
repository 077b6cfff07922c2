"""A text encoder without weights: words are fixed random directions (numpy only).

Every word has a random direction in a 16-dimensional semantic subspace of the 512 dimensions,
drawn from a hash of the word; a label is the normalised sum of its words. "red circle" is thus
close to "red square", and a word never seen in training still lies in the span of those seen,
as with real text embeddings. Words that say nothing by themselves ("other", "thing") add nothing
to a label; a label of such words alone is one fixed direction at right angles to all meaning.
"""

import hashlib
import re
from collections.abc import Sequence

import numpy as np

STAND_IN_DIM = 512
SEMANTIC_DIM = 16

EMPTY_WORDS = frozenset(
    "a an the of in on at for and or with other others another something anything everything "
    "nothing none background unknown unlabeled unlabelled misc miscellaneous rest else thing "
    "things stuff object objects item items generic any some xyz".split()
)
"""Words without a meaning of their own."""


def stand_in_semantics(labels: Sequence[str]) -> np.ndarray:
    """Gives the coordinates of labels in the semantic subspace.

    Args:
        labels: K texts; case does not matter; spaces, `_`, `-` and `/` part the words.

    Returns:
        (K, 17) float32, rows of length 1: 16 semantic coordinates, then the one of empty labels.
    """
    rows = np.zeros((len(labels), SEMANTIC_DIM + 1))
    for row, label in zip(rows, labels, strict=True):
        words = re.split(r"[\s_\-/,;.:()]+", label.lower())
        meaningful = [word for word in words if word and word not in EMPTY_WORDS]
        total = sum((_word_direction(word) for word in meaningful), np.zeros(SEMANTIC_DIM))
        if meaningful:
            row[:SEMANTIC_DIM] = total / np.linalg.norm(total)
        else:
            row[SEMANTIC_DIM] = 1.0
    return rows.astype(np.float32)


def stand_in_vectors(labels: Sequence[str]) -> np.ndarray:
    """Encodes K labels as in `stand_in_semantics`: (K, 512) float32, rows of length 1."""
    vectors = stand_in_semantics(labels).astype(np.float64) @ _orthonormal_map()
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def one_hot_vectors(labels: Sequence[str]) -> np.ndarray:
    """Encodes labels by a random direction each, so that none says anything of another.

    That is a one-hot vector in a turned space, for any number of labels: two have a cosine of 0,
    give or take 0.04.

    Returns:
        (K, 512) float32, rows of length 1.
    """
    vectors = np.stack(
        [_gaussian(f"label:{label.strip().lower()}", STAND_IN_DIM) for label in labels]
    )
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def _word_direction(word: str) -> np.ndarray:
    gaussian = _gaussian(f"word:{word}", SEMANTIC_DIM)
    return gaussian / np.linalg.norm(gaussian)


def _orthonormal_map() -> np.ndarray:
    """(17, 512) with orthonormal rows, from the semantic coordinates to the vectors."""
    gaussian = _gaussian("map", STAND_IN_DIM * (SEMANTIC_DIM + 1))
    columns, triangle = np.linalg.qr(gaussian.reshape(STAND_IN_DIM, SEMANTIC_DIM + 1))
    return (columns * np.sign(np.diag(triangle))).T


def _gaussian(name: str, count: int) -> np.ndarray:
    """Standard normal numbers that depend on the name alone, in every numpy version.

    Box-Muller over raw PCG64 bits: numpy freezes its bit streams, not its distributions.
    """
    seed = int.from_bytes(hashlib.sha256(name.encode()).digest()[:16], "big")
    raw = np.random.PCG64(seed).random_raw(2 * count)
    uniform = ((raw >> np.uint64(11)).astype(np.float64) + 0.5) * 2.0**-53
    return np.sqrt(-2 * np.log(uniform[:count])) * np.cos(2 * np.pi * uniform[count:])
