"""Reads MATLAB files in a process of its own, which `matlab.py` starts and asks.

HDF5 and SciPy end their process on some damaged files, and take long or much memory on others. So
this process loads only what it needs, the kernel limits its memory and time, and its end costs one
file. A request is a line of JSON on standard input. The answer is one on standard output; the bytes
of a label follow it.

Files before version 7.3 are read by scipy, those of 7.3, which are HDF5, by h5py: a cell there is a
dataset of references, a struct array a group with one such dataset for each field. MATLAB stores
its matrices column by column, so every one read from HDF5 comes transposed.
"""

import json
import math
import os
import resource
import signal
import sys
from collections.abc import Iterable
from contextlib import suppress
from typing import Any

import h5py
import numpy as np

from pipeline.data.pixels.checks import (
    MAX_PIXELS,
    BadSample,
    bad_sample_errors,
    check_size,
    reason_of,
)

_ADDRESS_SPACE_MIB = 3072
"""Address space of this process; the official lists of SUN RGB-D take about 0.5 GiB of it."""
_MAX_CELLS = 1_000_000
"""Cells of an array; the official files have about 10,000."""
_MAX_TEXT = 100_000
_MAX_LETTERS = 100_000_000
"""Letters of one text, and of all texts of an array."""
_MAX_ITEM_BYTES = 4096


def main() -> None:
    """Answers requests until standard input ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that asks.
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # What a library prints is no answer.
    _limit_memory()
    answers.write(b"ready\n")
    answers.flush()
    desk = _Desk()
    for line in sys.stdin.buffer:
        request = json.loads(line)
        # Ends the process also where it is stuck in a library: nothing handles SIGPROF here.
        signal.setitimer(signal.ITIMER_PROF, request.pop("cpu_s"))
        answer, pixels = desk.answer(**request)
        signal.setitimer(signal.ITIMER_PROF, 0)
        answers.write(json.dumps(answer).encode() + b"\n" + pixels)
        answers.flush()


def _limit_memory() -> None:
    with suppress(OSError, ValueError):  # Not every system has the limit.
        for kind, most in (
            (resource.RLIMIT_AS, _ADDRESS_SPACE_MIB << 20),
            (resource.RLIMIT_CORE, 0),
        ):
            _, hard = resource.getrlimit(kind)
            resource.setrlimit(kind, (most if hard < 0 else min(most, hard), hard))


class _Desk:
    """Answers requests, and keeps the labels that were asked for last open."""

    def __init__(self) -> None:
        self._labels: tuple[dict[str, str], LabelMats] | None = None

    def answer(self, work: str, of: dict[str, Any], **given: int) -> tuple[dict[str, Any], bytes]:
        """What a request asks for, or what is wrong; and the pixels of a label."""
        try:
            if work == "strings":
                return {"strings": read_strings(**of)}, b""
            if work == "array":
                label = read_array(of["path"], of["variable"], given["bits"])
                return {"shape": label.shape, "bits": given["bits"]}, label.tobytes()
            if work == "open" or self._labels is None or self._labels[0] != of:
                self._labels = None  # Before another file is opened, so that one is at a time.
                self._labels = (of, LabelMats(**of))
            if work == "open":
                return {}, b""
            label = self._labels[1].read(**given)
            return {"shape": label.shape}, label.tobytes()
        except BadSample as error:
            return {"bad_sample": str(error)}, b""
        except FileNotFoundError as error:
            return {"missing": str(error)}, b""
        except Exception as error:  # Two libraries, each with errors of many kinds.
            return {"damaged": f"{type(error).__name__}: {reason_of(error)}"}, b""


def read_strings(path: str, variable: str, field: str | None) -> list[str] | None:
    """Reads a cell array of strings, or one field of a struct array, in MATLAB's order.

    Returns:
        The strings; None when the file has no such variable or field.

    Raises:
        Exception: The file is no MATLAB file or is damaged, or the variable holds no strings.
    """
    if h5py.is_hdf5(path):
        with h5py.File(path, "r", locking=False) as file:
            return _hdf5_strings(file, variable, field)
    import scipy.io  # Takes as long to load as all else here, and labels need it not.

    # The header of a variable says how large it is before any of it is read.
    for name, shape, _ in scipy.io.whosmat(path):
        if name == variable and math.prod(map(int, shape)) > _MAX_CELLS:
            raise ValueError(f"{variable} has {shape} cells: at most {_MAX_CELLS} are read")
    content = scipy.io.loadmat(
        path, squeeze_me=True, struct_as_record=True, variable_names=[variable]
    )
    if variable not in content:
        return None
    array = np.atleast_1d(content[variable])
    if field is not None:
        if field not in (array.dtype.names or ()):
            return None
        array = np.atleast_1d(array[field])
    return [_text(item) for item in array.ravel(order="F")]


def read_array(path: str, variable: str, bits: int = 8) -> np.ndarray:
    """Reads an array of labels that is a variable of its own: (H, W) uint8, or of 16 bits.

    Raises:
        BadSample: There is no such variable, or it is no matrix of small integers.
        Exception: The file is no MATLAB file or is damaged.
    """
    if h5py.is_hdf5(path):
        with h5py.File(path, "r", locking=False) as file:
            item = _member(file, variable)
            if item is None:
                names = [str(name) for name in file.keys()]
                raise BadSample(_lacks(variable, [n for n in names if not n.startswith("#")]))
            return _label_matrix(item, variable, bits)
    import scipy.io

    there = {name: shape for name, shape, _ in scipy.io.whosmat(path)}
    if variable not in there:
        raise BadSample(_lacks(variable, there))
    if len(there[variable]) != 2:
        raise BadSample(f"{variable}: must be a matrix, and has the shape {there[variable]}")
    height, width = map(int, there[variable])
    check_size(variable, width, height, MAX_PIXELS)
    values = scipy.io.loadmat(path, variable_names=[variable])[variable]
    return _as_labels(values, variable, bits)


def _lacks(variable: str, there: Iterable[str]) -> str:
    return f"has no variable {variable}; it has {', '.join(list(there)[:8]) or 'none'}"


def _label_matrix(matrix: Any, where: str, bits: int = 8) -> np.ndarray:
    """A matrix of labels of a file of version 7.3: (H, W)."""
    if not isinstance(matrix, h5py.Dataset) or matrix.ndim != 2:
        raise BadSample(f"{where}: must be a matrix")
    if _lies_elsewhere(matrix):
        raise BadSample(f"{where}: its values lie in another file")
    width, height = (int(length) for length in matrix.shape)
    check_size(where, width, height, MAX_PIXELS)
    if matrix.dtype.itemsize > 8:
        raise BadSample(f"{where}: must hold whole numbers of 0 to {2**bits - 1}")
    return np.ascontiguousarray(_as_labels(matrix[()], where, bits).T)


def _as_labels(values: Any, where: str, bits: int = 8) -> np.ndarray:
    """Values as uint8 or uint16, if they are whole numbers that it holds."""
    most = 2**bits - 1
    if not isinstance(values, np.ndarray) or values.ndim != 2 or values.dtype.kind not in "buif":
        raise BadSample(f"{where}: must be a matrix of whole numbers of 0 to {most}")
    with np.errstate(invalid="ignore"):  # Of what is no number.
        label = values.astype(np.uint8 if bits == 8 else np.uint16)
    if (label != values).any():
        raise BadSample(f"{where}: must hold whole numbers of 0 to {most}")
    return np.ascontiguousarray(label)


class LabelMats:
    """The field of a struct array of version 7.3 that holds label matrices, read one by one.

    Raises:
        Exception: The file is damaged, not of version 7.3, or has no such field.
    """

    def __init__(self, path: str, variable: str, field: str) -> None:
        self._file = h5py.File(path, "r", locking=False)
        group = _member(self._file, variable)
        if not isinstance(group, h5py.Group):
            raise ValueError(f"has no struct {variable}")
        self._references = _cell(_member(group, field), field)

    def read(self, index: int) -> np.ndarray:
        """Reads one matrix.

        Returns:
            (H, W) uint8; values above 255 and what is no whole number are refused.

        Raises:
            BadSample: It is missing, damaged, too large, or no matrix of small integers.
        """
        where = f"label {index + 1}"
        with bad_sample_errors(where):
            return _label_matrix(self._file[self._references[index]], where)


def _hdf5_strings(file: h5py.File, variable: str, field: str | None) -> list[str] | None:
    cell = _member(file, variable)
    if field is not None:
        cell = _member(cell, field) if isinstance(cell, h5py.Group) else None
    if cell is None:
        return None
    # Transposed as any matrix: row by row here is MATLAB's column by column.
    texts, room = [], _MAX_LETTERS
    for reference in _cell(cell, field or variable):
        item: Any = file[reference]
        texts.append(_text(_stored(item, "a text", min(room, _MAX_TEXT))[()]))
        room -= len(texts[-1])
    return texts


def _member(group: h5py.Group, name: str) -> Any:
    """An object of a group; None where there is none.

    Raises:
        ValueError: The name is a link, which could lead into any other file.
    """
    link = group.get(name, getlink=True)
    if link is None:
        return None
    if not isinstance(link, h5py.HardLink):
        raise ValueError(f"{name} is a link: must be stored in the file itself")
    return group[name]


def _cell(cell: Any, name: str) -> np.ndarray:
    """The references of a cell array: (n,) object."""
    references = np.asarray(_stored(cell, name, _MAX_CELLS)[()]).ravel()
    if h5py.check_ref_dtype(cell.dtype) is None:
        raise ValueError(f"{name} holds {cell.dtype} where references must be")
    return references


def _stored(item: Any, name: str, most: int) -> h5py.Dataset:
    """A dataset that may be read: its header says that its values are few, and lie in the file."""
    if not isinstance(item, h5py.Dataset):
        raise ValueError(f"{name} is no array")
    if _lies_elsewhere(item):
        raise ValueError(f"{name} has its values in another file")
    if item.size is None or item.size > most or item.dtype.itemsize > _MAX_ITEM_BYTES:
        raise ValueError(f"{name} has {item.size} values of {item.dtype}: at most {most} are read")
    return item


def _lies_elsewhere(dataset: h5py.Dataset) -> bool:
    """Whether a dataset's bytes would come from whatever other file it names."""
    return bool(dataset.external) or dataset.is_virtual


def _text(item: Any) -> str:
    """A string as scipy gives it, or the codes of its letters as HDF5 has them."""
    if isinstance(item, str):
        return item
    codes = np.asarray(item)
    if codes.dtype.kind in "SU" and codes.size == 1:
        return str(codes.ravel()[0])
    if codes.dtype.kind != "u":
        raise ValueError(f"holds {codes.dtype} where a text must be")
    return "".join(chr(code) for code in codes.ravel().tolist())


if __name__ == "__main__":
    main()
