"""The one-line call: the list that transformers' pipeline gives, from the network's own answers."""

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import Dataset, IterableDataset

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


def test_an_iterator_gives_an_iterator_that_takes_one_image_at_a_time(segment):
    taken = []

    def photos():
        for number in range(3):
            taken.append(number)
            yield picture() if number < 2 else b"123"

    found = segment(photos(), candidate_labels="dog, wet grass")
    assert taken == []
    alone = segment(picture(), candidate_labels="dog, wet grass")
    assert [part["score"] for part in next(found)] == [part["score"] for part in alone]
    assert taken == [0]
    next(found)
    with pytest.raises(UserError, match="inputs: a bytes"):
        next(found)
    with pytest.raises(UserError, match="is named twice"):  # Before any image is taken.
        segment(photos(), candidate_labels="dog, dog")
    assert taken == [0, 1, 2]


def test_a_dataset_gives_an_iterator(segment):
    class Photos(Dataset):
        def __len__(self):
            return 2

        def __getitem__(self, index):
            return picture()

    class Stream(IterableDataset):
        def __iter__(self):
            return iter([picture(), picture()])

    for dataset in (Photos(), Stream()):
        found = segment(dataset, candidate_labels="dog, sky")
        assert iter(found) is found
        assert len([*found]) == 2


def test_arguments_of_transformers_are_taken(checkpoint, segment):
    """Those that change nothing for its semantic networks change nothing here."""
    plain = segment(picture(), candidate_labels="dog, wet grass")
    options = {
        "subtask": "semantic",
        "mask_threshold": 0.9,
        "overlap_mask_area_threshold": 0.1,
        "batch_size": 8,
        "num_workers": 2,
        "timeout": None,
    }
    same = segment(images=picture(), candidate_labels="dog, wet grass", **options)
    assert [part["score"] for part in same] == [part["score"] for part in plain]
    own = pipeline("image-segmentation", checkpoint, threshold=1.0, **options)
    assert own(inputs=picture(), candidate_labels="dog, wet grass") == []
    again = own(picture(), candidate_labels="dog, wet grass", threshold=0.0)
    assert [part["score"] for part in again] == [part["score"] for part in plain]


@pytest.mark.parametrize("device", [-1, np.int64(-1), "cpu", torch.device("cpu")])
def test_the_cpu_has_several_names(checkpoint, device):
    made = pipeline("image-segmentation", checkpoint, device=device)
    assert next(made.network.lseg.parameters()).device == torch.device("cpu")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("device", [0, None, "cuda", "cuda:0"])
def test_a_number_is_that_of_a_gpu(checkpoint, device):
    made = pipeline("image-segmentation", checkpoint, device=device)
    assert next(made.network.lseg.parameters()).device == torch.device("cuda:0")


@pytest.mark.parametrize("device", [99, -2, True, "cuda:99", "gpu", "meta", 1.5])
def test_a_device_that_is_not_there_is_refused_in_one_line(checkpoint, device):
    with pytest.raises(UserError, match=r"^device=.*cannot be used here \(.*must be -1") as caught:
        pipeline("image-segmentation", checkpoint, device=device)
    assert "\n" not in str(caught.value)


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
        (lambda s, d: s(picture(), subtask="panoptic"), "the network separates no instances"),
        (lambda s, d: s(picture(), threshold=2), "threshold=2: must be a probability"),
        (lambda s, d: s(picture(), mask_threshold="a"), "mask_threshold='a': must be a prob"),
        (lambda s, d: s(picture(), mask_treshold=0.5), "did you mean mask_threshold"),
        (lambda s, d: s(), "inputs: is missing"),
        (lambda s, d: s(picture(), images=picture()), "inputs: images is given too"),
        (lambda s, d: s(io.BytesIO(b"123")), "inputs: a BytesIO: must be"),
        (lambda s, d: s("data:image/png;base64," + "A" * 10**6), "nothing is fetched"),
        (lambda s, d: s("A" * 10**6), "cannot be read: File name too long"),
        (lambda s, d: s("no\0.jpg"), "cannot be read: "),
        (lambda s, d: pipeline(model="x", torch_dtype="auto"), "torch_dtype: is no argument"),
        (lambda s, d: pipeline(model="x", subtask="instance"), "subtask='instance': must be"),
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
    with pytest.raises(UserError, match=said) as caught:
        call(segment, tmp_path)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 600
