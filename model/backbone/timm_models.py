"""timm's image models by name: built with the weights that a configuration names, or in outline."""

from difflib import get_close_matches
from functools import lru_cache
from typing import Any

import timm
import torch
from torch import nn

from model.backbone.weights import require_backbone_weights, watched_loading, with_own_weights
from model.config import BackboneConfig
from model.errors import ModelError
from model.settings_file import shown


@lru_cache(maxsize=4)
def probe(name: str) -> nn.Module:
    """The bare model on the meta device: its class and structure, without memory."""
    with torch.device("meta"):
        return create(BackboneConfig(name=name, pretrained=False), {})


def create(config: BackboneConfig, kwargs: dict[str, Any]) -> nn.Module:
    """Builds a timm model with the weights that a configuration names.

    Raises:
        ModelError: an unknown name, arguments that it refuses, or weights that could not be
            fetched.
    """
    if not timm.is_model(config.name):
        name = config.name.split(".")[0][:80]
        # A name in a file may hold what is a pattern to `list_models`.
        pattern = f"*{name}*" if name.replace("_", "").isalnum() else "none"
        close = timm.list_models(pattern)[:3] or get_close_matches(name, timm.list_models())
        hint = f"one of {close}?" if close else "see timm.list_models()"
        raise ModelError(f"backbone.name={shown(config.name)}: is no timm model: {hint}")
    try:
        if not config.pretrained:
            return timm.create_model(config.name, pretrained=False, **kwargs)
        require_backbone_weights(config)
        kwargs = with_own_weights(config, kwargs, lambda: probe(config.name).state_dict())
        with watched_loading(config):
            model = timm.create_model(config.name, pretrained=True, **kwargs)
        # Kept there by timm, a second time.
        for said in (model, *model.children()):
            getattr(said, "pretrained_cfg", {}).pop("state_dict", None)
        return model
    except ModelError:
        raise
    except RuntimeError as error:
        if "Invalid pretrained tag" in str(error):
            tags = timm.list_pretrained(f"{config.name.split('.')[0]}*")
            raise ModelError(
                f"backbone.name={config.name!r}: timm knows no such tag of it: one of {tags[:6]}?"
            ) from error
        if config.pretrained:  # Whatever a download raises.
            raise
        raise _refused(config, kwargs, error) from error
    except _WRONG_SETTINGS as error:
        raise _refused(config, kwargs, error) from error


_WRONG_SETTINGS = (
    TypeError,
    ValueError,
    AssertionError,
    ArithmeticError,
    LookupError,
    AttributeError,
    MemoryError,
    NotImplementedError,
)
"""What timm raises over arguments that a model cannot be built with."""


def _refused(config: BackboneConfig, kwargs: dict[str, Any], error: Exception) -> ModelError:
    reason = " ".join(str(error).split())[:300] or type(error).__name__
    return ModelError(
        f"backbone.kwargs={shown(kwargs)}: timm's {config.name} refuses them: {reason}"
    )


def named_in_full(name: str) -> str:
    """A timm name with the tag of its weights, which is timm's own choice where none is given."""
    found = None if "." in name else timm.get_pretrained_cfg(name)
    return f"{name}.{found.tag}" if found and found.tag else name


def normalisation(model: Any) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """The mean and std of a timm model's input, in units of 0..1.

    Raises:
        ModelError: they are not three numbers each.
    """
    cfg = model.pretrained_cfg if hasattr(model, "pretrained_cfg") else model.default_cfg
    mean, std = cfg["mean"], cfg["std"]
    for values, lowest in ((mean, -1e3), (std, 1e-6)):
        numbers = isinstance(values, list | tuple) and all(
            isinstance(v, int | float) for v in values
        )
        if not numbers or len(values) != 3 or not all(lowest <= value <= 1e3 for value in values):
            raise ModelError(
                f"backbone.kwargs: mean {shown(mean)}, std {shown(std)}: must be three numbers "
                "each, std above 0: correct pretrained_cfg_overlay"
            )
    return tuple(mean), tuple(std)
