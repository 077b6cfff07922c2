"""Baseline JPEGs with any sampling factors, which common encoders do not write.

Every block of 8 x 8 pixels has one value: the codes are those of the DC coefficients alone.
"""

import struct
from collections.abc import Sequence

import numpy as np

ODD_SAMPLINGS = {
    "1x4": ((1, 4), (1, 1), (1, 1)),
    "3x1": ((3, 1), (1, 1), (1, 1)),
    "1x3": ((1, 3), (1, 1), (1, 1)),
    "3x2": ((3, 2), (1, 1), (1, 1)),
    "2x4": ((2, 4), (1, 1), (1, 1)),
    "4x2": ((4, 2), (1, 1), (1, 1)),
    "1x1/2x2/1x1": ((1, 1), (2, 2), (1, 1)),
    "1x1/2x1/2x1": ((1, 1), (2, 1), (2, 1)),
}
"""Legal for libjpeg; the first has no name in simplejpeg, the others none in TurboJPEG."""


def sampled_jpeg(width: int, height: int, factors: Sequence[tuple[int, int]], seed: int) -> bytes:
    """A YCbCr JPEG whose components have these horizontal and vertical sampling factors."""
    rng = np.random.default_rng(seed)
    across, down = max(h for h, _ in factors), max(v for _, v in factors)
    num_mcus = -(-width // (8 * across)) * -(-height // (8 * down))
    bits = ""
    last = [0] * len(factors)
    for _ in range(num_mcus):
        for component, (h, v) in enumerate(factors):
            for value in rng.integers(-40, 41, h * v).tolist():
                bits += _dc_code(value - last[component]) + "0"  # "0" ends the block
                last[component] = value
    bits += "1" * (-len(bits) % 8)
    scan = int(bits, 2).to_bytes(len(bits) // 8, "big").replace(b"\xff", b"\xff\0")
    numbers = range(1, len(factors) + 1)
    frame = b"".join(bytes((n, h << 4 | v, 0)) for n, (h, v) in zip(numbers, factors, strict=True))
    count = bytes((len(factors),))
    return b"\xff\xd8" + b"".join(
        (
            _segment(0xE0, b"JFIF\0\1\1\0\0\1\0\1\0\0"),
            _segment(0xDB, b"\0" + bytes([8] * 64)),
            _segment(0xC0, struct.pack(">BHH", 8, height, width) + count + frame),
            # DC: sixteen codes of 4 bits would leave none that is all ones, which is not allowed.
            _segment(0xC4, b"\0" + bytes((0, 0, 0, 12, *[0] * 12)) + bytes(range(12))),
            _segment(0xC4, b"\x10" + bytes((1, *[0] * 15)) + b"\0"),
            _segment(0xDA, count + b"".join(bytes((n, 0)) for n in numbers) + b"\0\x3f\0"),
            scan,
            b"\xff\xd9",
        )
    )


def _dc_code(value: int) -> str:
    size = abs(value).bit_length()
    code = f"{size:04b}"
    if not size:
        return code
    return code + f"{value if value > 0 else value + (1 << size) - 1:0{size}b}"


def _segment(marker: int, content: bytes) -> bytes:
    return struct.pack(">BBH", 0xFF, marker, len(content) + 2) + content
