"""Makes one self-contained HTML page about shards: images, labels, histogram, filter.

python jobs/preview.py --shards s3://lseg/mix7 --out preview.html
python jobs/preview.py --shards DIR --datasets '[ade20k]' --splits '[val]' --count 40
"""

import contextlib
import os
import sys
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from jobs.cli import main
from pipeline.errors import UserError


@dataclass(frozen=True, kw_only=True)
class PreviewConfig:
    """Which samples the page shows."""

    shards: str = ""
    """The folder of finished shards: a local directory or `s3://bucket/prefix`."""
    out: str = "preview.html"
    """The page to write."""
    datasets: tuple[str, ...] | None = None
    """Datasets to show; not set: all that are finished."""
    splits: tuple[str, ...] | None = None
    """Splits to show; not set: all that are finished."""
    count: int = 12
    """Images of each split, chosen to show many classes."""
    long_side_px: int = 480
    """Long side of the images on the page."""
    seed: int = 0
    """Seed of the choice of images."""

    def __post_init__(self) -> None:
        if not self.shards:
            raise UserError("shards: not set; give the folder that prepare_shards.py wrote")
        for name, low, high in (("count", 1, 500), ("long_side_px", 32, 4096), ("seed", 0, 2**32)):
            if not low <= getattr(self, name) <= high:
                raise UserError(f"{name}={getattr(self, name)}: must be between {low} and {high}")
        out = Path(self.out).absolute()
        if os.path.isdir(out) or not os.path.isdir(out.parent):
            raise UserError(f"out={self.out}: must be a file in a folder that exists")


def run(config: PreviewConfig) -> None:
    """Writes the page and prints where it lies."""
    from pipeline.data.inspect.page import render_page
    from pipeline.data.inspect.samples import load_chapters
    from pipeline.storage.places import ensure_writable_file

    out = Path(config.out).absolute()
    ensure_writable_file("out", config.out)
    chapters = load_chapters(
        config.shards,
        config.datasets,
        config.splits,
        config.count,
        config.long_side_px,
        config.seed,
    )
    _write(out, render_page(chapters, f"Shards in {config.shards}"))
    images = sum(len(chapter.images) for chapter in chapters)
    print(f"{out}: {images} images, {out.stat().st_size / 2**20:.1f} MiB")


def _write(out: Path, page: str) -> None:
    """Writes the page whole, or leaves what was there."""
    partial = out.with_name(f".{out.name[:100]}.{os.getpid()}.partial")
    try:
        partial.write_text(page, encoding="utf-8", errors="backslashreplace")
        os.replace(partial, out)
    except OSError as error:
        raise UserError(
            f"out={out}: cannot be written ({error.strerror}): make room, or give another place"
        ) from None
    finally:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)


if __name__ == "__main__":
    sys.exit(main(PreviewConfig, run, description=__doc__))
