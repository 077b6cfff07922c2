"""An exported program as a file, whose name says its form: written, and opened again."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch.export import ExportedProgram

from pipeline.inference.export.onnx_file import open_onnx, write_onnx

Run = Callable[..., np.ndarray]
"""Arrays in, in the order of the program's inputs; its one output."""

ONNX = ".onnx"
"""The suffix of files for onnxruntime; all others are PyTorch's."""


def write_program(
    program: ExportedProgram, path: Path, inputs: Sequence[str], outputs: Sequence[str]
) -> None:
    """Writes a program, whose inputs and outputs get names where the form has some."""
    if path.suffix == ONNX:
        write_onnx(program, path, inputs, outputs)
    else:
        torch.export.save(program, path)


def open_program(path: Path) -> Run:
    """Opens a program of one output as a function of arrays."""
    if path.suffix == ONNX:
        session = open_onnx(path)
        names = [each.name for each in session.get_inputs()]
        return lambda *arrays: session.run(None, dict(zip(names, arrays, strict=True)))[0]
    graph = torch.export.load(path).module()

    def run(*arrays: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            return graph(*map(torch.from_numpy, arrays)).numpy()

    return run
