"""The comparison of an exported network with the network: how far off, on images of three sizes."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from model.lseg import LSeg
from model.metrics import ConfusionMatrix
from pipeline.errors import UserError
from pipeline.inference.export.config import TOLERANCE
from pipeline.inference.export.graph import reference_logits
from pipeline.inference.export.stored import Run

Logits = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""An image (H, W, 3) uint8 RGB and text (K, C) in, logits (K, h, w) out."""

SIZES = ((192, 256), (301, 203), (160, 417))
"""Height and width of the images that are compared: neither square, nor all multiples of 2."""


@dataclass(frozen=True)
class Agreement:
    """How far the answers of two networks are alike on some images."""

    largest_difference: float
    """Between two logits."""
    same_pixels: float
    """Share of the pixels that get the same label."""
    miou: float
    """Mean IoU of the answers, those of the network taken for the truth."""


def one_by_one(run: Run) -> Logits:
    """An opened network, which takes batches, as a function of one image."""
    return lambda image, text: run(image[None], text)[0]


def generated_images() -> list[np.ndarray]:
    """Three images (H, W, 3) uint8 RGB with smooth patches of colour."""
    numbers = np.random.default_rng(0)
    return [
        cv2.resize(
            numbers.integers(0, 256, (7, 9, 3), np.uint8), (288, 224), interpolation=cv2.INTER_CUBIC
        )
        for _ in SIZES
    ]


def resized(images: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Images at the sizes of SIZES in turn, at least one of each."""
    count = max(len(images), len(SIZES))
    return [
        cv2.resize(
            images[number % len(images)],
            SIZES[number % len(SIZES)][::-1],
            interpolation=cv2.INTER_AREA,
        )
        for number in range(count)
    ]


def compare(
    lseg: LSeg, logits: Logits, images: Sequence[np.ndarray], text_KC: np.ndarray
) -> Agreement:
    """Compares a network with an exported one."""
    counts, furthest, same, pixels = ConfusionMatrix(len(text_KC)), 0.0, 0, 0
    for image in images:
        wanted, found = reference_logits(lseg, image, text_KC), logits(image, text_KC)
        # Not a number compares with nothing, and must not pass for near.
        furthest = max(furthest, float(np.nan_to_num(np.abs(found - wanted), nan=np.inf).max()))
        truth, answer = wanted.argmax(0), found.argmax(0)
        counts.update(answer, truth)
        same, pixels = same + int((truth == answer).sum()), pixels + truth.size
    return Agreement(furthest, same / pixels, float(np.nanmean(counts.iou_per_class().numpy())))


def require_equal(
    where: str, lseg: LSeg, logits: Logits, images: Sequence[np.ndarray], text_KC: np.ndarray
) -> float:
    """Refuses an exported network that is not the network; returns the largest difference.

    Raises:
        UserError: Says at which size, and how far off it is.
    """
    furthest = 0.0
    for image in images:
        off = compare(lseg, logits, [image], text_KC).largest_difference
        if off > TOLERANCE:
            height, width = image.shape[:2]
            raise UserError(
                f"{where}: on an image of {width}x{height} pixels a logit is {off:.2g} from the "
                f"network's: must be at most {TOLERANCE:g}: nothing was exported; choose another "
                "form (--to), and report the checkpoint's backbone and head"
            )
        furthest = max(furthest, off)
    return furthest


def require_batches(
    where: str, run: Run, images: Sequence[np.ndarray], text_KC: np.ndarray
) -> float:
    """Refuses an exported network whose answers depend on the batch; returns how far they do.

    Each image is asked alone, and beside two others of its size.

    Raises:
        UserError: Says how far off an answer is.
    """
    furthest = 0.0
    for image in images[: len(SIZES)]:
        batch = np.stack([image, image[:, ::-1], image[::-1]])
        together = run(batch, text_KC)
        apart = np.concatenate([run(one[None], text_KC) for one in batch])
        off = np.abs(together - apart) if together.shape == apart.shape else np.array(np.inf)
        furthest = max(furthest, float(np.nan_to_num(off, nan=np.inf).max()))
    if furthest > TOLERANCE:
        raise UserError(
            f"{where}: in a batch of three images a logit is {furthest:.2g} from that of the image "
            f"alone: must be at most {TOLERANCE:g}: nothing was exported; choose another form "
            "(--to), and report the checkpoint's backbone and head"
        )
    return furthest
