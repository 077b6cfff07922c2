"""What the fuzzer damages: a reader, files for it, and what it may raise and cost on them.

A target returns or raises one of the exceptions that its docstring promises. Anything else, and
what takes too long or too much memory, is a defect. What a target finds inconsistent is an
AssertionError.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.support.mutators import Mutator
from tests.support.picture_mutators import (
    jpeg_segments,
    png_chunks,
    safetensors_header,
    safetensors_numbers,
)
from tests.support.text_mutators import json_fields, table_cells, text_lines, yaml_fields

MIB = 1 << 20


@dataclass(frozen=True)
class Target:
    """A reader, files for it, and what it may cost."""

    name: str
    files: Sequence[bytes]
    read: Callable[[bytes], object]
    may_raise: tuple[type[Exception], ...]
    aware: Sequence[Mutator] = ()
    cpu_s: float = 5.0
    """CPU time of one file in the process itself, far above what one takes."""
    memory_mib: int = 256
    """Growth of the process and of those that it started, during one file."""


Build = Callable[[Path], list[Target]]
"""Makes the targets of a kind, whose files may lie in the folder."""


def one_changed(path: Path, read: Callable[[], object]) -> Callable[[bytes], object]:
    """Reads something of which this file is a part, with the file's bytes replaced."""

    def with_bytes(data: bytes) -> None:
        path.write_bytes(data)
        read()

    return with_bytes


AWARE: dict[str, Sequence[Mutator]] = {
    ".json": [json_fields],
    ".png": [png_chunks],
    ".jpg": [jpeg_segments],
    ".csv": [table_cells],
    ".txt": [text_lines],
    ".yaml": [yaml_fields],
    ".safetensors": [safetensors_header, safetensors_numbers],
}
