"""The version of a driver, and what it means for a build of torch."""

import pytest

from pipeline.training.worker.gpu_driver import driver_problem, nvidia_driver


@pytest.mark.parametrize(
    ("driver", "cuda", "least"),
    [
        ("550.54.15", "13.2", 580),
        ("580.65.06", "13.2", 0),
        ("590.10", "13.0", 0),
        ("525.60.13", "12.8", 0),
        ("470.256.02", "12.1", 525),
        ("", "13.2", 0),  # No driver is found by torch itself.
        ("550.54.15", "", 0),
    ],
)
def test_a_driver_must_be_as_new_as_the_cuda_of_torch(driver, cuda, least):
    found = driver_problem(driver, cuda)
    expected = f"driver {driver} is too old for torch's CUDA {cuda}, which needs {least} or later"
    assert found == (expected if least else "")


@pytest.mark.parametrize(
    ("line", "version"),
    [
        ("NVIDIA UNIX x86_64 Kernel Module  550.54.15  Tue Mar  5 22:23:56 UTC 2024", "550.54.15"),
        (
            "NVIDIA UNIX Open Kernel Module for x86_64  580.65.06  Release Build  (dvs-builder)",
            "580.65.06",
        ),
    ],
)
def test_the_driver_is_read_from_its_module(tmp_path, line, version):
    file = tmp_path / "version"
    file.write_text(f"NVRM version: {line}\nGCC version:  gcc version 12.2.0\n")
    assert nvidia_driver(file) == version


def test_without_its_module_nvidias_program_is_asked(tmp_path, monkeypatch):
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\necho 550.54.15\necho 550.54.15\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert nvidia_driver(tmp_path / "none") == "550.54.15"
    program.write_text("#!/bin/sh\necho No devices were found\n")
    assert nvidia_driver(tmp_path / "none") == ""
    program.unlink()
    assert nvidia_driver(tmp_path / "none") == ""
