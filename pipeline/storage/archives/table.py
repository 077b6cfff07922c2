"""The members of zip and tar archives, and which of them may be read.

Archives come from outside. A member whose name could leave the archive, a link, a device, an
encrypted member and one that would expand beyond reason is refused and reported, never followed.
A zip whose members share bytes is refused as a whole.
"""

import io
import json
import stat
import struct
import tarfile
import zipfile
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from pipeline.errors import UserError, printable
from pipeline.storage.archives.blob import Blob
from pipeline.storage.node_copies import spooled

STORED, DEFLATED = zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED
TAR_MEMBER = -1
"""Stands for a method of compression in the table of a tar."""

_MAX_MEMBERS = 10_000_000
_MAX_RATIO = 200
"""The most that a large member may expand. Real ones are images (about 1) and JSON (about 10)."""
_LARGE_BYTES = 64 << 20
_LOCAL_HEADER_BYTES = 30
_MAX_HEADER_BYTES = 1 << 20
"""Bytes of a long name, or of a member's other attributes."""
_HEADER_BUFFER_BYTES = 64 << 10


class Member(NamedTuple):
    """Where one member of an archive lies."""

    offset: int
    """Where a zip member's local header, or a tar member's data, begins."""
    size: int
    """Bytes, unpacked."""
    packed: int
    """Bytes in the archive."""
    method: int
    """`STORED`, `DEFLATED` or `TAR_MEMBER`."""
    crc: int
    """CRC-32 of the unpacked bytes; 0 in a tar, which has none."""


Table = tuple[dict[str, Member], tuple[tuple[str, str], ...]]
"""The rows of the members that may be read, by safe path; name and reason of every other one."""


def zip_table(blob: Blob) -> Table:
    """Reads a zip's central directory.

    Raises:
        UserError: It is damaged or cut short.
    """
    try:
        with zipfile.ZipFile(blob.open(1 << 20)) as archive:
            infos = archive.infolist()
    except (zipfile.BadZipFile, NotImplementedError, ValueError, struct.error, OSError) as error:
        if isinstance(error, UserError):
            raise
        raise damaged(blob, "zip", error) from error
    _check_apart(blob, infos)
    members = ((info.filename, *_zip_member(info, blob.size)) for info in infos)
    return _table(blob.name, members)


def _check_apart(blob: Blob, infos: Iterable[zipfile.ZipInfo]) -> None:
    """Refuses a zip whose members share bytes: that is how a small file unpacks to petabytes."""
    last_end, last = 0, ""
    for info in sorted(infos, key=lambda info: info.header_offset):
        if info.header_offset < last_end:
            names = " and ".join(printable(name[-80:]) for name in (last, info.filename))
            raise UserError(
                f"{blob.name}: must be a .zip whose members lie apart: {names} overlap, as in a "
                "zip bomb: download it again"
            )
        # At least the header, a plain name and the data: the header's extra field is not known.
        name = info.orig_filename
        header = _LOCAL_HEADER_BYTES + (len(name) if name.isascii() else 0)
        last_end, last = info.header_offset + header + info.compress_size, name


def _zip_member(info: zipfile.ZipInfo, size: int) -> tuple[str, Member]:
    offset, method = info.header_offset, info.compress_type
    row = Member(offset, info.file_size, info.compress_size, method, info.CRC)
    kind = stat.S_IFMT(info.external_attr >> 16)
    if info.filename.endswith("/"):  # `is_dir` fails on an empty name.
        return "folder", row
    if kind not in (0, stat.S_IFREG):
        return "is a link or a device", row
    if info.flag_bits & 1:
        return "is encrypted", row
    if method not in (STORED, DEFLATED):
        return f"is compressed by method {method}: must be stored or deflated", row
    if not 0 <= offset <= offset + info.compress_size <= size:
        return "lies outside the archive", row
    if method == STORED and info.file_size != info.compress_size:
        return "is stored, but its two sizes differ", row
    return bomb(info.file_size, info.compress_size), row


def tar_table(blob: Blob) -> Table:
    """Walks a plain tar's headers, once on each node; later processes there read what was kept.

    Raises:
        UserError: It is damaged or cut short.
    """
    table = spooled(f"tar index 1|{blob.version}", f"the index of {blob.name}", _walked(blob))
    rows, refused = json.loads(table.read_bytes())
    return (
        {name: Member(offset, size, size, TAR_MEMBER, 0) for name, offset, size in rows},
        tuple((name, reason) for name, reason in refused),
    )


def _walked(blob: Blob) -> Iterator[bytes]:
    rows, refused = _table(blob.name, _tar_members(blob))
    plain = [[name, row.offset, row.size] for name, row in rows.items()]
    yield json.dumps([plain, refused]).encode()


class _Headers(io.BufferedReader):
    """A tar's headers, of which tarfile reads a long name whole, however long it claims to be."""

    def read(self, size: int | None = -1, /) -> bytes:
        if size is None or not 0 <= size <= _MAX_HEADER_BYTES:
            raise tarfile.ReadError(f"a header of {size} bytes")
        return super().read(size)


def _tar_members(blob: Blob) -> Iterator[tuple[str, str, Member]]:
    try:
        file = _Headers(blob.open(_HEADER_BUFFER_BYTES).detach(), _HEADER_BUFFER_BYTES)
        with tarfile.open(fileobj=file, mode="r:") as archive:
            while (member := archive.next()) is not None:
                archive.members.clear()  # type: ignore[attr-defined]  # It would keep them all.
                row = Member(member.offset_data, member.size, member.size, TAR_MEMBER, 0)
                if member.isdir():
                    reason = "folder"
                elif not member.isreg() or member.issparse():
                    reason = "is a link, a device or sparse"
                elif member.offset_data + member.size > blob.size:
                    raise tarfile.ReadError("unexpected end of data")
                else:
                    reason = ""
                yield member.name, reason, row
            # tarfile takes a damaged header for the end; the real end is zeros, or nothing.
            if blob.read(archive.offset, tarfile.BLOCKSIZE).strip(b"\0"):
                raise tarfile.ReadError(f"no header at byte {archive.offset}")
    # A header may name a size that no file can have: OverflowError.
    except (tarfile.TarError, ValueError, OverflowError, OSError, EOFError) as error:
        if isinstance(error, UserError):
            raise
        raise damaged(blob, "tar", error) from error


def _table(where: str, members: Iterable[tuple[str, str, Member]]) -> Table:
    """Keeps the members that can be read, by their safe names; the last of equal names counts."""
    rows: dict[str, Member] = {}
    refused = []
    for name, reason, row in members:
        path, bad_name = _safe_name(name)
        if not path and not bad_name and reason != "folder":
            bad_name = "has no name"
        # What macOS adds is no content, and folders follow from the files in them.
        is_content = reason != "folder" and path and not path.startswith("__MACOSX/")
        if not is_content and not bad_name:
            continue
        if reason := bad_name or reason:
            refused.append((name.encode("utf-8", "backslashreplace").decode(), reason))
        else:
            rows[path] = row
        if len(rows) + len(refused) > _MAX_MEMBERS:
            raise UserError(f"{where}: must have at most {_MAX_MEMBERS} members: unpack it")
    return rows, tuple(refused)


def _safe_name(name: str) -> tuple[str, str]:
    """A member's path within the archive, and why it has none, if so."""
    if name.startswith("/") or name[1:2] == ":":
        return "", "has an absolute name"
    parts = [part for part in name.split("/") if part not in ("", ".")]
    if ".." in parts:
        return "", "has a name that leaves the archive"
    if "\\" in name or any(ord(letter) < 32 or 0xD800 <= ord(letter) < 0xE000 for letter in name):
        return "", "has a name with a backslash or a character that is no text"
    return "/".join(parts), ""


def bomb(size: int, packed: int) -> str:
    """Why a member that expands so far is refused; an empty text if it is not."""
    if size > _LARGE_BYTES and size > _MAX_RATIO * packed:
        return f"would unpack to {size} bytes from {packed}: more than {_MAX_RATIO} times"
    return ""


def damaged(blob: Blob, kind: str, error: Exception) -> UserError:
    """The one message about an archive that cannot be read at all."""
    return UserError(
        f"{blob.name}: must be a whole .{kind} archive ({type(error).__name__}: {error}): it is "
        "damaged or cut short; download it again"
    )
