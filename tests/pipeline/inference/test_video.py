"""Video files: each frame is segmented as the photo that it is, once, and joined again."""

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from pipeline.errors import UserError
from pipeline.inference.config import PredictConfig
from pipeline.inference.run import segment_photos
from tests.support.tiny_checkpoint import tiny_checkpoint

FRAMES = 7


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("video") / "step_00000003"
    return tiny_checkpoint(folder)


@pytest.fixture(scope="module")
def clip(tmp_path_factory) -> Path:
    """Seven frames of 64 x 48 pixels at 10 frames a second, each of other bands of colour."""
    path = tmp_path_factory.mktemp("clips") / "clip.mp4"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"mp4v"), 10, (64, 48))
    for number in range(FRAMES):
        rng = np.random.default_rng(number)
        coarse = rng.integers(0, 256, (3, 4, 3), np.uint8)
        writer.write(np.kron(coarse, np.ones((16, 16, 1), np.uint8)))
    writer.release()
    return path


def decoded(path: Path) -> list[np.ndarray]:
    file, frames = cv2.VideoCapture(str(path)), []
    while (answer := file.read())[0]:
        frames.append(answer[1][:, :, ::-1])
    return frames


def predict(checkpoint: Path, out: Path, *images: object, **settings):
    config = PredictConfig(
        checkpoint=str(checkpoint),
        images=tuple(map(str, images)),
        labels="dog, wet grass, road",
        out=str(out),
        batch_images=3,
        **settings,
    )
    return segment_photos(config, lambda cpus: pytest.fail("a video needs no Ray"))


def contents(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_each_frame_is_segmented_as_a_photo_of_it_is(checkpoint, clip, tmp_path):
    summary = predict(checkpoint, tmp_path / "out", clip)
    assert (summary.done, summary.skipped) == (FRAMES, 0)
    (tmp_path / "photos").mkdir()
    frames = decoded(clip)
    assert len(frames) == FRAMES
    for number, frame in enumerate(frames):
        Image.fromarray(frame).save(tmp_path / f"photos/{number:06d}.png")
    predict(checkpoint, tmp_path / "apart", tmp_path / "photos")
    for number in range(FRAMES):
        name = f"{number:06d}.png"
        alone = np.array(Image.open(tmp_path / "apart" / name))
        assert np.array_equal(np.array(Image.open(tmp_path / "out/clip.mp4" / name)), alone)
        assert len(np.unique(alone)) > 1


def test_the_overlays_are_a_video_in_the_time_of_the_first(checkpoint, clip, tmp_path):
    predict(checkpoint, tmp_path, clip, every=2)
    found = cv2.VideoCapture(str(tmp_path / "clip.mp4/overlay.mp4"))
    assert found.get(cv2.CAP_PROP_FPS) == pytest.approx(5)
    frames = decoded(tmp_path / "clip.mp4/overlay.mp4")
    assert len(frames) == 4
    for number, frame in zip((0, 2, 4, 6), frames, strict=True):
        sheet = np.array(Image.open(tmp_path / f"clip.mp4/{number:06d}.overlay.jpg"))
        cut = frame[: sheet.shape[0], : sheet.shape[1]]
        assert np.abs(cut.astype(int) - sheet).mean() < 12  # Both are compressed.
    assert not (tmp_path / "clip.mp4/000001.png").exists()


def test_a_later_call_does_what_is_left(checkpoint, clip, tmp_path):
    predict(checkpoint, tmp_path, clip, every=3)
    first = contents(tmp_path / "clip.mp4")
    summary = predict(checkpoint, tmp_path, clip)
    assert (summary.done, summary.skipped) == (4, 3)
    after = contents(tmp_path / "clip.mp4")
    assert all(after[name] == data for name, data in first.items() if name != "overlay.mp4")
    assert predict(checkpoint, tmp_path, clip).done == 0
    assert len(decoded(tmp_path / "clip.mp4/overlay.mp4")) == FRAMES


def test_images_and_videos_go_together_and_into_other_formats(checkpoint, clip, tmp_path):
    Image.new("RGB", (40, 30), "red").save(tmp_path / "photo.png")
    given = (checkpoint, tmp_path / "out", clip, tmp_path / "photo.png")
    summary = predict(*given, format="coco-panoptic", overlay=False)
    assert summary.done == FRAMES + 1
    page = json.loads((tmp_path / "out/coco-panoptic/panoptic.json").read_text())
    assert len(page["images"]) == FRAMES + 1
    assert not (tmp_path / "out/clip.mp4/overlay.mp4").exists()


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda data: b"no video at all", "is no video that FFmpeg can decode"),
        (lambda data: data[: len(data) // 3], "is no video that FFmpeg can decode"),
        (lambda data: b"", "is no video that FFmpeg can decode"),
    ],
)
def test_a_damaged_video_is_named_and_the_others_are_done(checkpoint, clip, tmp_path, damage, said):
    (tmp_path / "bad.mp4").write_bytes(damage(clip.read_bytes()))
    with pytest.raises(UserError, match=rf"1 of 8 could not be read .*bad\.mp4: {said}"):
        predict(checkpoint, tmp_path / "out", tmp_path / "bad.mp4", clip)
    assert len([*(tmp_path / "out/clip.mp4").glob("??????.png")]) == FRAMES
    (failed,) = json.loads((tmp_path / "out/failed.json").read_text())
    assert failed["image"].endswith("bad.mp4")


def test_a_cut_video_gives_its_frames_and_says_where_it_ends(checkpoint, clip, tmp_path):
    writer = cv2.VideoWriter(
        str(tmp_path / "cut.avi"), cv2.VideoWriter.fourcc(*"MJPG"), 10, (64, 48)
    )
    for frame in decoded(clip):
        writer.write(frame[:, :, ::-1])
    writer.release()
    data = (tmp_path / "cut.avi").read_bytes()
    (tmp_path / "cut.avi").write_bytes(data[:-1000])  # A frame takes 300 bytes.
    with pytest.raises(UserError, match=r"ends after \d of 7 frames, which are segmented"):
        predict(checkpoint, tmp_path / "out", tmp_path / "cut.avi")
    done = len([*(tmp_path / "out/cut.avi").glob("??????.png")])
    assert 0 < done < FRAMES
    assert len(decoded(tmp_path / "out/cut.avi/overlay.mp4")) == done


def test_two_videos_of_one_name_and_videos_elsewhere_are_refused(checkpoint, clip, tmp_path):
    (tmp_path / "clip.mp4").write_bytes(clip.read_bytes())
    with pytest.raises(UserError, match=r"would both be written to clip\.mp4"):
        predict(checkpoint, tmp_path / "out", clip, tmp_path / "clip.mp4")
    for place in ("no.mp4", "s3://bucket/clip.mp4"):
        with pytest.raises(UserError, match="must be a file on this machine"):
            predict(checkpoint, tmp_path / "out", place)
    with pytest.raises(UserError, match="every=0: must be at least 1"):
        predict(checkpoint, tmp_path / "out", clip, every=0)
