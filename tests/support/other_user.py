"""What a file system refuses to a user, also where the tests are run by root."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

NOBODY = 65_534


@contextmanager
def open_folder() -> Iterator[Path]:
    """A folder that every user may go through, which pytest's own are not."""
    folder = Path(tempfile.mkdtemp(prefix="lseg-test-"))
    folder.chmod(0o777)
    try:
        yield folder
    finally:
        for path in (folder, *folder.rglob("*")):
            if path.is_dir() and not path.is_symlink():
                path.chmod(0o700)
        shutil.rmtree(folder)


@contextmanager
def refused(mode: int, *folders: Path) -> Iterator[None]:
    """Gives folders a mode and makes root nobody, to whom modes mean something, for a while."""
    before = [folder.stat().st_mode for folder in folders]
    for folder in folders:
        folder.chmod(mode)
    is_root = os.geteuid() == 0
    try:
        if is_root:
            os.seteuid(NOBODY)
        yield
    finally:
        if is_root:
            os.seteuid(0)
        for folder, old in zip(folders, before, strict=True):
            folder.chmod(old)
