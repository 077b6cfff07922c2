"""Writers of small files in the encodings of the datasets."""

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

Put = Callable[..., None]


def png(pixels: Any, mode: str = "L") -> bytes:
    """A PNG of mode L, P, RGB or I;16 with exactly these values."""
    dtype = np.uint16 if mode == "I;16" else np.uint8
    if mode == "P":
        image = Image.fromarray(np.array(pixels, dtype))
        image.putpalette([(37 * i) % 256 for i in range(768)])
    else:
        image = Image.fromarray(np.array(pixels, dtype))
    assert image.mode == mode
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def jpg(height: int = 2, width: int = 3) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.full((height, width, 3), 90, np.uint8)).save(buffer, "JPEG")
    return buffer.getvalue()


@pytest.fixture
def put(tmp_path: Path) -> Put:
    """Writes a file below the test's folder: bytes as they are, anything else as JSON."""

    def write(path: str, content: Any = None) -> None:
        file = tmp_path / path
        file.parent.mkdir(parents=True, exist_ok=True)
        if content is None:
            content = jpg()
        file.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())

    return write
