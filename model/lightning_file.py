"""Reads the tensors of a `torch.save` file without running anything that it says.

The format: a zip archive, uncompressed, with `<root>/data.pkl` (a pickle of the object, tensors
as persistent references) and `<root>/data/<key>` (the raw numbers of one storage each). A pickle
names functions that its reader calls; this reader resolves no name at all. Every global becomes
an inert record of what it was called with, and tensors are rebuilt here from the records of
`torch._utils._rebuild_tensor_v2`. So a file may carry any hyper-parameter object, an
`argparse.Namespace` or a class that is not installed, and a malicious one does nothing; one that
names what only an attack would name is refused besides.
"""

import io
import math
import pickle
import pickletools
import zipfile
from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from model.errors import ModelError

MAX_PICKLE_MIB = 16
"""Size of the structure; that of a published file has a third of a MiB."""
MAX_STEPS = 1_000_000
"""Instructions of a pickle; a tensor takes some forty."""
MAX_NAMES = 5_000
"""Mentions of a global; torch mentions each one once, and refers back to it."""
STORAGE_DTYPES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}

SUSPECT_MODULES = frozenset(
    "os posix nt ntpath posixpath subprocess sys importlib runpy shutil socket pty ctypes pickle "
    "_pickle code codeop webbrowser asyncio multiprocessing threading signal timeit pdb bdb "
    "cProfile profile tempfile urllib http requests pip marshal types inspect operator "
    "_operator".split()
)
"""Top-level modules that no training state has a reason to name."""

SUSPECT_BUILTINS = frozenset(
    "eval exec execfile compile open input getattr setattr delattr vars globals locals __import__ "
    "apply breakpoint map filter reload".split()
)


class Inert:
    """What stands for any object that the file names: it keeps what it is given, and does nothing.

    Attributes:
        origin: the dotted name in the file.
        args: what it was to be called with.
        state: what was to be restored into it.
        items: what was to be stored in it as in a mapping.
    """

    origin = ""

    def __new__(cls, *args: Any, **kwargs: Any) -> "Inert":
        """Keeps the arguments."""
        instance = super().__new__(cls)
        instance.args = args
        instance.state = None
        instance.items = {}
        return instance

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.args: tuple[Any, ...]
        self.state: Any
        self.items: dict[Any, Any]

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def __setitem__(self, key: Any, value: Any) -> None:
        self.items[key] = value

    def append(self, item: Any) -> None:
        """Takes the items of a pickled list or set subclass, and forgets them."""

    extend = add = append


class _Storage:
    """A reference to the raw numbers of a tensor."""

    def __init__(self, key: str, dtype: torch.dtype) -> None:
        self.key = key
        self.dtype = dtype


class _SuspectError(Exception):
    """The pickle names something that only an attack would."""


class _InertUnpickler(pickle.Unpickler):
    def find_class(self, module_name: str, global_name: str, /) -> Any:
        # Old pickle protocols write Python 2's names (`commands` for `subprocess`).
        module_name, global_name = NAME_MAPPING.get(
            (module_name, global_name), (IMPORT_MAPPING.get(module_name, module_name), global_name)
        )
        if (module_name, global_name) == ("collections", "OrderedDict"):
            return OrderedDict
        suspects = SUSPECT_BUILTINS if module_name == "builtins" else frozenset()
        if module_name.split(".")[0] in SUSPECT_MODULES or global_name.split(".")[0] in suspects:
            raise _SuspectError(f"{module_name}.{global_name}")
        # A class of its own for every mention: a pickle can set attributes on what it names.
        return type("Inert", (Inert,), {"origin": f"{module_name}.{global_name}"})

    def persistent_load(self, pid: Any, /) -> Any:
        if not (isinstance(pid, tuple) and len(pid) == 5 and pid[0] == "storage"):
            # Not shown: a few bytes can stand for a text without an end.
            raise pickle.UnpicklingError("unknown persistent reference")
        kind = getattr(pid[1], "origin", "").removeprefix("torch.")
        if kind not in STORAGE_DTYPES or not isinstance(pid[2], str):
            raise pickle.UnpicklingError(f"unknown storage type {kind[:80]!r}")
        return _Storage(pid[2], STORAGE_DTYPES[kind])


def _check_steps(data: bytes) -> None:
    """Refuses a pickle whose few bytes would take memory or time without an end.

    Nothing is built here. What is read later then takes memory in proportion to its steps: an index
    of the memo may not be ahead of the steps before it, since a list of that length is made; and
    tuples that hold one tuple twice, whose hash or text doubles at each level, are few.
    """
    names = kept = shared = 0
    before, tuples = "", set[int]()
    for number, (step, argument, _) in enumerate(pickletools.genops(data)):
        if number >= MAX_STEPS:
            raise pickle.UnpicklingError(f"it has more than {MAX_STEPS} steps")
        if step.name in _PUTS and int(argument or 0) > number:
            raise pickle.UnpicklingError("its memo is larger than its content")
        if step.name in ("GLOBAL", "STACK_GLOBAL", "INST"):
            names += 1
            if names > MAX_NAMES:
                raise pickle.UnpicklingError(f"it names more than {MAX_NAMES} globals")
        if step.name == "DUP":
            raise pickle.UnpicklingError("it doubles what is on its stack")
        if step.name in _PUTS:
            index = int(argument) if argument is not None else kept
            kept += 1
            tuples.discard(index)
            if before in _TUPLES:
                tuples.add(index)
        if step.name in _GETS and int(argument or 0) in tuples:
            shared += 1
            if shared > MAX_SHARED:
                raise pickle.UnpicklingError(f"it refers to tuples more than {MAX_SHARED} times")
        before = step.name


MAX_SHARED = 16
"""References to tuples that came before; torch's tuples are new ones, but for a setting or two."""
_TUPLES = frozenset(("TUPLE", "TUPLE1", "TUPLE2", "TUPLE3", "FROZENSET"))
_PUTS = frozenset(("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"))
_GETS = frozenset(("GET", "BINGET", "LONG_BINGET"))


class TorchFile:
    """An open `torch.save` file.

    Attributes:
        content: the object, with `Inert` in place of tensors and of everything that is no plain
            container, text or number.
    """

    def __init__(self, path: Path | str) -> None:
        """Opens a file and reads its structure, no tensor yet.

        Raises:
            FileNotFoundError: there is none.
            ModelError: it is truncated, or no file of this format.
        """
        self.path = Path(path)
        if not self.path.is_file():
            raise FileNotFoundError(f"{self.path}: no such file")
        try:
            self._zip = zipfile.ZipFile(self.path)
            pickles = [name for name in self._zip.namelist() if name.endswith("/data.pkl")]
            if len(pickles) != 1:
                raise zipfile.BadZipFile("it holds no data.pkl")
            self._root = pickles[0].removesuffix("data.pkl")
            if self._zip.getinfo(pickles[0]).file_size > MAX_PICKLE_MIB * 2**20:
                raise zipfile.BadZipFile(f"its data.pkl is larger than {MAX_PICKLE_MIB} MiB")
            if f"{self._root}byteorder" in self._zip.namelist():
                order = self._read(f"{self._root}byteorder")
                if order != b"little":
                    raise zipfile.BadZipFile(f"its byte order is {order!r}, not little")
            data = self._read(pickles[0])
            _check_steps(data)
            self.content: Any = _InertUnpickler(io.BytesIO(data)).load()
        except _SuspectError as error:
            raise ModelError(
                f"{self.path}: its pickle names {error}, which runs code when a file is opened the "
                "usual way (nothing was run here): must hold tensors and settings only: do not "
                "trust this file, fetch it from its publisher"
            ) from error
        except _UNREADABLE as error:
            raise self._unreadable(error) from error

    def tensor(self, record: Any) -> Tensor:
        """Reads one tensor, on the CPU, into memory of its own.

        Args:
            record: a value of `content` for which `is_tensor` holds.

        Raises:
            ModelError: its numbers are damaged or missing.
        """
        record = _unwrap_parameter(record)
        storage, offset, shape, stride = record.args[:4]
        try:
            raw = self._read(f"{self._root}data/{storage.key}")
            numbers = torch.frombuffer(bytearray(raw), dtype=storage.dtype) if raw else None
            whole = (offset, *shape, *stride)
            if not all(type(number) is int and number >= 0 for number in whole):
                raise ValueError(f"a tensor has shape {shape}, stride {stride}, offset {offset}")
            if 0 in shape:
                return torch.empty(shape, dtype=storage.dtype)
            count = len(numbers) if numbers is not None else 0
            if math.prod(shape) > count:  # also what a stride of 0 would swell to any size
                raise ValueError(f"a tensor of shape {shape} has {count} numbers")
            assert numbers is not None
            last = offset + sum((n - 1) * s for n, s in zip(shape, stride, strict=True))
            if last >= len(numbers):
                raise ValueError(f"a tensor reaches number {last} of {len(numbers)}")
            return torch.as_strided(numbers, shape, stride, offset).clone()
        except _UNREADABLE as error:
            raise self._unreadable(error) from error

    def _read(self, name: str) -> bytes:
        info = self._zip.getinfo(name)
        if info.compress_type != zipfile.ZIP_STORED:  # a small file could swell to any size
            raise zipfile.BadZipFile(f"{name} is compressed")
        return self._zip.read(info)

    def _unreadable(self, error: Exception) -> ModelError:
        return ModelError(
            f"{self.path}: is no complete torch.save file ({type(error).__name__}: "
            f"{str(error)[:200]}): must be a .ckpt in the zip format of torch >= 1.6: fetch it "
            "again, or save it anew"
        )


_UNREADABLE = (
    zipfile.BadZipFile,
    pickle.UnpicklingError,
    EOFError,
    LookupError,
    ValueError,
    TypeError,
    AttributeError,
    OverflowError,
    MemoryError,
    RuntimeError,
    OSError,
)


def is_tensor(record: Any) -> bool:
    """Says whether a value of a file's content is a tensor."""
    record = _unwrap_parameter(record)
    return (
        isinstance(record, Inert)
        and record.origin == "torch._utils._rebuild_tensor_v2"
        and len(record.args) >= 4
        and isinstance(record.args[0], _Storage)
        and all(isinstance(part, tuple) for part in record.args[2:4])
        and len(record.args[2]) == len(record.args[3]) <= 8
        and all(type(n) is int and abs(n) < 2**53 for part in record.args[2:4] for n in part)
    )


def shape_of(record: Any) -> tuple[int, ...]:
    """The shape of a tensor of a file's content, without reading it."""
    return tuple(_unwrap_parameter(record).args[2])


def plain_mapping(value: Any) -> dict[str, Any]:
    """Reads the named values off a mapping, a pickled namespace or a pickled mapping subclass."""
    if isinstance(value, Inert):
        state = value.state if isinstance(value.state, Mapping) else {}
        value = {**state, **value.items}
    found = value if isinstance(value, Mapping) else {}
    return {key: item for key, item in found.items() if isinstance(key, str)}


def _unwrap_parameter(record: Any) -> Any:
    if isinstance(record, Inert) and record.origin == "torch._utils._rebuild_parameter":
        return record.args[0] if record.args else record
    return record
