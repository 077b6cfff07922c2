import errno
import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from jobs.cli import main
from jobs.predict import BARE, run
from model.checkpoint import save_checkpoint
from model.config import BackboneConfig, ModelConfig, TextConfig
from model.lseg import LSeg, build_lseg
from model.sliding import PUBLISHED, SlidingConfig, sliding_logits
from model.stand_in import stand_in_vectors
from pipeline.data.pixels.palette import name_colours
from pipeline.errors import UserError
from pipeline.inference.config import (
    Other,
    PredictConfig,
    check_vectors,
    parse_other,
    read_labels,
    sliding_of,
)
from pipeline.inference.segmenter import encode_index, seen_image
from pipeline.storage.open import open_storage

REPOSITORY = Path(__file__).resolve().parents[2]
AUGMENT = {"data": {"augment": {"base_px": 60, "crop_px": 48}}}
SLIDING = SlidingConfig(base_px=60, window_px=48)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    """A tiny network whose answers vary over an image."""
    backbone = BackboneConfig(
        name="vit_tiny_patch16_224",
        pretrained=False,
        kwargs={"patch_size": 8, "depth": 4, "embed_dim": 48, "num_heads": 3, "img_size": 48},
    )
    config = ModelConfig(backbone=backbone, text=TextConfig(encoder="stand-in"), features=16)
    torch.manual_seed(0)
    lseg = build_lseg(config, 512).eval()
    with torch.no_grad():
        for parameter in lseg.parameters():
            if parameter.ndim > 1:
                parameter.mul_(2)
    folder = tmp_path_factory.mktemp("checkpoint")
    save_checkpoint(folder, lseg, ["wall", "sky"], extra_config=AUGMENT)
    return folder


def picture(seed: int, *size: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (6, 6, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((size[1], size[0]), Image.Resampling.BICUBIC))


def png(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture
def photos(tmp_path) -> Path:
    """Two small images of one size, a larger one, a grey one."""
    folder = tmp_path / "photos"
    (folder / "more").mkdir(parents=True)
    (folder / "a.png").write_bytes(png(picture(1, 40, 70)))
    (folder / "b.png").write_bytes(png(picture(2, 40, 70)))
    (folder / "more/large.png").write_bytes(png(picture(3, 200, 150)))
    (folder / "grey.png").write_bytes(png(picture(4, 55, 40)[:, :, 0]))
    return folder


def job(*words: object) -> int:
    return main(PredictConfig, run, [str(word) for word in words], bare=BARE)


def index(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path))


def expected_logits(checkpoint: Path, image: np.ndarray, texts, sliding=SLIDING) -> torch.Tensor:
    """Mean logits (T, H, W), by the parts that have tests of their own."""
    lseg = LSeg.load(checkpoint)
    seen = torch.from_numpy(seen_image(image, sliding))[None]
    text = lseg.embed_text(texts)
    logits = sliding_logits(lseg, lseg.normalize(seen), text, sliding, image.shape[:2])
    return logits[0] / sliding.num_views


LABELS = ["red car", "tree", "road"]


def test_a_folder_with_all_outputs(checkpoint, photos, tmp_path, capsys):
    out = tmp_path / "out"
    words = (photos, "--labels", "red car, tree,road", "--checkpoint", checkpoint, "--out", out)
    assert job(*words, "--probabilities", "true", "--features", "true") == 0
    assert "4 segmented" in capsys.readouterr().out
    for name in ("a", "b", "grey", "more/large"):
        for suffix in (".png", ".overlay.jpg", ".probabilities.npy", ".features.npy"):
            assert (out / f"{name}{suffix}").is_file()
    image = picture(3, 200, 150)
    logits = expected_logits(checkpoint, image, LABELS)
    ids = index(out / "more/large.png")
    np.testing.assert_array_equal(ids, logits.argmax(0).numpy())
    assert len(np.unique(ids)) > 1
    probabilities = np.load(out / "more/large.probabilities.npy")
    assert (probabilities.shape, probabilities.dtype) == ((3, 200, 150), np.float16)
    np.testing.assert_allclose(probabilities, logits.softmax(0).numpy(), atol=1e-3)
    features = np.load(out / "more/large.features.npy")
    assert (features.shape, features.dtype) == ((512, 30, 23), np.float16)  # half of 60 x 45
    np.testing.assert_allclose(np.linalg.norm(features.astype(float), axis=0), 1, atol=2e-3)
    stored = Image.open(out / "a.png")
    assert stored.mode == "P"
    palette = np.array(stored.getpalette()[:9]).reshape(3, 3)
    np.testing.assert_array_equal(palette, name_colours(LABELS))
    assert (out / "labels.txt").read_text().splitlines() == LABELS
    settings = json.loads((out / "prediction.json").read_text())
    assert settings["other"] == "none"
    assert (settings["sliding"]["base_px"], settings["sliding"]["window_px"]) == (60, 48)
    assert Image.open(out / "a.overlay.jpg").width == 900


def test_the_policies_for_other(checkpoint, photos, tmp_path):
    image, words = picture(3, 200, 150), (photos / "more/large.png", "--labels", "red car,tree")
    words = (*words, "--checkpoint", checkpoint, "--overlay", "false")
    assert job(*words, "--out", tmp_path / "w", "--other", "road, sky", "--probabilities=true") == 0
    logits = expected_logits(checkpoint, image, ["red car", "tree", "road", "sky"])
    best = logits.argmax(0).numpy()
    np.testing.assert_array_equal(index(tmp_path / "w/large.png"), np.where(best > 1, 255, best))
    assert 0 < (best > 1).mean() < 1
    probabilities = np.load(tmp_path / "w/large.probabilities.npy")
    expected = logits.softmax(0).numpy()
    np.testing.assert_allclose(probabilities[:2], expected[:2], atol=1e-3)
    np.testing.assert_allclose(probabilities[2], expected[2:].sum(0), atol=2e-3)

    probability, best = expected_logits(checkpoint, image, ["red car", "tree"]).softmax(0).max(0)
    threshold = round(float(probability.median()), 3)
    assert job(*words, "--out", tmp_path / "t", "--other", threshold) == 0
    doubtful = (probability < threshold).numpy()
    found = index(tmp_path / "t/large.png")
    assert 0.3 < doubtful.mean() < 0.7
    assert (found == np.where(doubtful, 255, best.numpy())).mean() > 0.999


def test_the_published_view(checkpoint, photos, tmp_path):
    words = (photos / "a.png", "--labels", "tree,road", "--checkpoint", checkpoint)
    assert job(*words, "--view", "published", "--out", tmp_path / "p") == 0
    sliding = SlidingConfig(scales=PUBLISHED.scales, flip=True, base_px=60, window_px=48)
    logits = expected_logits(checkpoint, picture(1, 40, 70), ["tree", "road"], sliding)
    same = index(tmp_path / "p/a.png") == logits.argmax(0).numpy()
    assert same.mean() > 0.999


def test_it_goes_on_where_it_stopped(checkpoint, photos, tmp_path, capsys):
    out = tmp_path / "out"
    words = (photos, "--labels", "tree,road", "--checkpoint", checkpoint, "--out", out)
    assert job(*words) == 0
    before = {path: path.stat().st_mtime_ns for path in out.glob("*.png")}
    (out / "b.png").unlink()
    assert job(*words) == 0
    assert "1 segmented" in capsys.readouterr().out.splitlines()[-1]
    after = {path: path.stat().st_mtime_ns for path in out.glob("*.png")}
    changed = [path.name for path in after if after[path] != before[path]]
    assert changed == ["b.png"]
    # Results made otherwise are kept apart by the user.
    assert job(*words, "--view", "whole") == 2
    assert "another sliding" in capsys.readouterr().err


def test_other_labels_get_a_folder_of_their_own(checkpoint, photos, tmp_path, capsys):
    out = tmp_path / "out"

    def ask(*words) -> Path:
        last = ("--checkpoint", checkpoint, "--out", out, "--overlay", "false")
        assert job(photos / "a.png", *words, *last) == 0
        return Path(capsys.readouterr().out.splitlines()[-1].rpartition("results: ")[2])

    assert ask("--labels", "tree,road") == out
    sky = ask("--labels", "tree, a sky/with: dots")
    assert sky.parent == out
    assert sky.name.startswith("labels-tree-a-sky-with-dots-")
    assert (sky / "labels.txt").read_text().splitlines() == ["tree", "a sky/with: dots"]
    other = ask("--labels", "tree,road", "--other", "dog")
    assert len({out, sky, other}) == 3
    for folder in (out, sky, other):
        assert (folder / "a.png").is_file()
    # The same words find their folder again.
    assert ask("--labels", "tree, a sky/with: dots") == sky
    assert ask("--labels", "tree,road") == out


def test_shares_and_trained_labels_are_told(checkpoint, photos, tmp_path, caplog):
    words = (photos / "a.png", "--checkpoint", checkpoint, "--out", tmp_path / "o")
    with caplog.at_level("INFO", "pipeline"):
        assert job(*words) == 0
    assert "the 2 of the checkpoint's training are asked (wall, sky)" in caplog.text
    ids = index(tmp_path / "o/a.png")
    share = (ids == 0).mean()
    assert 0 < share <= 1
    assert any(line.startswith("a: ") and f"wall {share:.0%}" in line for line in caplog.messages)


def test_a_full_disk_is_one_message(checkpoint, photos, tmp_path, capsys, monkeypatch):
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("pipeline.storage.local.os.replace", full)
    words = (photos, "--labels", "tree,road", "--checkpoint", checkpoint, "--out", tmp_path / "o")
    assert job(*words) == 2
    error = capsys.readouterr().err
    assert "Traceback" not in error
    assert "no space left on device" in error.splitlines()[-1]


def test_bad_pictures_are_told_and_the_others_done(checkpoint, photos, tmp_path, capsys):
    (photos / "broken.jpg").write_bytes(b"not an image")
    (photos / "cut.png").write_bytes(png(picture(1, 40, 70))[:500])
    out = tmp_path / "out"
    words = (photos, "--labels", "tree,road", "--checkpoint", checkpoint, "--out", out)
    assert job(*words) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: images: 2 of 6 could not be read")
    assert "broken.jpg" in error
    assert "Traceback" not in error
    failed = json.loads((out / "failed.json").read_text())
    assert [Path(entry["image"]).name for entry in failed] == ["broken.jpg", "cut.png"]
    assert len(list(out.rglob("*.overlay.jpg"))) == 4
    (photos / "broken.jpg").unlink()
    (photos / "cut.png").unlink()
    assert job(*words) == 0
    assert json.loads((out / "failed.json").read_text()) == []


@pytest.mark.slow
@pytest.mark.usefixtures("local_ray")
def test_a_prefix_goes_through_ray_with_the_same_results(checkpoint, photos, tmp_path, s3_bucket):
    storage = open_storage(s3_bucket)
    for path in photos.rglob("*.png"):
        storage.write(f"in/{path.relative_to(photos)}", path.read_bytes())
    storage.write("in/broken.jpg", b"no image")
    words = ("--labels", "tree,road", "--checkpoint", checkpoint)
    assert job(photos, *words, "--out", tmp_path / "here") == 0
    assert job(f"{s3_bucket}/in", *words, "--batch_images", 2, "--out", f"{s3_bucket}/out") == 2
    stored = [entry.path for entry in storage.list("out") if entry.path.endswith(".png")]
    assert stored == [f"out/{name}.png" for name in ("a", "b", "grey", "more/large")]
    for name in ("a", "b", "grey", "more/large"):
        here = index(tmp_path / f"here/{name}.png")
        there = np.asarray(Image.open(io.BytesIO(storage.read(f"out/{name}.png"))))
        assert (here == there).mean() > 0.999
    assert json.loads(storage.read("out/failed.json"))[0]["image"] == f"{s3_bucket}/in/broken.jpg"


def test_the_command_from_anywhere(checkpoint, photos, tmp_path):
    """As in the README, in a process of its own."""
    command = [sys.executable, REPOSITORY / "jobs/predict.py", photos / "a.png"]
    command += ["--labels", "dog, grass", "--checkpoint", checkpoint]
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "1 segmented" in done.stdout
    assert (tmp_path / "predictions/a.overlay.jpg").is_file()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"labels": "tree,tree"}, "twice"),
        ({"labels": "Road, road"}, "'Road' and 'road' are the same to the text encoder"),
        ({"labels": "sky, traffic light, traffic_light"}, "'traffic light' and 'traffic_light'"),
        ({"labels": "other, road", "other": "Other"}, "other=Other: is the same"),
        ({"labels": "road", "other": "dog, ROAD"}, "other=ROAD: is the same"),
        ({"labels": " , "}, "names nothing"),
        ({"labels": "sky, two\u2028lines"}, "a label must be one line of text"),
        ({"labels": "sky, \udce9"}, "is not UTF-8 text"),
        ({"labels": "tree", "other": "tree"}, "one of the labels too"),
        ({"labels": "tree", "other": "1.5"}, "other=1.5"),
        ({"labels": "tree", "labels_file": "x.txt"}, "labels_file"),
        ({"labels_file": "missing.txt"}, "missing.txt"),
        ({"labels": "tree", "images": "missing.jpg"}, "missing.jpg"),
        ({"labels": "tree", "checkpoint": "missing"}, "checkpoint=missing"),
        ({"labels": "tree", "view": "whole", "window_px": "48"}, "window_px"),
        ({"labels": "tree", "full_size": "true", "base_px": "48"}, "base_px"),
        ({"labels": "tree", "full_size": "true", "features": "true"}, "features"),
        ({"labels": "tree", "pallette": "distinct"}, "did you mean 'palette'"),
    ],
)
def test_wrong_use_is_one_message(checkpoint, photos, tmp_path, capsys, options, words):
    given = {"images": str(photos), "checkpoint": str(checkpoint), "out": str(tmp_path / "o")}
    given.update(options)
    images = given.pop("images")
    assert job(images, *(f"--{key}={value}" for key, value in given.items())) == 2
    lines = capsys.readouterr().err.splitlines()
    assert words in lines[-1]
    assert lines[-1].startswith("error: ")
    assert not (tmp_path / "o/a.png").exists()


def test_long_labels_of_one_vector_are_told_by_their_ends(checkpoint, photos, tmp_path, capsys):
    many = "a long description of a thing that many words say " * 18
    for last in ("red_car", "red car"):
        (tmp_path / "words.txt").open("a").write(f"{many}{last}\n")
    words = (photos / "a.png", "--checkpoint", checkpoint, "--out", tmp_path / "out")
    assert job(*words, "--labels_file", tmp_path / "words.txt") == 2
    told = capsys.readouterr().err
    assert re.search(r"'a long desc.*\.\.\..*red_car' and 'a long desc.*\.\.\..*red car' are", told)
    assert len(told) < 500


def test_labels_of_a_file_and_of_the_checkpoint(checkpoint, tmp_path):
    path = tmp_path / "labels.txt"
    path.write_text("dog, brown\n\n  grass \n", encoding="utf-8-sig")
    config = PredictConfig(checkpoint="x", labels_file=str(path))
    assert read_labels(config, ["wall"]) == ("dog, brown", "grass")
    assert read_labels(PredictConfig(checkpoint="x"), ["wall", "sky"]) == ("wall", "sky")
    # ADE20K's published list has "screen" twice: what a checkpoint was trained on is no mistake.
    assert len(read_labels(PredictConfig(checkpoint="x"), ["screen", "screen"])) == 2
    with pytest.raises(UserError, match="names 0 labels"):
        read_labels(PredictConfig(checkpoint="x"), [])
    # A file that is no list of labels is not quoted in full.
    path.write_text("\n".join(["x" * 200_000] * 2))
    with pytest.raises(
        UserError, match="of 200000 letters: a label must have at most 1000"
    ) as told:
        read_labels(config, ["wall"])
    assert len(str(told.value)) < 500


def test_trained_labels_that_are_the_same_are_warned_of(caplog):
    # A checkpoint may have been trained on both; only then they are no mistake of the caller's.
    texts = ("Bottle-X", "bottle x", "sky")
    vectors = stand_in_vectors(texts)
    check_vectors(texts, Other(), vectors, "labels", is_trained=True)
    assert "'bottle x' is the same to the text encoder as 'Bottle-X'" in caplog.text
    with pytest.raises(UserError, match="labels_file=x: 'Bottle-X' and 'bottle x'"):
        check_vectors(texts, Other(), vectors, "labels_file=x", is_trained=False)
    # What looks the same may have other vectors, as of this encoder.
    for looks in (("caf\u00e9", "cafe\u0301"), ("road", "ro\u00adad"), ("road", "\uff52oad")):
        with pytest.raises(UserError, match=r"labels: '.*' and '.*\\.*' are one label in two sp"):
            check_vectors(looks, Other(), stand_in_vectors(looks), "labels", is_trained=False)
        check_vectors(looks, Other(), stand_in_vectors(looks), "labels", is_trained=True)
    # Words for "none" may be the same as each other.
    both = stand_in_vectors(("sky", "other", "others"))
    check_vectors(("sky",), Other(texts=("other", "others")), both, "labels", is_trained=False)


def test_sizes_come_from_the_training(checkpoint, tmp_path):
    assert sliding_of(PredictConfig(checkpoint="x"), checkpoint) == SLIDING
    bare = tmp_path / "imported"
    save_checkpoint(bare, LSeg.load(checkpoint))
    assert sliding_of(PredictConfig(checkpoint="x"), bare) == SlidingConfig()
    published = sliding_of(PredictConfig(checkpoint="x", view="published"), bare)
    assert published == PUBLISHED
    own = sliding_of(PredictConfig(checkpoint="x", full_size=True, window_px=96), checkpoint)
    assert (own.base_px, own.window_px) == (None, 96)


def test_policies_are_named():
    assert [str(parse_other(value)) for value in ("none", "0.4", "other, rest")] == [
        "none",
        "threshold 0.4",
        "words: other, rest",
    ]


def test_large_pictures_are_shrunk_by_areas_first():
    fine = np.zeros((1200, 800, 3), np.uint8)
    fine[::2] = 200  # stripes of one pixel, which single pixels would turn into flicker
    seen = seen_image(fine, SlidingConfig())
    assert seen.shape == (520, 347, 3)
    assert np.abs(seen.astype(int) - 100).max() < 50
    small = fine[:400, :300]
    assert seen_image(small, SlidingConfig()) is small
    assert seen_image(fine, PUBLISHED).shape == (910, 607, 3)


def test_an_index_of_many_labels_has_16_bits():
    ids = np.array([[0, 255, 300, -1]])
    stored = np.asarray(
        Image.open(io.BytesIO(encode_index(ids, [f"label {n}" for n in range(400)], "distinct")))
    )
    np.testing.assert_array_equal(stored, [[0, 255, 300, 65_535]])
    few = Image.open(
        io.BytesIO(encode_index(np.array([[0, 254, -1]]), [str(n) for n in range(255)], "distinct"))
    )
    np.testing.assert_array_equal(np.asarray(few), [[0, 254, 255]])
