"""Damages what decoders of pictures and readers of weights go by: segments, chunks, headers."""

import random
import struct
import zlib
from collections.abc import Sequence

from tests.support.mutators import BLIND, LARGEST, NUMBERS, lie
from tests.support.text_mutators import json_fields


def jpeg_segments(data: bytes, rng: random.Random, others: Sequence[bytes]) -> bytes:
    """Changes the segments of a JPEG's header: sizes, samplings, lengths, order, scans."""
    parts, position = [data[:2]], 2
    while position + 4 <= len(data) and data[position] == 0xFF:
        end = position + 2 + int.from_bytes(data[position + 2 : position + 4], "big")
        parts.append(data[position:end])
        position = end
        if parts[-1][1] == 0xDA:
            break
    rest = data[position:]
    if len(parts) < 3:
        return rng.choice(BLIND)(data, rng, others)
    at = rng.randrange(1, len(parts))
    frames = [i for i, part in enumerate(parts) if len(part) > 12 and part[1] in (0xC0, 0xC1, 0xC2)]
    match rng.randrange(8):
        case 0:
            parts.pop(at)
        case 1:
            parts[at:at] = [parts[at]] * rng.choice((1, 2, 100))
        case 2:
            other = rng.randrange(1, len(parts))
            parts[at], parts[other] = parts[other], parts[at]
        case 3:
            parts[at] = (
                parts[at][:2] + struct.pack(">H", rng.choice((0, 1, 2, 8, 0xFFFF))) + parts[at][4:]
            )
        case 4 if frames:  # Height and width.
            frame = bytearray(parts[frames[0]])
            struct.pack_into(">H", frame, rng.choice((5, 7)), rng.choice(NUMBERS) & 0xFFFF)
            parts[frames[0]] = bytes(frame)
        case 5 if frames:  # The samplings of the components, all legal ones among them.
            frame = bytearray(parts[frames[0]])
            for component in range(min(frame[9], (len(frame) - 10) // 3)):
                frame[11 + 3 * component] = rng.randrange(1, 5) << 4 | rng.randrange(1, 5)
            parts[frames[0]] = bytes(frame)
        case 6:  # A scan again and again, as in decompression bombs.
            scan = parts[-1] + rest.removesuffix(b"\xff\xd9")
            return (
                b"".join(parts[:-1])
                + scan * min(rng.choice((2, 20, 300)), LARGEST // len(scan) + 1)
                + b"\xff\xd9"
            )
        case _:
            parts[at] = parts[at][:4] + rng.choice(BLIND)(parts[at][4:], rng, others)[:0xFFF0]
            parts[at] = parts[at][:2] + struct.pack(">H", len(parts[at]) - 2) + parts[at][4:]
    return b"".join(parts) + rest


def png_chunks(data: bytes, rng: random.Random, others: Sequence[bytes]) -> bytes:
    """Changes the chunks of a PNG under right checksums: header, order, inflated data, types."""
    chunks, position = [], 8
    while position + 12 <= len(data):
        (length,) = struct.unpack(">I", data[position : position + 4])
        chunks.append(
            (data[position + 4 : position + 8], data[position + 8 : position + 8 + length])
        )
        position += 12 + length
    if not chunks or len(chunks[0][1]) != 13:
        return rng.choice(BLIND)(data, rng, others)
    at = rng.randrange(len(chunks))
    kind, content = chunks[at]
    match rng.randrange(6):
        case 0:
            header = bytearray(chunks[0][1])
            struct.pack_into(">I", header, rng.choice((0, 4)), rng.choice(NUMBERS) & 0xFFFFFFFF)
            chunks[0] = (b"IHDR", bytes(header))
        case 1:
            header = bytearray(chunks[0][1])
            header[rng.randrange(8, 13)] = rng.choice((0, 1, 2, 3, 4, 6, 8, 16, 255))
            chunks[0] = (b"IHDR", bytes(header))
        case 2:
            chunks.pop(at)
        case 3:
            chunks[at:at] = [chunks[at]] * rng.choice((1, 2, 1000))
        case 4:
            pixels = b"".join(c for k, c in chunks if k == b"IDAT")
            try:
                pixels = zlib.decompress(pixels)
            except zlib.error:
                pixels = b""
            pixels = rng.choice((*BLIND, lambda *_: bytes(1 << 24)))(pixels, rng, others)
            chunks = [c for c in chunks if c[0] not in (b"IDAT", b"IEND")]
            chunks += [(b"IDAT", zlib.compress(pixels)), (b"IEND", b"")]
        case _:
            changed = rng.choice(BLIND)(content, rng, others)
            kinds = (kind, b"tRNS", b"PLTE", b"eXIf", b"iCCP", b"zTXt", b"acTL", b"fdAT")
            chunks[at] = (rng.choice(kinds), changed)
    return data[:8] + b"".join(
        struct.pack(">I", len(c)) + k + c + struct.pack(">I", zlib.crc32(k + c)) for k, c in chunks
    )


def safetensors_header(data: bytes, rng: random.Random, others: Sequence[bytes]) -> bytes:
    """Changes the JSON header of a safetensors file under a right, or a lying, length."""
    length = int.from_bytes(data[:8], "little")
    if len(data) < 8 + length or rng.random() < 0.1:
        return lie(data[:16], rng, others) + data[16:]
    header = json_fields(data[8 : 8 + length], rng, others)
    return len(header).to_bytes(8, "little") + header + data[8 + length :]


def safetensors_numbers(data: bytes, rng: random.Random, others: Sequence[bytes]) -> bytes:
    """Makes numbers of the weights NaN or infinite; the file stays whole."""
    length = int.from_bytes(data[:8], "little") + 8
    count = (len(data) - length) // 4
    if count < 1:
        return rng.choice(BLIND)(data, rng, others)
    changed = bytearray(data)
    value = rng.choice((float("nan"), float("inf"), float("-inf"), 3e38))
    struct.pack_into("<f", changed, length + 4 * rng.randrange(count), value)
    return bytes(changed)
