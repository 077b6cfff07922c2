"""ONNX files: written from a program of PyTorch, run by onnxruntime, and with smaller weights."""

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.export import ExportedProgram

from pipeline.errors import UserError

EXTRA = "export"
_SMALL = 1024
"""Weights of fewer numbers stay as they are: there is nothing to gain."""


def require_onnx() -> None:
    """Makes sure that the libraries of the extra are installed.

    Raises:
        UserError: One is missing.
    """
    for name in ("onnx", "onnxscript", "onnxruntime"):
        try:
            __import__(name)
        except ImportError:
            raise UserError(
                f"to=onnx: needs the package {name}: install the extra that brings it "
                f"(`pip install -c constraints.txt '.[{EXTRA}]'`)"
            ) from None


def write_onnx(
    program: ExportedProgram, path: Path, inputs: Sequence[str], outputs: Sequence[str]
) -> None:
    """Writes a program as an ONNX file; beyond 2 GB the weights lie beside it, in NAME.data."""
    with warnings.catch_warnings():
        # What PyTorch's exporter says of its own code.
        warnings.simplefilter("ignore")
        written = torch.onnx.export(
            program,
            dynamo=True,
            verbose=False,
            input_names=list(inputs),
            output_names=list(outputs),
        )
    assert written is not None
    written.save(path)


def open_onnx(path: Path) -> Any:
    """Opens a file with onnxruntime, on the CPU: an `InferenceSession`."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3  # Its hints on graphs are for who writes them.
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def store_halves(path: Path, target: Path) -> None:
    """Writes a copy whose large weights are stored in half precision, and computed with in full.

    Raises:
        UserError: A weight is too large for half precision.
    """
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    network = onnx.load(path)
    graph = network.graph
    casts = []
    for tensor in graph.initializer:
        if tensor.data_type != TensorProto.FLOAT or np.prod(tensor.dims) < _SMALL:
            continue
        name = tensor.name
        values = numpy_helper.to_array(tensor)
        if np.abs(values).max() > np.finfo(np.float16).max:
            raise UserError(f"precision=fp16: {name} is too large for it: set precision to fp32")
        tensor.CopyFrom(numpy_helper.from_array(values.astype(np.float16), f"{name}.half"))
        casts.append(helper.make_node("Cast", [f"{name}.half"], [name], to=TensorProto.FLOAT))
    ordered = [*casts, *graph.node]
    del graph.node[:]
    graph.node.extend(ordered)
    onnx.save(network, target)


def store_bytes(path: Path, target: Path) -> None:
    """Writes a copy whose linear layers have weights of 8 bits (dynamic quantisation)."""
    import logging

    from onnxruntime.quantization import QuantType, quantize_dynamic

    before = logging.root.level
    logging.root.setLevel(logging.ERROR)  # It advises a preparation that has nothing to do here.
    try:
        quantize_dynamic(
            path,
            target,
            op_types_to_quantize=["MatMul", "Gemm"],
            per_channel=True,
            weight_type=QuantType.QInt8,
        )
    finally:
        logging.root.setLevel(before)
