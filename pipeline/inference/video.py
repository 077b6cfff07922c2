"""Video files: each frame is segmented alone, as if it were a photo.

The network knows nothing of the frames before, so that labels may flicker; nothing smooths them.
Of `clip.mp4` the results lie in the folder `clip.mp4`: `000012.png` and what else was asked for of
frame 12, counted from 0, and `overlay.mp4`, the overlays as a video. A frame that has its results
is passed over by a later call.

FFmpeg, as OpenCV's wheel brings it, decodes. It is C code that reads what it is given: segment
videos of strangers where a crash would cost nothing.
"""

import logging
import os
import tempfile
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import cv2
import numpy as np
from PIL import Image

from pipeline.data.pixels.checks import MAX_PIXELS, BadSample
from pipeline.errors import UserError, printable
from pipeline.inference.overlay import PAPER
from pipeline.inference.photos import Photo
from pipeline.inference.segmenter import PhotoOutcome, Segmenter, SegmentTask, writing_errors
from pipeline.inference.shares import ShareTotals, in_words
from pipeline.progress import Progress
from pipeline.storage.base import Storage
from pipeline.storage.open import open_storage

logger = logging.getLogger(__name__)

SUFFIXES = frozenset((".mp4", ".m4v", ".mov", ".avi", ".mkv", ".webm"))
"""Suffixes, in lower case, of the files that are taken for videos."""
OVERLAY = "overlay.mp4"

_MOST = 0.98
"""Share of the frames that a file announces, below which it is cut; some announce a guess."""


@dataclass(frozen=True)
class Video:
    """A video file on this machine."""

    path: str

    @property
    def name(self) -> str:
        """The folder of its results."""
        return PurePosixPath(self.path).name

    def frame(self, number: int) -> Photo:
        """Names a frame as if it were a photo."""
        root, name = os.path.split(os.path.abspath(self.path))
        return Photo(root, f"{name}#{number}", f"{self.name}/{number:06d}")


def split_videos(sources: Sequence[str]) -> tuple[list[Video], list[str]]:
    """Splits the sources into videos, which are named one by one, and sources of images.

    Raises:
        UserError: A video is not on this machine, or two would be written to one folder.
    """
    videos: dict[str, Video] = {}
    rest = []
    for source in sources:
        place = os.path.expanduser(source.removeprefix("file://"))
        if PurePosixPath(place).suffix.lower() not in SUFFIXES or os.path.isdir(place):
            rest.append(source)
            continue
        if not os.path.isfile(place):
            raise UserError(
                f"images={source}: there is no such file: a video must be a file on this machine, "
                "each named by itself: copy it here first"
            )
        video = Video(place)
        other = videos.setdefault(video.name, video)
        if os.path.realpath(other.path) != os.path.realpath(place):
            raise UserError(
                f"images: {other.path} and {place} would both be written to {video.name}: segment "
                "them one after the other, into two folders"
            )
    return list(videos.values()), rest


def segment_video(
    video: Video, segmenter: Segmenter, task: SegmentTask, there: Collection[str]
) -> tuple[list[PhotoOutcome], list[str]]:
    """Segments the frames that have no results yet, and joins the overlays of all.

    Args:
        video: The file.
        segmenter: The network.
        task: What to make of each frame.
        there: Paths of the results of earlier calls.

    Returns:
        The outcomes of the new frames, with one more that says why, if the file cannot be read; and
        the names of all frames that have results now.
    """
    config, outcomes, totals = task.config, [], ShareTotals()
    indexes = frozenset(path.removesuffix(".png") for path in there)
    names: list[str] = []
    try:
        for chunk in _frames(video, config.every, indexes, names, config.batch_images):
            outcomes += segmenter.segment_decoded(chunk)
    except BadSample as error:
        logger.warning("%s: %s", printable(video.path), error)
        outcomes.append(PhotoOutcome(video.path, video.name, str(error)))
    for outcome in outcomes:
        if not outcome.error:
            totals.add(outcome.shares)
    if totals.num_images:
        found = in_words(totals.means(), task.labels, task.none_name)
        logger.info("%s: mean over %d frames: %s", video.name, totals.num_images, found)
    if config.overlay and names:
        with writing_errors(config.out):
            _write_overlay(video, config.every, open_storage(task.out), names)
    return outcomes, names


def _frames(
    video: Video, every: int, done: Collection[str], names: list[str], together: int
) -> Iterator[list[tuple[Photo, np.ndarray]]]:
    """Decodes the frames that have no results yet, some at a time, and logs how far it is.

    Args:
        video: The file.
        every: Takes each so many-th frame, from the first.
        done: Names of frames that have results.
        names: Gets the name of each frame that was taken or is done.
        together: How many frames come at a time.

    Yields:
        Frames by name, and their pixels (H, W, 3) uint8 RGB, the right way up.

    Raises:
        BadSample: It cannot be decoded, or its frames are too large.
    """
    with _opened(video) as file:
        announced = max(0, int(file.get(cv2.CAP_PROP_FRAME_COUNT)))
        progress = Progress(-(-announced // every), "frames")
        number, chunk = 0, []
        while file.grab():
            photo = video.frame(number)
            if number % every:
                pass
            elif photo.name in done:
                names.append(photo.name)
                progress.add(1, photo.name)
            else:
                chunk.append((photo, _pixels(file, number)))
            if len(chunk) == together:
                yield chunk
                names += [photo.name for photo, _ in chunk]
                progress.add(len(chunk), photo.name)
                chunk = []
            number += 1
        if chunk:
            yield chunk
            names += [photo.name for photo, _ in chunk]
            progress.add(len(chunk), video.name)
    if not number:
        raise BadSample("no frame of it can be decoded: convert it to MP4")
    if number < _MOST * announced:
        raise BadSample(
            f"ends after {number} of {announced} frames, which are segmented: the file is cut, or "
            "damaged there"
        )


def _write_overlay(video: Video, every: int, out: Storage, names: Sequence[str]) -> None:
    """Joins the overlays of some frames of a video, in its own time."""
    with _opened(video) as file:
        rate = file.get(cv2.CAP_PROP_FPS)
    frames_per_s = (rate if 0 < rate < 1000 else 25.0) / every
    with tempfile.TemporaryDirectory() as scratch:
        # Their sizes are asked before the first is written, and `out` may be far away.
        sheets = [Path(scratch) / f"{number}.jpg" for number in range(len(names))]
        for path, name in zip(sheets, names, strict=True):
            path.write_bytes(out.read(f"{name}.overlay.jpg"))
        sizes = [Image.open(path).size for path in sheets]
        # The legends below the frames differ in height; many players want even numbers.
        width, height = (-(-max(side) // 2) * 2 for side in zip(*sizes, strict=True))
        local = Path(scratch) / OVERLAY
        code = cv2.VideoWriter.fourcc(*"mp4v")
        writer = cv2.VideoWriter(str(local), code, frames_per_s, (width, height))
        for path in sheets:
            sheet = Image.new("RGB", (width, height), PAPER)
            sheet.paste(Image.open(path))
            writer.write(cv2.cvtColor(np.asarray(sheet), cv2.COLOR_RGB2BGR))
        writer.release()
        out.upload(f"{video.name}/{OVERLAY}", local)


@contextmanager
def _opened(video: Video) -> Iterator[cv2.VideoCapture]:
    # What both print is told below, in words for people.
    os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_ERROR)
    file = cv2.VideoCapture(video.path, cv2.CAP_FFMPEG)
    try:
        if not file.isOpened():
            raise BadSample("is no video that FFmpeg can decode: convert it to MP4")
        width = int(file.get(cv2.CAP_PROP_FRAME_WIDTH))
        height = int(file.get(cv2.CAP_PROP_FRAME_HEIGHT))
        if width * height > MAX_PIXELS:
            raise BadSample(
                f"frames of {width} x {height} pixels: must be at most {MAX_PIXELS}: shrink it"
            )
        yield file
    finally:
        file.release()


def _pixels(file: cv2.VideoCapture, number: int) -> np.ndarray:
    is_there, frame = file.retrieve()
    if not is_there:
        raise BadSample(f"frame {number} cannot be decoded: convert it to MP4")
    return cv2.cvtColor(frame, cv2.COLOR_BGR2RGB)
