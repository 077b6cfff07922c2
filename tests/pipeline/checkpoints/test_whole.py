"""Checkpoints of a run that were cut, or lost a file."""

import json
import struct
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from pipeline.checkpoints.whole import DIGESTS, fault_of, write_digests
from pipeline.storage.open import open_storage


@pytest.fixture(params=[True, False], ids=["digests", "older"])
def folder(request, tmp_path) -> Path:
    made = tmp_path / "run" / "step_00000008"
    made.mkdir(parents=True)
    save_file({"w": torch.arange(3000.0)}, made / "model.safetensors")
    torch.save({"step": 8, "moments": torch.zeros(3000)}, made / "trainer.pt")
    (made / "config.yaml").write_text("model: {}\n")
    for name in ("labels.txt", "order.txt"):
        (made / name).write_text("road\n")
    if request.param:
        write_digests(made)
    return made


def fault(folder: Path) -> str:
    return fault_of(open_storage(str(folder.parents[1])), "run/step_00000008")


def test_a_whole_one_has_no_fault(folder):
    assert fault(folder) == ""
    (folder / "notes.txt").write_text("a file more does no harm")
    assert fault(folder) == ""


@pytest.mark.parametrize(
    "name", ["model.safetensors", "trainer.pt", "config.yaml", "labels.txt", "order.txt"]
)
def test_a_missing_file_is_named(folder, name):
    (folder / name).unlink()
    assert fault(folder) == f"{name} is missing"


@pytest.mark.parametrize("name", ["model.safetensors", "trainer.pt"])
@pytest.mark.parametrize("size", [0, 5, 1000, -1])
def test_a_file_that_was_cut_is_named(folder, name, size):
    data = (folder / name).read_bytes()
    (folder / name).write_bytes(data[:size])
    assert fault(folder).startswith(name)


@pytest.mark.parametrize("folder", [True], ids=["digests"], indirect=True)
@pytest.mark.parametrize("name", ["model.safetensors", "trainer.pt", "labels.txt", "config.yaml"])
def test_bytes_that_the_disk_lost_are_found_by_their_digest(folder, name):
    assert (folder / DIGESTS).exists()
    data = bytearray((folder / name).read_bytes())
    data[len(data) // 2] ^= 0xFF
    (folder / name).write_bytes(data)
    assert fault(folder) == f"{name} is not what was written: its bytes differ"


def test_whatever_stands_in_a_header_or_record_is_a_fault_and_no_error(folder):
    (folder / "config.yaml").write_bytes(b"a: [\xff")
    assert "config.yaml" in fault(folder)
    (folder / "config.yaml").write_text("model: {}\n")
    for record in (b"[]", b"{", b'{"w": 3}', b'{"w": {"size": "x", "sha256": ""}}'):
        (folder / DIGESTS).write_bytes(record)
        assert fault(folder) in (f"{DIGESTS} is damaged", "") or record == b"[]"
    (folder / DIGESTS).unlink()
    for header in (b"[]", b'{"w": 3}', b"\xff\xff", b"[" * 5000):
        data = struct.pack("<Q", len(header)) + header
        (folder / "model.safetensors").write_bytes(data)
        assert fault(folder).startswith("model.safetensors")


def test_the_record_holds_the_size_and_digest_of_each_file(folder):
    write_digests(folder)
    record = json.loads((folder / DIGESTS).read_text())
    assert record.keys() == {path.name for path in folder.iterdir()} - {DIGESTS}
    assert record["labels.txt"]["size"] == 5
