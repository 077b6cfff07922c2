"""Damages archives, their members, and pickles, which lie in the archives of PyTorch."""

import io
import random
import re
import tarfile
import zipfile
from collections.abc import Sequence

from tests.support.mutators import BLIND, NUMBERS, Mutator, lie


def tar_headers(data: bytes, rng: random.Random, others: Sequence[bytes]) -> bytes:
    """Changes a field of one header of a tar, under a right checksum."""
    starts, position = [], 0
    while position + 512 <= len(data) and data[position : position + 512].strip(b"\0"):
        starts.append(position)
        try:
            size = int(data[position + 124 : position + 136].strip(b" \0") or b"0", 8)
        except ValueError:
            break
        position += 512 + -(-size // 512) * 512
    if not starts:
        return rng.choice(BLIND)(data, rng, others)
    start = rng.choice(starts)
    header = bytearray(data[start : start + 512])
    match rng.randrange(5):
        case 0:
            name = rng.choice(
                (b"../x", b"/etc/passwd", b"a//b", b"a\\b", b"\xff\xfe", b"x" * 100, b"")
            )
            header[:100] = name.ljust(100, b"\0")
        case 1:
            size = rng.choice(
                (b"00000000000", b"77777777777", b"-1", b"zzz", b"\x80" + b"\xff" * 11)
            )
            header[124:136] = size.ljust(12, b"\0")[:12]
        case 2:
            header[156] = rng.choice(b"01234567xgLKSDV\0")
            header[157:257] = rng.choice((b"/etc/passwd", b"../..", b"x")).ljust(100, b"\0")
        case 3:
            header[257:265] = rng.choice((b"ustar\x0000", b"ustar  \0", bytes(8)))
        case _:
            header = bytearray(lie(bytes(header), rng, others)[:512])
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return data[:start] + bytes(header) + data[start + 512 :]


def zip_directory(data: bytes, rng: random.Random, others: Sequence[bytes]) -> bytes:
    """Changes a number of a zip's central directory, of its end, or of a local header."""
    signs = (b"PK\x01\x02", b"PK\x05\x06", b"PK\x03\x04")
    starts = [m.start() for m in re.finditer(b"|".join(map(re.escape, signs)), data)]
    if not starts:
        return rng.choice(BLIND)(data, rng, others)
    changed = bytearray(data)
    for _ in range(rng.choice((1, 1, 3))):
        start = rng.choice(starts) + rng.choice((6, 8, 10, 12, 16, 20, 24, 28, 30, 32, 42))
        width = rng.choice((2, 4))
        number = rng.choice((*NUMBERS, rng.choice(starts))) % (1 << 8 * width)
        changed[start : start + width] = number.to_bytes(width, "little")
    return bytes(changed)


def members(inner: dict[str, Sequence[Mutator]]) -> Mutator:
    """A mutator of one member of a stored zip or of a tar, by the end of the member's name.

    The archive is written anew around it, so that its own sizes and checksums are right.
    """

    def mutate(data: bytes, rng: random.Random, others: Sequence[bytes]) -> bytes:
        is_zip = data[:4] == b"PK\x03\x04"
        try:
            content = unzipped(data) if is_zip else untarred(data)
        except Exception:
            return rng.choice(BLIND)(data, rng, others)
        fitting = [name for name in content if any(name.endswith(end) for end in inner)]
        if not fitting:
            return rng.choice(BLIND)(data, rng, others)
        name = rng.choice(fitting)
        (end,) = [end for end in inner if name.endswith(end)][:1]
        content[name] = rng.choice(inner[end])(content[name], rng, tuple(content.values()))
        return zipped(content) if is_zip else tarred(content)

    return mutate


def unzipped(data: bytes) -> dict[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(data)) as file:
        return {name: file.read(name) for name in file.namelist()}


def zipped(content: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        for name, data in content.items():
            file.writestr(name, data)
    return buffer.getvalue()


def untarred(data: bytes) -> dict[str, bytes]:
    with tarfile.open(fileobj=io.BytesIO(data)) as file:
        found = {m.name: file.extractfile(m) for m in file.getmembers() if m.isfile()}
        return {name: member.read() for name, member in found.items() if member}


def tarred(content: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as file:
        for name, data in content.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            file.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


PICKLE_CODES = (
    b"\x80\x04",
    b"\x8a\xff",
    b"\x8b\xff\xff\xff\x7f",
    b"r\xff\xff\xff\x7f",
    b"(" * 1000,
)
PICKLE_CODES += (
    b"cbuiltins\neval\n",
    b"cos\nsystem\n",
    b"R",
    b"b",
    b"u",
    b"Q",
    b"2" * 1000,
    b"0",
    b"]a",
)
PICKLE_CODES += (
    b"\x8e" + b"\xff" * 7 + b"\x7f",
    b"B\xff\xff\xff\x7f",
    b"X\xff\xff\xff\x7f",
    b"\x85" * 1000,
)
PICKLE_CODES += (
    b"I" + b"9" * 6000 + b"\n",
    b"}q\x00(h\x00h\x00u",
    b"T\xff\xff\xff\x7f",
    b"\x8f\x90",
    b"\x96" + b"\xff" * 8,
)


def pickle_codes(data: bytes, rng: random.Random, others: Sequence[bytes]) -> bytes:
    """Puts instructions into a pickle that reserve memory, name functions or break its stack."""
    changed = data
    for _ in range(rng.choice((1, 1, 3))):
        at = rng.randrange(len(changed) + 1)
        changed = changed[:at] + rng.choice(PICKLE_CODES) + changed[at + rng.choice((0, 0, 1, 5)) :]
    return changed
