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
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from model.errors import ModelError
from model.settings_file import shown

MAX_PICKLE_MIB = 16
"""Size of the structure; that of a published file has a third of a MiB."""
MAX_STEPS = 500_000
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
            return _Ordered
        suspects = SUSPECT_BUILTINS if module_name == "builtins" else frozenset()
        if module_name.split(".")[0] in SUSPECT_MODULES or global_name.split(".")[0] in suspects:
            raise _SuspectError(shown(f"{module_name}.{global_name}")[1:-1])
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


@dataclass(frozen=True)
class _Part:
    """What is known of a value before it is built: what its hash, comparison or text would take."""

    values: int = 1
    """Values in it, those of a tuple counted again wherever it is referred to."""
    depth: int = 0
    """Levels of tuples, which C code follows by recursion that nothing bounds."""


_PLAIN, _MARK = _Part(), _Part(0)


def _check_steps(data: bytes) -> None:
    """Refuses a pickle whose few bytes would take memory or time without an end.

    Nothing is built here. What is read later then takes memory in proportion to its steps: an index
    of the memo may not be ahead of the steps before it, since a list of that length is made; tuples
    are shallow, and hold few values also where they refer to each other; and keys whose hashes an
    attacker can choose are few, since equal ones are compared with each other.
    """
    desk = _Simulation()
    for number, (step, argument, _) in enumerate(pickletools.genops(data)):
        if number >= MAX_STEPS:
            raise pickle.UnpicklingError(f"it has more than {MAX_STEPS} steps")
        desk.take(number, step, argument)


class _Simulation:
    """The stack and the memo of an unpickler, with what is known of the values on them."""

    def __init__(self) -> None:
        self.stack: list[_Part] = []
        self.memo: dict[int, _Part] = {}
        self.names = self.values = self.keys = 0

    def take(self, number: int, step: pickletools.OpcodeInfo, argument: Any) -> None:
        """Takes the step of this number."""
        name, stack = step.name, self.stack
        if name in ("GLOBAL", "STACK_GLOBAL", "INST"):
            self.names += 1
            if self.names > MAX_NAMES:
                raise pickle.UnpicklingError(f"it names more than {MAX_NAMES} globals")
        if name == "DUP":
            raise pickle.UnpicklingError("it doubles what is on its stack")
        if isinstance(argument, int) and argument.bit_length() > 64:
            raise pickle.UnpicklingError("it holds a number of more than 64 bits")
        if name in _PUTS:
            index = int(argument) if argument is not None else len(self.memo)
            if index > number:
                raise pickle.UnpicklingError("its memo is larger than its content")
            self.memo[index] = stack[-1]
            return
        parts = self._popped(name, step.stack_before)
        if name in _GETS:
            stack.append(self.memo[int(argument)])
            self._count(stack[-1].values)
        elif name in _TUPLES:
            stack.append(_Part(1 + sum(p.values for p in parts), 1 + max(_depths(parts))))
            self._count(stack[-1].values)
            if stack[-1].depth > MAX_DEPTH:
                raise pickle.UnpicklingError(f"it nests tuples deeper than {MAX_DEPTH} levels")
        else:
            stack += [_MARK if o is pickletools.markobject else _PLAIN for o in step.stack_after]
        self.keys += sum(part.depth > 0 for part in _hashed(name, parts))
        if self.keys > MAX_TUPLE_KEYS:
            raise pickle.UnpicklingError(f"it uses more than {MAX_TUPLE_KEYS} tuples as keys")

    def _popped(self, name: str, before: list[Any]) -> list[_Part]:
        """Takes off the stack what a step uses, without the mark."""
        stack, wanted, parts = self.stack, len(before), list[_Part]()
        if pickletools.markobject in before or (name == "POP" and stack[-1] is _MARK):
            while stack[-1] is not _MARK:
                parts.append(stack.pop())
            stack.pop()
            wanted = before.index(pickletools.markobject) if name != "POP" else 0
        if len(stack) < wanted:
            raise pickle.UnpicklingError("its stack is empty")
        for _ in range(wanted):
            parts.append(stack.pop())
        return parts[::-1]

    def _count(self, values: int) -> None:
        self.values += values
        if self.values > MAX_STEPS:
            raise pickle.UnpicklingError(f"its tuples hold more than {MAX_STEPS} values")


def _depths(parts: list[_Part]) -> list[int]:
    return [part.depth for part in parts] or [0]


def _hashed(name: str, parts: list[_Part]) -> list[_Part]:
    """The parts that a step puts into a mapping as keys, or into a set."""
    if name == "DICT":
        return parts[::2]
    if name in ("SETITEM", "SETITEMS"):  # After the mapping itself.
        return parts[1::2]
    return parts if name in ("ADDITEMS", "FROZENSET") else []


MAX_DEPTH = 40
"""Levels of tuples in a tuple; torch has two."""
MAX_TUPLE_KEYS = 1000
"""Tuples that are keys of mappings or members of sets; a training state has none."""
_TUPLES = frozenset(("TUPLE", "EMPTY_TUPLE", "TUPLE1", "TUPLE2", "TUPLE3", "FROZENSET"))
_PUTS = frozenset(("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"))
_GETS = frozenset(("GET", "BINGET", "LONG_BINGET"))


class _Ordered(OrderedDict[Any, Any]):
    """An ordered mapping whose content comes by steps that were looked at, and not by its call."""

    def __init__(self, *content: Any) -> None:
        if any(content):
            raise pickle.UnpicklingError("it calls OrderedDict with content")
        super().__init__()


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


def check_torch_file(path: Path | str) -> None:
    """Refuses a `torch.save` file whose pickle would take `torch.load` memory or time without end.

    `weights_only` keeps it from running code, and not from that. Files of other forms pass.

    Raises:
        ModelError: it is truncated, names what would run code, or is larger than it looks.
    """
    if zipfile.is_zipfile(path):
        TorchFile(path)


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
