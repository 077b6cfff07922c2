"""Damages files as disks, networks and attackers do: blindly, and field by field.

A mutator takes a file's bytes, a generator of random numbers, and other files of its kind to splice
in. Equal seeds give equal damage. A field-aware one falls back to blind damage where the file is
not of its format.
"""

import copy
import io
import json
import random
import re
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Sequence
from typing import Any

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


VALUES: tuple[Any, ...] = (None, True, False, 0, 1, -1, 255, 256, 1 << 31, 1 << 40, -(1 << 63))
VALUES += (1 << 64, 0.5, 1e9, 1e308, float("inf"), float("-inf"), float("nan"), "", " ", "0", "²")
VALUES += ("a\nb", "\x1b]0;x\x07", "\ud800", "../../etc/passwd", "/etc/passwd", "a\\b", "a//b")
VALUES += ("\0", "x" * 300, "local-dir:/tmp", "hf-hub:a/b", "s3://no/such", [], {}, [[]], {"": {}})
VALUES += ([0] * 1000, {"a": {"b": {"c": None}}}, list(range(300)))
"""What a field may hold in the file of an attacker, or of a careless script."""


_MOST_PLACES = 5000


def _places(tree: Any) -> list[tuple[Any, Any]]:
    """(container, key) of each value below a tree."""
    found, todo = [], [tree]
    while todo and len(found) < _MOST_PLACES:
        node = todo.pop()
        keys = node if isinstance(node, dict) else range(len(node)) if _is_list(node) else ()
        for key in list(keys):
            found.append((node, key))
            todo.append(node[key])
    return found


def _is_list(node: Any) -> bool:
    return isinstance(node, list)


def change_tree(tree: Any, rng: random.Random) -> Any:
    """Replaces, removes, doubles, renames or swaps values of a tree, in place."""
    for _ in range(rng.choice((1, 1, 1, 2, 5))):
        places = _places(tree)
        if not places or rng.random() < 0.01:
            return copy.deepcopy(rng.choice(VALUES))
        node, key = rng.choice(places)
        match rng.randrange(7):
            case 0:
                del node[key]
            case 1 if isinstance(node, dict):
                node[rng.choice(("", "x" * 300, "é", "__class__", f"{key} "))] = node.pop(key)
            case 2 if _is_list(node) and len(places) < _MOST_PLACES:
                node.extend([node[key]] * rng.choice((1, 3, 1000)))
            case 3:
                other, there = rng.choice(places)
                if there in other if isinstance(other, dict) else there < len(other):
                    node[key] = copy.deepcopy(other[there])
            case _:
                value = node[key]
                near = [value + 1, -value, value * 1000] if type(value) in (int, float) else []
                node[key] = copy.deepcopy(rng.choice([*VALUES, *near]))
    return tree


def json_fields(data: bytes, rng: random.Random, others: Sequence[bytes]) -> bytes:
    """Changes fields of a JSON document, or nests one too deeply, in text that still parses."""
    try:
        tree = json.loads(data)
    except (ValueError, RecursionError):
        return rng.choice(BLIND)(data, rng, others)
    tree = change_tree(tree, rng)
    text = json.dumps(tree)
    if rng.random() < 0.05:
        # Too deep for Python's parser, or a number that takes it long.
        hostile = rng.choice(("[" * 100_000 + "]" * 100_000, "9" * 5000, "1e999", "-0"))
        at = rng.choice([m.start() for m in re.finditer(r"(?<=[:,\[ ])\d+", text)] or [0])
        text = text[:at] + re.sub(r"^\d*", lambda _: hostile, text[at:], count=1)
    return text.encode(errors="surrogatepass")


def json_lines(data: bytes, rng: random.Random, others: Sequence[bytes]) -> bytes:
    """Changes fields of one line of a file of JSON lines; leaves, cuts or doubles the others."""
    lines = data.splitlines(keepends=True) or [b""]
    at = rng.randrange(len(lines))
    lines[at] = json_fields(lines[at], rng, others).replace(b"\n", b"") + b"\n"
    if rng.random() < 0.2:
        lines.insert(rng.randrange(len(lines)), lines[at][: rng.randrange(len(lines[at]))])
    return b"".join(lines)


_BOMB = "a: &a [x, x, x, x, x, x, x, x]\n" + "".join(
    f"{name}: &{name} [*{previous}, *{previous}, *{previous}, *{previous}, *{previous}]\n"
    for previous, name in zip("abcdefgh", "bcdefghi", strict=True)
)
YAML_TREES = (
    _BOMB,
    "a: &a {b: *a}\n",
    "a: " + "[" * 3000 + "]" * 3000 + "\n",
    "? [1, 2]\n: x\n",
    "a: !!python/object/apply:os.getpid []\n",
    "a: 2001-01-01\n",
    "1: x\n",
    "a: 1_0:59.5\n",
)
"""Trees of aliases and other traps of YAML, as whole documents."""


def yaml_fields(data: bytes, rng: random.Random, others: Sequence[bytes]) -> bytes:
    """Changes fields of a YAML document; the result is YAML, at times a tree of aliases."""
    import yaml

    try:
        tree = yaml.safe_load(data)
    except Exception:
        return rng.choice(BLIND)(data, rng, others)
    if rng.random() < 0.1:
        trap = rng.choice(YAML_TREES).encode()
        places = [m.end() for m in re.finditer(rb"\n", data)] or [0]
        at = rng.choice((0, len(data), rng.choice(places)))
        indent = b"  " * rng.randrange(3)
        trap = b"".join(indent + line + b"\n" for line in trap.splitlines())
        return data[:at] + trap + data[at:]
    tree = change_tree(tree, rng)
    return yaml.safe_dump(tree, allow_unicode=True).encode(errors="surrogatepass")


CELLS = (
    "",
    "²",
    "9" * 5000,
    "x" * 200_000,
    "-1",
    "255",
    "256",
    "1e3",
    "nan",
    '"',
    "é",
    "a\tb",
    "=1+1",
)


def table_cells(data: bytes, rng: random.Random, others: Sequence[bytes]) -> bytes:
    """Changes a cell of a CSV or TSV, or takes or gives one; at times not UTF-8."""
    lines = data.split(b"\n")
    at = rng.randrange(len(lines))
    cells = re.split(rb"([,\t])", lines[at])
    match rng.randrange(5):
        case 0:
            cells.pop(rng.randrange(len(cells)))
        case 1:
            cells.insert(rng.randrange(len(cells) + 1), rng.choice((b",", b"\t", b"x")))
        case 2:
            cells[rng.randrange(len(cells))] = b"\xff\xfe" + rng.randbytes(3)
        case _:
            cells[rng.randrange(len(cells))] = rng.choice(CELLS).encode()
    lines[at] = b"".join(cells)
    if rng.random() < 0.1:
        lines.insert(rng.randrange(len(lines) + 1), rng.choice(lines))
    return b"\n".join(lines)


def text_lines(data: bytes, rng: random.Random, others: Sequence[bytes]) -> bytes:
    """Takes, doubles or replaces lines; at times with other ends of lines."""
    lines = data.split(b"\n")
    at = rng.randrange(len(lines))
    match rng.randrange(5):
        case 0:
            lines.pop(at)
        case 1:
            lines.insert(at, rng.choice(lines))
        case 2:
            lines[at] += rng.choice(("\x85", "\u2028", "\x0b", "\r", "\0")).encode() + b"x"
        case 3:
            lines[at] = b"\xff" + rng.randbytes(4)
        case _:
            lines[at] = rng.choice(CELLS).encode()
    return b"\n".join(lines)


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


def mutate(
    data: bytes, rng: random.Random, others: Sequence[bytes], aware: Sequence[Mutator] = ()
) -> bytes:
    """Damages a file once or a few times; half of the damage is field-aware where that is known."""
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        chosen = rng.choice(aware) if aware and rng.random() < 0.6 else rng.choice(BLIND)
        data = chosen(data, rng, others)
    return data[:LARGEST]
