"""Whether the weights of a backbone can be had here, and whether a file of weights fills it.

timm loads what fits and names the rest in a line of its log: a file with other names than the
network's leaves a random network that trains all the same.
"""

import logging
import pickle
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import timm
import torch
from torch import nn

from model.backbone.lite_keys import timm_names
from model.config import BackboneConfig
from model.errors import ModelError
from model.hub_files import require_hub_file
from model.lightning_file import check_torch_file
from model.outline import check_finite
from model.packages import BACKBONE_PACKAGES, PACKAGE, package_of
from model.settings_file import shown

logger = logging.getLogger(__name__)

LEAST_FILLED = 0.97
"""Share of a backbone's numbers that a file must fill; some files lack a norm or a classifier."""


def own_file(config: BackboneConfig) -> str:
    """The weights file that the settings name; "" where published ones are used."""
    if config.weights:
        return "" if config.weights.startswith(PACKAGE) else config.weights
    overlay = config.kwargs.get("pretrained_cfg_overlay")
    return str(overlay.get("file") or "") if isinstance(overlay, Mapping) else ""


def has_own_weights(config: BackboneConfig) -> bool:
    """Whether the settings name weights that lie on this machine: a file, or a package's."""
    return config.pretrained and bool(config.weights or own_file(config))


def require_own_file(config: BackboneConfig) -> None:
    """Makes sure that a weights file that the settings name is there.

    Raises:
        ModelError: it is not, or is a folder; names it. Or weights are named that are not used.
    """
    if config.weights and not config.pretrained:
        raise ModelError(
            f"backbone.weights={config.weights}: has no effect with backbone.pretrained=false: "
            "leave one of them out"
        )
    if config.weights and "pretrained_cfg_overlay" in config.kwargs:
        raise ModelError(
            f"backbone.weights={config.weights}: backbone.kwargs.pretrained_cfg_overlay names "
            "weights too: leave one of them out"
        )
    file = own_file(config)
    if config.pretrained and file and not Path(file).is_file():
        what = "is a folder" if Path(file).is_dir() else "no such file"
        raise ModelError(
            f"{_setting(config)}={file}: {what}: name a weights file of "
            f"{config.name} that every worker can read"
        )


def _setting(config: BackboneConfig) -> str:
    """The key that names the weights."""
    return "backbone.weights" if config.weights else "backbone.kwargs.pretrained_cfg_overlay.file"


def with_own_weights(
    config: BackboneConfig, kwargs: Mapping[str, Any], names: Callable[[], Iterable[str]]
) -> dict[str, Any]:
    """Adds the weights that `backbone.weights` names to the arguments of `timm.create_model`.

    Args:
        config: the backbone.
        kwargs: the arguments.
        names: gives the names of the model's tensors.

    Raises:
        ModelError: a package is not installed, or holds other bytes.
    """
    if not config.weights:
        return dict(kwargs)
    if not config.weights.startswith(PACKAGE):
        return {**kwargs, "pretrained_cfg_overlay": {"file": config.weights}}
    where = f"backbone.weights={config.weights}"
    entry = package_of(BACKBONE_PACKAGES, config.weights, "backbone.weights")
    stored = torch.load(entry.checked(where), map_location="cpu", weights_only=True)
    return {**kwargs, "pretrained_cfg_overlay": {"state_dict": timm_names(stored, names())}}


def require_backbone_weights(config: BackboneConfig) -> None:
    """Makes sure that the weights of a backbone can be had here.

    Raises:
        ModelError: there are none, or they could not be fetched.
    """
    require_own_file(config)
    published = timm.get_pretrained_cfg(config.name)
    own = {"pretrained_cfg", "pretrained_cfg_overlay"} & config.kwargs.keys()
    if has_own_weights(config):
        return
    if published is None or not (published.hf_hub_id or published.url or published.file):
        raise ModelError(
            f"backbone.pretrained=true: timm has no weights for {config.name}: set it to false, "
            f"or choose one of {timm.list_pretrained(config.name.split('.')[0] + '*')[:4]}"
        )
    if published.hf_hub_id and not own:
        named = published.hf_hub_filename
        require_hub_file(
            published.hf_hub_id,
            (named,) if named else ("model.safetensors", "pytorch_model.bin"),
            where=f"backbone.name={config.name}",
            otherwise="or name the file: backbone.weights=PATH; or train from scratch: "
            "backbone.pretrained=false",
        )


@contextmanager
def watched_loading(config: BackboneConfig) -> Iterator[None]:
    """Watches what timm loads into a backbone that is built meanwhile: logs the share it fills.

    Raises:
        ModelError: the weights are those of another network; names examples of both. Or the file
            cannot be read.
    """
    load = nn.Module.load_state_dict

    def noted(module: nn.Module, state_dict: Mapping[str, Any], *args: Any, **kwargs: Any) -> Any:
        _check_filled(config, module, state_dict)
        found = load(module, state_dict, *args, **kwargs)
        # timm would warn of them on every worker, though most are the classifier, which is cut off.
        found.unexpected_keys.clear()
        return found

    try:
        # timm has no way to ask what it filled.
        with patch.object(nn.Module, "load_state_dict", noted):
            _check_pickle(own_file(config))
            yield
    except ModelError:
        raise
    # torch and timm raise a dozen kinds over files that hold no weights.
    except Exception as error:
        if not own_file(config):
            raise
        reason = " ".join(str(error).split())[:300]
        raise ModelError(
            f"{_setting(config)}={own_file(config)}: cannot be loaded into {config.name} "
            f"({type(error).__name__}: {reason}): name a weights file of this model"
        ) from error


def _check_pickle(file: str) -> None:
    """Reads a pickled weights file as data alone first: older versions of timm run what it says.

    Raises:
        Exception: it is none, or holds more than tensors.
    """
    if file and not file.endswith((".safetensors", ".npz")):
        try:
            check_torch_file(file)
        except ModelError as error:
            raise pickle.UnpicklingError(str(error)) from error
        torch.load(file, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(file))


def _check_filled(config: BackboneConfig, module: nn.Module, state: Mapping[str, Any]) -> None:
    cfg = getattr(module, "pretrained_cfg", None) or {}
    names = cfg.get("classifier") or ()
    # The classifier is cut off afterwards, and its weights are left out on purpose.
    unused = tuple(f"{name}." for name in ((names,) if isinstance(names, str) else names))
    own = {n: value for n, value in module.state_dict().items() if not n.startswith(unused or "\0")}
    fits = {n for n, v in own.items() if n in state and tuple(state[n].shape) == tuple(v.shape)}
    share = sum(own[name].numel() for name in fits) / max(1, sum(v.numel() for v in own.values()))
    source = config.weights or own_file(config) or "the published weights"
    logger.info("%s: %s fill %.1f %% of it", config.name, source, 100 * share)
    named = config.weights or own_file(config)
    where = f"{_setting(config)}={named}" if named else f"backbone.name={config.name}"
    check_finite({n: state[n] for n in fits}, where)
    if share < LEAST_FILLED:
        empty = ", ".join(shown(name) for name in [n for n in own if n not in fits][:2])
        other = ", ".join(shown(name) for name in [n for n in state if n not in fits][:2])
        raise ModelError(
            f"{where}: fills {100 * share:.1f} % of {config.name} ({len(fits)} of {len(own)} "
            f"tensors): must fill nearly all: it has {empty}, the file {other or 'nothing else'}: "
            "name weights of this model, with timm's names and shapes"
        )
