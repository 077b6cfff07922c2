"""MATLAB files are read in a process of its own: its end, its limits, and what it refuses."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import h5py
import numpy as np
import pytest
import scipy.io

from pipeline.data.datasets import matlab
from pipeline.data.datasets.matlab import LabelMats, read_strings
from pipeline.data.pixels.checks import BadSample
from pipeline.errors import UserError


def write_strings(path: Path, kind: str, secret: Path) -> None:
    """A list `names` of version 7.3 that is not stored as the official ones are."""
    with h5py.File(path, "w") as file:
        letters = np.frombuffer(b"kv1/a", np.uint8).astype(np.uint16).reshape(-1, 1)
        good = file.create_dataset("#refs#/0", data=letters)
        place = [(str(secret), 0, 10)]
        layout = h5py.VirtualLayout((5, 1), np.uint16)
        layout[:] = h5py.VirtualSource(str(secret) + ".h5", "x", (5, 1))
        odd = {
            "external text": lambda: file.create_dataset("e", (5, 1), np.uint16, external=place),
            "virtual text": lambda: file.create_virtual_dataset("v", layout),
            "huge text": lambda: file.create_dataset("h", (1 << 40, 1), np.uint16, chunks=(99, 1)),
            "group text": lambda: file.create_group("g"),
        }.get(kind, lambda: good)()
        cells = np.array([odd.ref], h5py.ref_dtype).reshape(-1, 1)
        if kind == "link":
            file["names"] = h5py.ExternalLink(str(secret) + ".h5", "/names")
        elif kind == "soft link":
            file["names"] = h5py.SoftLink("/#refs#/0")
        elif kind == "huge cells":
            file.create_dataset("names", (1 << 40,), h5py.ref_dtype, chunks=(99,))
        elif kind == "external cells":
            file.create_dataset("names", (1,), h5py.ref_dtype, external=place)
        elif kind == "no references":
            file.create_dataset("names", data=np.zeros(3, np.uint16))
        else:
            file.create_dataset("names", data=cells, dtype=h5py.ref_dtype)


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("external text", "another file"),
        ("virtual text", "another file"),
        ("huge text", "at most 100000 are read"),
        ("group text", "is no array"),
        ("link", "is a link"),
        ("soft link", "is a link"),
        ("huge cells", "at most 1000000 are read"),
        ("external cells", ""),
        ("no references", "references must be"),
    ],
)
def test_strings_are_read_from_the_file_itself_alone(tmp_path: Path, kind: str, words: str):
    secret = tmp_path / "secret"
    secret.write_bytes(b"password!!")
    with h5py.File(f"{secret}.h5", "w") as file:
        file.create_dataset("x", data=np.full((5, 1), 115, np.uint16))
    write_strings(tmp_path / "good.mat", "plain", secret)
    assert read_strings(tmp_path / "good.mat", "names") == ["kv1/a"]
    assert read_strings(tmp_path / "good.mat", "other") is None
    write_strings(tmp_path / "odd.mat", kind, secret)
    with pytest.raises(UserError, match=rf"odd\.mat: .*{words}.*download it again"):
        read_strings(tmp_path / "odd.mat", "names")


def test_a_list_of_an_older_version_that_claims_to_be_huge(tmp_path: Path):
    scipy.io.savemat(tmp_path / "x.mat", {"names": np.zeros((1001, 1000), np.uint8)})
    with pytest.raises(UserError, match="cells: at most 1000000 are read"):
        read_strings(tmp_path / "x.mat", "names")


def test_a_text_at_which_scipy_crashes_is_damaged_and_the_next_file_is_read(tmp_path: Path):
    good, bad = tmp_path / "good.mat", tmp_path / "bad.mat"
    scipy.io.savemat(good, {"names": np.array(["a/b", "c/d"], dtype=object)})
    sizes = bytes.fromhex("05000000 08000000 01000000 03000000")
    data = good.read_bytes()
    assert data.count(sizes) == 2
    # The first text has no dimensions.
    bad.write_bytes(data.replace(sizes, bytes.fromhex("05000000 00000000") + sizes[8:], 1))
    assert read_strings(good, "names") == ["a/b", "c/d"]
    with pytest.raises(UserError, match=r"bad\.mat: must be the official .*: download it again"):
        read_strings(bad, "names")
    assert read_strings(good, "names") == ["a/b", "c/d"]


ODD_LIBRARY = """
import importlib.util, os, signal, sys
spec = importlib.util.spec_from_file_location("matlab_files", {path!r})
files = importlib.util.module_from_spec(spec)
spec.loader.exec_module(files)
read = files.LabelMats.read

def odd(self, index):
    if index == 1:
        signal.raise_signal(signal.SIGSEGV)
    while index == 2:
        pass
    if index == 3:
        bytearray(8 << 30)
    if index == 4:
        dear = {{"torch", "ray", "cv2", "scipy"}}
        raise files.BadSample(f"has {{sorted(dear & set(sys.modules))}}")
    if index == 5:
        raise files.BadSample(f"has {{[key for key in os.environ if 'SECRET' in key]}}")
    return read(self, index)

files.LabelMats.read = odd
files.main()
"""
"""The program that reads, with a library that fails on some labels."""


@pytest.fixture
def labels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[LabelMats]:
    """Seven labels; those of the positions 1 to 5 are read as the odd library does."""
    program = tmp_path / "program.py"
    program.write_text(ODD_LIBRARY.format(path=str(matlab._PROGRAM)))
    with h5py.File(tmp_path / "labels.mat", "w") as file:
        values = [np.full((3, 2), n, np.uint8) for n in range(7)]
        refs = [file.create_dataset(f"#refs#/{n}", data=v).ref for n, v in enumerate(values)]
        column = np.array(refs, h5py.ref_dtype).reshape(-1, 1)
        file.create_dataset("S/seglabel", data=column, dtype=h5py.ref_dtype)
    monkeypatch.setenv("MY_SECRET", "x")
    monkeypatch.setattr(matlab, "_PROGRAM", program)
    monkeypatch.setattr(matlab, "_reading", matlab._Reading())
    yield LabelMats(tmp_path / "labels.mat", "S", "seglabel")
    matlab._reading.stop()


def is_read(labels: LabelMats, index: int) -> bool:
    label = labels.read(index)
    label[0, 0] = index  # The caller's own.
    return label.shape == (2, 3) and label.dtype == np.uint8 and bool((label == index).all())


def test_a_label_that_ends_its_reader_costs_that_label(
    labels: LabelMats, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(matlab, "_LABEL_CPU_S", 0.2)
    assert is_read(labels, 0)
    with pytest.raises(BadSample, match=r"label 2: .* ends the process that reads it: SIGSEGV"):
        labels.read(1)
    assert is_read(labels, 6)
    with pytest.raises(BadSample, match="label 3: cannot be read: takes too long"):
        labels.read(2)
    assert is_read(labels, 0)
    with pytest.raises(UserError, match=r"labels\.mat: .*needs more memory than there is"):
        labels.read(3)
    assert is_read(labels, 6)


def test_the_reader_loads_little_and_gets_no_secret(labels: LabelMats):
    for index in (4, 5):
        with pytest.raises(BadSample, match=r"^has \[\]$"):
            labels.read(index)


def test_a_reader_that_was_killed_is_replaced(labels: LabelMats):
    process = matlab._reading._process
    assert process
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert is_read(labels, 6)


def test_the_answer_to_an_interrupted_request_is_not_the_next_ones(labels: LabelMats):
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.3)
        with pytest.raises(KeyboardInterrupt):
            labels.read(2)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert is_read(labels, 0)


def test_a_fork_has_a_reader_of_its_own(labels: LabelMats):
    assert is_read(labels, 0)
    shared = matlab._reading._process
    child = os.fork()
    if not child:
        code = 1
        try:
            code = 0 if is_read(labels, 6) else 2
            code += 4 * (matlab._reading._process is shared)
            matlab._reading.stop()
        finally:
            os._exit(code)
    assert is_read(labels, 0)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0
    assert is_read(labels, 6)
