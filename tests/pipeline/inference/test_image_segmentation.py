"""The one-line call: the list that transformers' pipeline gives, from the network's own answers."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from model.lseg import LSeg
from model.sliding import SlidingConfig
from pipeline.errors import UserError
from pipeline.inference.image_segmentation import ImageSegmentation, pipeline
from pipeline.inference.segmenter import seen_image
from tests.support.tiny_checkpoint import TRAINED, tiny_checkpoint

SLIDING = SlidingConfig(base_px=60, window_px=48)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    """A tiny network whose answers vary over an image."""
    folder = tmp_path_factory.mktemp("segmentation") / "step_00000003"
    return tiny_checkpoint(folder)


@pytest.fixture(scope="module")
def segment(checkpoint) -> ImageSegmentation:
    return pipeline("image-segmentation", model=checkpoint)


def picture(height: int = 40, width: int = 64) -> np.ndarray:
    """Bands of noise, (H, W, 3) uint8."""
    rng = np.random.default_rng(3)
    coarse = rng.integers(0, 256, (height // 8, width // 8, 3), np.uint8)
    return np.kron(coarse, np.ones((8, 8, 1), np.uint8))


def test_masks_are_the_networks_labels_and_scores_their_mean_probability(checkpoint, segment):
    image, labels = picture(), ["dog", "wet grass", "sky"]
    found = segment(Image.fromarray(image), candidate_labels=labels)
    lseg = LSeg.load(checkpoint)
    (ids,) = lseg.predict(seen_image(image, SLIDING), labels, sliding=SLIDING)
    ids = np.array(Image.fromarray(ids.astype(np.uint8)).resize((64, 40), Image.Resampling.NEAREST))
    assert 1 < len(found) <= 3
    assert [part["label"] for part in found] == [labels[number] for number in np.unique(ids)]
    total = np.zeros((40, 64), int)
    for part in found:
        mask = np.array(part["mask"])
        assert part["mask"].mode == "L"
        assert part["mask"].size == (64, 40)
        assert set(np.unique(mask)) <= {0, 255}
        total += mask > 0
        # The network's own shape lies within the borders that the two ways of resizing differ in.
        assert np.mean((mask > 0) != (ids == labels.index(part["label"]))) < 0.1
    assert (total == 1).all()
    question = segment.network.question({"labels": labels})
    batch = segment.network.see(image, question)
    probability = segment.network.probabilities(batch, (40, 64), question).astype(float)
    for part in found:
        where = np.array(part["mask"]) > 0
        wanted = probability[labels.index(part["label"])][where].mean()
        assert part["score"] == pytest.approx(wanted, abs=1e-6)


def test_a_file_an_image_and_an_array_are_one_and_a_list_gives_lists(segment, tmp_path):
    image = picture()
    Image.fromarray(image).save(tmp_path / "photo.png")
    ways = [str(tmp_path / "photo.png"), tmp_path / "photo.png", Image.fromarray(image), image]
    answers = segment(ways, candidate_labels="dog, wet grass, sky")
    assert len(answers) == 4
    for answer in answers:
        assert [part["label"] for part in answer] == [part["label"] for part in answers[0]]
        assert [part["score"] for part in answer] == [part["score"] for part in answers[0]]
    assert segment([], candidate_labels="dog") == []


def test_without_labels_the_trained_ones_are_asked_unless_the_pipeline_has_some(
    checkpoint, segment
):
    assert {part["label"] for part in segment(picture())} <= set(TRAINED)
    own = pipeline("image-segmentation", checkpoint, candidate_labels="dog, cat", other="sky")
    assert {part["label"] for part in own(picture())} <= {"dog", "cat"}


def test_pixels_of_none_of_the_labels_are_in_no_mask(segment):
    labels = ["dog", "wet grass"]
    plain = segment(picture(), candidate_labels=labels)
    words = segment(picture(), candidate_labels=labels, other="sky, wall")
    assert sum(np.count_nonzero(part["mask"]) for part in plain) == 40 * 64
    assert 0 < sum(np.count_nonzero(part["mask"]) for part in words) < 40 * 64
    scores = [part["score"] for part in plain]
    between = (min(scores) + max(scores)) / 2
    kept = segment(picture(), candidate_labels=labels, threshold=between)
    assert [part["score"] for part in kept] == [max(scores)]


def test_a_photo_is_turned_as_its_tag_says(segment, tmp_path):
    image = Image.fromarray(picture())
    exif = image.getexif()
    exif[0x0112] = 6
    image.save(tmp_path / "turned.png", exif=exif)
    for given in (tmp_path / "turned.png", Image.open(tmp_path / "turned.png")):
        assert segment(given)[0]["mask"].size == (40, 64)


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda s, d: s(picture(), subtask="instance"), "subtask='instance': must be 'semantic'"),
        (lambda s, d: s(picture(), threshold=2), "threshold=2: must be a probability"),
        (lambda s, d: s(picture(), "dog, dog"), r"labels\[1\]='dog': is named twice"),
        (lambda s, d: s(picture(), "dog", other="2"), "other=2: must be a probability"),
        (lambda s, d: s(picture().astype(float)), "array of float64 and shape"),
        (lambda s, d: s(b"123"), "inputs: a bytes: must be"),
        (lambda s, d: s("http://example.org/a.jpg"), "nothing is fetched"),
        (lambda s, d: s(str(d / "no.jpg")), r"no\.jpg: cannot be read: No such file"),
        (lambda s, d: s(str(d)), "cannot be read: Is a directory"),
        (lambda s, d: pipeline("depth-estimation", "x"), "task='depth-estimation': must be"),
        (lambda s, d: pipeline("image-segmentation"), "model: must name a checkpoint"),
        (lambda s, d: pipeline("image-segmentation", d / "no"), "model=.*no"),
    ],
)
def test_mistakes_are_told_in_one_line(segment, tmp_path, call, said):
    with pytest.raises(UserError, match=said):
        call(segment, tmp_path)
