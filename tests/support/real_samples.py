"""Real files beside the checkout: where they lie, and roots of the datasets made of them."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
from PIL import Image

_MAPILLARY_PARTS = {"images": "images", "v1.2": "v1.2/labels", "v2.0": "v2.0/labels"}


def shared_folder() -> Path:
    """Where real files lie that are no part of the repository; it may be missing."""
    named = os.environ.get("LSEG_SHARED_DATA") or Path(__file__).parents[2] / "shared"
    return Path(named).resolve()


def real_files(*patterns: str, most: int = 8, largest: int = 1 << 16) -> list[bytes]:
    """Small real files to damage, for each pattern below the shared folder; none without it."""
    found = []
    for pattern in patterns:
        paths = sorted(p for p in shared_folder().glob(pattern) if p.is_file())
        small = [path for path in paths if path.stat().st_size <= largest]
        found += [path.read_bytes() for path in small[:: max(1, len(small) // most)][:most]]
    return found


def copy_root(source: Path, target: Path) -> Path:
    """Copies the samples of a dataset, and adds what they hold only in part.

    Args:
        source: A folder of the samples, such as `samples/idd`.
        target: The root to make, which must not exist.

    Returns:
        `target`, which may be written to.
    """
    if source.name == "mapillary_small":
        for part, place in _MAPILLARY_PARTS.items():
            shutil.copytree(source / part, target / "training" / place)
    else:
        shutil.copytree(source, target)
    if source.name == "idd":
        for polygons in list(target.rglob("*_gtFine_polygons.json")):
            _add_image(polygons)
    for path in target.rglob("*"):
        path.chmod(path.stat().st_mode | 0o200)
    return target


def _add_image(polygons: Path) -> None:
    """Writes a gradient of the right size: the samples of IDD are polygons without images."""
    name = str(polygons).replace("gtFine", "leftImg8bit").replace("_polygons.json", ".png")
    image, document = Path(name), json.loads(polygons.read_text())
    ramp = np.linspace(0, 255, document["imgWidth"], dtype=np.uint8)
    pixels = np.broadcast_to(ramp[None, :, None], (document["imgHeight"], len(ramp), 3))
    image.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels.copy()).save(image, compress_level=1)
