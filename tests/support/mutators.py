"""Damages files as disks, networks and attackers do: blindly, and field by field.

A mutator takes a file's bytes, a generator of random numbers, and other files of its kind to splice
in. Equal seeds give equal damage. A field-aware one, of the modules whose names end in `_mutators`,
falls back to blind damage where the file is not of its format.
"""

import random
from collections.abc import Callable, Sequence

Mutator = Callable[[bytes, random.Random, Sequence[bytes]], bytes]

NUMBERS = (0, 1, 2, 7, 8, 0x7F, 0x80, 0xFF, 0x100, 0x7FFF, 0x8000, 0xFFFF, 1 << 24)
NUMBERS += (0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 1 << 40, (1 << 63) - 1, 1 << 63, (1 << 64) - 1)
"""Lengths, counts and offsets at which readers overflow, wrap or reserve memory."""

LARGEST = 1 << 22
"""Bytes of the largest file that repeats and splices make."""


def flip_bits(data: bytes, rng: random.Random, others: Sequence[bytes]) -> bytes:
    changed = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 8, 64)) if data else 0):
        changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def cut(data: bytes, rng: random.Random, others: Sequence[bytes]) -> bytes:
    """Ends early, or lacks a piece."""
    start = rng.randrange(len(data) + 1)
    end = len(data) if rng.random() < 0.5 else min(len(data), start + rng.randrange(1, 64))
    return data[:start] + data[end:]


def splice(data: bytes, rng: random.Random, others: Sequence[bytes]) -> bytes:
    other = rng.choice([*others, data])
    return data[: rng.randrange(len(data) + 1)] + other[rng.randrange(len(other) + 1) :]


def repeat_block(data: bytes, rng: random.Random, others: Sequence[bytes]) -> bytes:
    start = rng.randrange(len(data) + 1)
    block = data[start : start + rng.choice((1, 4, 16, 512, 4096))]
    times = min(rng.choice((2, 3, 50, 5000)), LARGEST // max(1, len(block)))
    return data[:start] + block * times + data[start:]


def lie(data: bytes, rng: random.Random, others: Sequence[bytes]) -> bytes:
    """Writes a telling number over 1 to 8 bytes somewhere, most likely in the header."""
    width, order = rng.choice((1, 2, 4, 8)), rng.choice(("little", "big"))
    number = rng.choice(NUMBERS) % (1 << 8 * width)
    reach = len(data) if rng.random() < 0.5 else min(len(data), 512)
    start = rng.randrange(reach + 1)
    return data[:start] + number.to_bytes(width, order) + data[start + width :]


def insert(data: bytes, rng: random.Random, others: Sequence[bytes]) -> bytes:
    start = rng.randrange(len(data) + 1)
    return data[:start] + rng.randbytes(rng.choice((1, 2, 4, 100))) + data[start:]


BLIND: tuple[Mutator, ...] = (flip_bits, cut, splice, repeat_block, lie, insert)


def mutate(
    data: bytes, rng: random.Random, others: Sequence[bytes], aware: Sequence[Mutator] = ()
) -> bytes:
    """Damages a file once or a few times; half of the damage is field-aware where that is known."""
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        chosen = rng.choice(aware) if aware and rng.random() < 0.6 else rng.choice(BLIND)
        data = chosen(data, rng, others)
    return data[:LARGEST]
