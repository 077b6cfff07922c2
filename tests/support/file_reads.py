"""Counts how often files are opened, by any process, as the kernel reports it (inotify)."""

import ctypes
import os
import struct
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_IN_OPEN, _IN_ISDIR, _IN_Q_OVERFLOW = 0x20, 0x40000000, 0x4000
_EVENT = struct.Struct("iIII")


class FileReads:
    """Opens of each file so far, by name."""

    def __init__(self) -> None:
        self.opened: Counter[str] = Counter()
        self.overflowed = False

    def total(self, ending: str) -> int:
        """Opens of all files with a name's ending."""
        return sum(count for name, count in dict(self.opened).items() if name.endswith(ending))


@contextmanager
def count_reads(*folders: Path) -> Iterator[FileReads]:
    """Counts the opens of the files directly in some folders while the block lasts."""
    libc = ctypes.CDLL(None, use_errno=True)
    queue = libc.inotify_init()
    assert queue >= 0, os.strerror(ctypes.get_errno())
    watches = [libc.inotify_add_watch(queue, os.fsencode(folder), _IN_OPEN) for folder in folders]
    assert min(watches) >= 0, os.strerror(ctypes.get_errno())
    reads = FileReads()

    def listen() -> None:
        while True:
            data = os.read(queue, 1 << 16)
            position = 0
            while position < len(data):
                _, mask, _, length = _EVENT.unpack_from(data, position)
                position += _EVENT.size
                name = data[position : position + length].rstrip(b"\0").decode()
                position += length
                reads.overflowed |= bool(mask & _IN_Q_OVERFLOW)
                if name == _END:
                    return
                if not mask & _IN_ISDIR:
                    reads.opened[name] += 1

    thread = threading.Thread(target=listen, daemon=True)
    thread.start()
    try:
        yield reads
    finally:
        end = Path(folders[0], _END)
        end.touch()
        thread.join()
        end.unlink()
        os.close(queue)
        assert not reads.overflowed


_END = ".end-of-counting"
