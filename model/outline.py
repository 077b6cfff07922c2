"""A network without its memory, built to see whether a file fits before anything is allocated.

Settings that come from a file may describe a network of any size. On the meta device its tensors
have shapes only, and the number of its modules is limited, so that looking at them costs neither
memory nor time. A file whose tensors have these names and shapes bounds what the real network
takes.
"""

import itertools
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.modules.module import register_module_module_registration_hook

from model.errors import ModelError
from model.settings_file import shown

Network = TypeVar("Network", bound=nn.Module)

MAX_MODULES = 20_000
"""Modules of a network; the largest ViTs and CNNs of timm have a few thousand."""
MAX_TENSORS = 20_000
"""Tensors in a weights file."""
MAX_WEIGHTS_GIB = 32
"""Size of a weights file."""
MAX_EMBED_DIM = 2**16
"""Length of a text vector; encoders have 512 to some thousand."""

FLOATING = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
}
WHOLE = {"I64": torch.int64, "I32": torch.int32, "U8": torch.uint8}
"""Kinds of numbers in a safetensors file that parameters and counters may have."""


def outline_of(build: Callable[[], Network], where: str) -> Network:
    """Builds a network on the meta device.

    Args:
        build: builds it on the default device.
        where: the file that describes it, for messages.

    Raises:
        ModelError: it cannot be built, or has too many parts.
    """
    numbers = itertools.count(1)

    def count(module: nn.Module, name: str, part: nn.Module | None) -> None:
        if next(numbers) > MAX_MODULES:
            raise ModelError(
                f"{where}: describes a network of more than {MAX_MODULES} modules: must be an "
                "LSeg: fetch the checkpoint again"
            )

    handle = register_module_module_registration_hook(count)
    try:
        with torch.device("meta"):
            return build()
    except ModelError:
        raise
    # Whatever a library raises over settings that nobody foresaw: they come from a file.
    except Exception as error:
        raise ModelError(
            f"{where}: describes no network that can be built ({type(error).__name__}: "
            f"{shown(' '.join(str(error).split()))}): must be the settings of an LSeg: fetch the "
            "checkpoint again"
        ) from error
    finally:
        handle.remove()


def stored_tensors(path: Any) -> dict[str, tuple[tuple[int, ...], str]]:
    """Reads the header of a safetensors file: shape and kind of numbers by name.

    Raises:
        ModelError: it is damaged, or too large.
    """
    try:
        size = path.stat().st_size
        if size > MAX_WEIGHTS_GIB * 2**30:
            raise ModelError(
                f"{path}: has {size / 2**30:.0f} GiB: must be at most {MAX_WEIGHTS_GIB} GiB: "
                "fetch it again"
            )
        with safe_open(path, "pt") as file:
            names = list(file.keys())
            if len(names) > MAX_TENSORS:
                raise ModelError(
                    f"{path}: holds {len(names)} tensors: must be at most {MAX_TENSORS}: fetch it "
                    "again"
                )
            slices = {name: file.get_slice(name) for name in names}
            return {name: (tuple(s.get_shape()), s.get_dtype()) for name, s in slices.items()}
    except (SafetensorError, OSError) as error:
        raise ModelError(
            f"{path}: is no complete safetensors file ({shown(str(error))}): fetch it again"
        ) from error


def load_weights(
    path: Any, wanted: Mapping[str, Tensor], of: str = "config.yaml"
) -> dict[str, Any]:
    """Reads a weights file, after its header was found to be that of the network.

    Args:
        path: a safetensors file.
        wanted: the state dict of the network, which may be on the meta device.
        of: what the network was built from, for messages.

    Returns:
        The tensors by name, on the CPU, all finite.

    Raises:
        ModelError: the file is damaged, is another network's, or holds NaN or infinite numbers.
    """
    header = stored_tensors(path)
    problems = [f"{name} is missing" for name in wanted if name not in header]
    problems += [f"{shown(name)} is unexpected" for name in header if name not in wanted]
    for name, tensor in wanted.items():
        shape, kind = header.get(name, (tuple(tensor.shape), None))
        kinds = FLOATING if tensor.is_floating_point() else WHOLE
        if shape != tuple(tensor.shape):
            problems.append(f"{name} is {shape} instead of {tuple(tensor.shape)}")
        elif kind is not None and kind not in kinds:
            problems.append(f"{name} holds {kind}, not one of {', '.join(kinds)}")
    if problems:
        more = f"; and {len(problems) - 5} more" if len(problems) > 5 else ""
        raise ModelError(
            f"{path}: does not fit {of}: {'; '.join(problems[:5])}{more}: must be the weights of "
            "this network: fetch both again"
        )
    try:
        weights = load_file(path)
    except (SafetensorError, OSError) as error:
        raise ModelError(
            f"{path}: is no complete safetensors file ({shown(str(error))}): fetch it again"
        ) from error
    check_finite(weights, str(path))
    return weights


def check_finite(weights: Mapping[str, Tensor], where: str) -> None:
    """Refuses weights that would make every prediction meaningless.

    Raises:
        ModelError: names the tensors that hold NaN or infinite numbers.
    """
    bad = [
        name
        for name, tensor in weights.items()
        if tensor.is_floating_point() and not bool(tensor.isfinite().all())
    ]
    if bad:
        raise ModelError(
            f"{where}: {len(bad)} of {len(weights)} tensors hold NaN or infinite numbers "
            f"({', '.join(bad[:3])}): every prediction would be meaningless: take an earlier "
            "checkpoint of the run, or fetch it again"
        )
