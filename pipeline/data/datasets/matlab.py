"""MATLAB files: lists of strings, label matrices of a struct array, and single label arrays.

They are read by `matlab_files.py` in a process of its own, one for each process that asks, which
lives until that one ends. A file that ends it is damaged, and a new one reads the next.
"""

import atexit
import json
import os
import signal
import subprocess
import sys
from contextlib import suppress
from io import BufferedReader
from pathlib import Path
from threading import Lock
from typing import IO, Any

import numpy as np

from pipeline.data.pixels.checks import BadSample
from pipeline.errors import UserError

_LIST_CPU_S, _LABEL_CPU_S = 120, 20
"""CPU time of a list, of which the longest official one takes about 5 s, and of a label."""
_PROGRAM = Path(__file__).with_name("matlab_files.py")
_ENVIRONMENT = ("PATH", "HOME", "TMPDIR", "LANG", "LC_", "LD_", "DYLD_", "PYTHON")
"""Beginnings of the variables that the process gets: it needs no secrets."""


class _Ended(Exception):
    """The process that reads ended instead of answering; says how."""

    def __init__(self, status: int) -> None:
        self.took_long = -status == signal.SIGPROF
        how = signal.Signals(-status).name if status < 0 else f"exit code {status}"
        super().__init__(
            "takes too long" if self.took_long else f"ends the process that reads it: {how}"
        )


def read_strings(path: Path, variable: str, field: str | None = None) -> list[str] | None:
    """Reads a cell array of strings, or one field of a struct array, in MATLAB's order.

    Returns:
        The strings; None when the file has no such variable or field.

    Raises:
        UserError: The file is no MATLAB file or is damaged, or the variable holds no strings.
    """
    try:
        answer, _ = _ask(path, "strings", variable, field, _LIST_CPU_S)
    except _Ended as error:
        raise _damaged(path, str(error)) from None
    return answer["strings"]


def read_label_array(
    path: Path, variable: str, name: str, dtype: type[np.unsignedinteger] = np.uint8
) -> np.ndarray:
    """Reads the label array of a file that holds one image's labels.

    Args:
        path: The file.
        variable: The array's name in it.
        name: What the file is called in messages.
        dtype: uint8, or uint16 for labels of more classes.

    Returns:
        (H, W) of that type; values that it cannot hold and what is no whole number are refused.

    Raises:
        BadSample: The file is damaged, or has no such array of small integers.
    """
    try:
        bits = 8 * np.dtype(dtype).itemsize
        answer, pixels = _ask(path, "array", variable, None, _LABEL_CPU_S, bits=bits)
    except _Ended as error:
        raise BadSample(f"{name}: cannot be read: {error}") from None
    except BadSample as error:
        raise BadSample(f"{name}: {error}") from None
    except UserError as error:
        reason = str(error.__cause__ or error)
        raise BadSample(f"{name}: is no whole MATLAB file ({reason})") from None
    return np.frombuffer(pixels, dtype).reshape(answer["shape"])


class LabelMats:
    """The field of a struct array of version 7.3 that holds label matrices, read one by one.

    Raises:
        UserError: The file is damaged, not of version 7.3, or has no such field.
    """

    def __init__(self, path: Path, variable: str, field: str) -> None:
        self._path, self._variable, self._field = path, variable, field
        try:
            _ask(path, "open", variable, field, _LIST_CPU_S)
        except _Ended as error:
            raise _damaged(path, str(error)) from None

    def read(self, index: int) -> np.ndarray:
        """Reads one matrix.

        Returns:
            (H, W) uint8; values above 255 and what is no whole number are refused.

        Raises:
            BadSample: It is missing, damaged, too large, or no matrix of small integers.
        """
        of = (self._path, "label", self._variable, self._field)
        try:
            answer, pixels = _ask(*of, _LABEL_CPU_S, index=index)
        except _Ended as error:
            raise BadSample(f"label {index + 1}: cannot be read: {error}") from None
        return np.frombuffer(pixels, np.uint8).reshape(answer["shape"])


def _ask(
    path: Path, work: str, variable: str, field: str | None, cpu_s: float, **given: int
) -> tuple[dict[str, Any], bytearray]:
    of = {"path": os.path.abspath(path), "variable": variable, "field": field}
    answer, pixels = _reading.ask({"work": work, "of": of, "cpu_s": cpu_s, **given})
    if "bad_sample" in answer:
        raise BadSample(answer["bad_sample"])
    if "missing" in answer:
        raise FileNotFoundError(answer["missing"])
    if "damaged" in answer:
        raise _damaged(path, answer["damaged"]) from ValueError(answer["damaged"])
    return answer, pixels


def _damaged(path: Path, reason: str) -> UserError:
    return UserError(f"{path}: must be the official MATLAB file ({reason}): download it again")


class _Reading:
    """The process that reads for this one; it begins with the first request."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._process: subprocess.Popen[bytes] | None = None

    def ask(self, request: dict[str, Any]) -> tuple[dict[str, Any], bytearray]:
        """The answer to a request, and the pixels of a label.

        Raises:
            _Ended: The request ended the process.
        """
        line = json.dumps(request).encode() + b"\n"
        with self._lock:
            if self._process is not None:
                try:
                    return self._answer(line)
                except _Ended as error:
                    # Without that, what it had read before may have been the cause.
                    if error.took_long:
                        raise
            return self._answer(line)

    def _answer(self, line: bytes) -> tuple[dict[str, Any], bytearray]:
        process = self._process = self._process or _start()
        stdin, stdout = _pipes(process)
        try:
            stdin.write(line)
            stdin.flush()
            answer = json.loads(stdout.readline())
            height, width = answer.get("shape", (0, 0))
            pixels = bytearray(height * width * answer.get("bits", 8) // 8)
            if stdout.readinto(pixels) == len(pixels):
                return answer, pixels
        except (BrokenPipeError, json.JSONDecodeError):
            pass
        except BaseException:  # Such as Ctrl-C: the answer must not pass for that of the next one.
            self.stop()
            raise
        raise _Ended(self._end(process))

    def stop(self) -> None:
        """Ends the process, if there is one."""
        if self._process is not None:
            self._process.kill()
            self._end(self._process)

    def _end(self, process: subprocess.Popen[bytes]) -> int:
        """The exit status of a process that ends."""
        self._process = None
        for pipe in _pipes(process):
            with suppress(BrokenPipeError):
                pipe.close()
        return process.wait()

    def forget(self) -> None:
        """Leaves the process to the one that this is a fork of."""
        if self._process is not None:
            for pipe in _pipes(self._process):
                pipe.close()
        self._lock, self._process = Lock(), None


def _pipes(process: subprocess.Popen[bytes]) -> tuple[IO[bytes], BufferedReader]:
    """Standard input and output of a process that was started with pipes."""
    assert process.stdin
    assert isinstance(process.stdout, BufferedReader)
    return process.stdin, process.stdout


def _start() -> subprocess.Popen[bytes]:
    kept = {key: value for key, value in os.environ.items() if key.startswith(_ENVIRONMENT)}
    paths = os.pathsep.join(path or os.getcwd() for path in sys.path)
    # Threads of OpenBLAS would take the process's address space for nothing.
    own = {"PYTHONPATH": paths, "OPENBLAS_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [sys.executable, "-P", str(_PROGRAM)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env={**kept, **own},
    )
    if _pipes(process)[1].readline() != b"ready\n":
        raise RuntimeError(f"{_PROGRAM} ended with {process.wait()} before it read anything")
    return process


_reading = _Reading()
atexit.register(_reading.stop)
os.register_at_fork(after_in_child=lambda: _reading.forget())
