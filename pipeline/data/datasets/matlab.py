"""MATLAB files: cell arrays and struct arrays of strings, and one matrix of many.

Files before version 7.3 are read by scipy, those of 7.3, which are HDF5, by h5py: a cell there is a
dataset of references, a struct array a group with one such dataset for each field. MATLAB stores
its matrices column by column, so every one read from HDF5 comes transposed.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import scipy.io

from pipeline.data.pixels.checks import MAX_PIXELS, BadSample, bad_sample_errors, check_size
from pipeline.errors import UserError


def read_strings(path: Path, variable: str, field: str | None = None) -> list[str] | None:
    """Reads a cell array of strings, or one field of a struct array, in MATLAB's order.

    Returns:
        The strings; None when the file has no such variable or field.

    Raises:
        UserError: The file is no MATLAB file or is damaged, or the variable holds no strings.
    """
    with _explained(path):
        if h5py.is_hdf5(path):
            with h5py.File(path, "r", locking=False) as file:
                return _hdf5_strings(file, variable, field)
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


class LabelMats:
    """The field of a struct array of version 7.3 that holds label matrices, read one by one.

    Raises:
        UserError: The file is damaged, not of version 7.3, or has no such field.
    """

    def __init__(self, path: Path, variable: str, field: str) -> None:
        with _explained(path):
            self._file = h5py.File(path, "r", locking=False)
            group: Any = self._file[variable]
            self._references = np.asarray(group[field]).ravel()

    def read(self, index: int) -> np.ndarray:
        """Reads one matrix.

        Returns:
            (H, W) uint8; values above 254 and what is no whole number are refused.

        Raises:
            BadSample: It is missing, damaged, too large, or no matrix of small integers.
        """
        where = f"label {index + 1}"
        with bad_sample_errors(where):
            matrix: Any = self._file[self._references[index]]
            if not isinstance(matrix, h5py.Dataset) or matrix.ndim != 2:
                raise BadSample(f"{where}: must be a matrix")
            # Such a dataset's bytes would come from whatever other file it names.
            if matrix.external or matrix.is_virtual:
                raise BadSample(f"{where}: its values lie in another file")
            width, height = (int(length) for length in matrix.shape)
            check_size(where, width, height, MAX_PIXELS)
            values = matrix[()]
        label = np.asarray(values).astype(np.uint8)
        if values.dtype.kind not in "uif" or (label != values).any():
            raise BadSample(f"{where}: must hold whole numbers of 0 to 255")
        return np.ascontiguousarray(label.T)


def _hdf5_strings(file: h5py.File, variable: str, field: str | None) -> list[str] | None:
    cell: Any = file.get(variable)
    if field is not None:
        cell = cell.get(field) if isinstance(cell, h5py.Group) else None
    if cell is None:
        return None
    # Transposed as any matrix: row by row here is MATLAB's column by column.
    stored: list[Any] = [file[reference] for reference in np.asarray(cell).ravel()]
    return [_text(item[()]) for item in stored]


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


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    try:
        yield
    except (UserError, FileNotFoundError):
        raise
    except Exception as error:  # Two libraries, each with errors of many kinds.
        raise UserError(
            f"{path}: must be the official MATLAB file ({type(error).__name__}: {error}): "
            "download it again"
        ) from error
