"""CLIP text towers from open_clip: by model and tag, or from a file.

A file may hold a whole open_clip checkpoint, or only a text tower under OpenAI's names, as the
import of a published LSeg checkpoint leaves it. open_clip itself is imported when it is needed.
"""

import pickle
from difflib import get_close_matches
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from model.config import STAND_IN, TextConfig
from model.errors import ModelError, Unreachable
from model.hub_files import require_hub_file
from model.lightning_file import check_torch_file
from model.outline import check_finite
from model.settings_file import shown

WEIGHT_SUFFIXES = (".safetensors", ".pt", ".pth", ".bin", ".ckpt")
_NO_WEIGHTS = (
    SafetensorError,
    pickle.UnpicklingError,
    RuntimeError,
    OSError,
    ValueError,
    EOFError,
    AttributeError,
    LookupError,
    TypeError,
)
"""What reading a file raises that holds something else, also a pickle that would run code."""
LOCAL_FOLDER, HUB_MODEL = "local-dir:", "hf-hub:"
"""open_clip's words for a model whose settings and tokenizer lie in a folder, or on the hub."""
HUB_FILES = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")


def open_clip_dim(config: TextConfig) -> int:
    """The width of an open_clip model's embeddings, without its weights.

    Raises:
        ModelError: there is no such model; names the nearest.
    """
    import open_clip

    if config.encoder == STAND_IN:
        raise ModelError(
            f"text.encoder={STAND_IN}: has no weights, and so no CLIP model to load: name an "
            "open_clip model (see open_clip.list_models())"
        )
    try:
        settings = open_clip.get_model_config(config.encoder)
        dim = int(settings["embed_dim"]) if settings is not None else None
    # `local-dir:` and `hf-hub:` read a file that may be missing or hold anything.
    except Exception as error:
        reason = " ".join(str(error).split())[:300]
        raise ModelError(
            f"text.encoder={shown(config.encoder)[1:-1]}: cannot be found ({type(error).__name__}: "
            f"{reason}): must be an open_clip model: name one of open_clip.list_models(), or "
            "local-dir:FOLDER with its open_clip_config.json"
        ) from error
    if dim is None:
        close = get_close_matches(config.encoder, [STAND_IN, *open_clip.list_models()], n=1)
        hint = f"did you mean {close[0]!r}?" if close else "see open_clip.list_models()"
        raise ModelError(f"text.encoder={config.encoder!r}: is no open_clip model: {hint}")
    return dim


def load_open_clip(config: TextConfig, keep_image_tower: bool = False) -> nn.Module:
    """Loads a CLIP model, drops its image tower if that is not to be kept, and freezes the rest.

    Raises:
        ModelError: an unknown tag, a file that does not fit, or weights that could not be fetched.
    """
    import open_clip

    open_clip_dim(config)
    if config.pretrained.endswith(WEIGHT_SUFFIXES):
        model = _load_file(config)
    else:
        require_open_clip_weights(config)
        try:
            model = open_clip.create_model(config.encoder, pretrained=config.pretrained)
        except (OSError, RuntimeError) as error:
            # A file that does not fit is a RuntimeError; what cannot be fetched or kept is none.
            kind = Unreachable if isinstance(error, OSError) else ModelError
            raise kind(
                f"text.pretrained={config.pretrained}: cannot be loaded into {config.encoder}: "
                f"{error}"
            ) from error
    if not keep_image_tower:
        cast(Any, model).visual = None
    return model.eval().requires_grad_(False)


def _require_file(config: TextConfig) -> Path:
    import open_clip

    path = Path(config.pretrained)
    if not path.is_file():
        raise ModelError(
            f"text.pretrained={path}: no such file: name the weights of {config.encoder}, or a tag "
            f"of {open_clip.list_pretrained_tags_by_model(config.encoder)[:5]}"
        )
    return path


def _load_file(config: TextConfig) -> Any:
    import open_clip

    path = _require_file(config)
    model: Any = open_clip.create_model(config.encoder, pretrained=None)
    try:
        check_torch_file(path)
        state: dict[str, Tensor] = (
            load_file(path)
            if path.suffix == ".safetensors"
            else torch.load(path, map_location="cpu", weights_only=True)
        )
        state = state.get("state_dict", state)  # pyright: ignore[reportAssignmentType]
        state = {name.removeprefix("module."): value for name, value in state.items()}
        missing, unexpected = model.load_state_dict(state, strict=False)
    except _NO_WEIGHTS as error:
        reason = " ".join(str(error).split())[:300]
        raise ModelError(
            f"text.pretrained={path}: is no complete weights file of {config.encoder} "
            f"({type(error).__name__}: {reason}): fetch it again"
        ) from error
    check_finite(state, f"text.pretrained={path}")
    missing = [name for name in missing if not name.startswith(("visual.", "logit_"))]
    if missing or unexpected:
        raise ModelError(
            f"text.pretrained={path}: does not fit {config.encoder}: missing {missing[:10]}, "
            f"unexpected {unexpected[:10]}: name the model that these weights belong to"
        )
    return model


def require_open_clip_weights(config: TextConfig) -> None:
    """Makes sure that a CLIP model's published weights can be had here; a file must be there.

    Raises:
        ModelError: an unknown tag, or weights that are neither here nor to be had from the hub.
    """
    import open_clip

    if config.pretrained.endswith(WEIGHT_SUFFIXES):
        _require_file(config)
        return

    published = open_clip.get_pretrained_cfg(config.encoder, config.pretrained)
    if not published:
        tags = open_clip.list_pretrained_tags_by_model(config.encoder)
        close = get_close_matches(config.pretrained, tags, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"there are {tags[:8]}"
        raise ModelError(
            f"text.pretrained={config.pretrained!r}: is neither a tag of {config.encoder} nor a "
            f"file: {hint}"
        )
    repo, _, filename = str(published.get("hf_hub", "")).rpartition("/")
    if repo:
        require_hub_file(
            repo,
            (filename,) if filename else HUB_FILES,
            where=f"text.encoder={config.encoder} ({config.pretrained})",
            otherwise="or set text.pretrained to the path of the file; or use the offline "
            f"text.encoder={STAND_IN}",
        )


def open_clip_asks_the_hub(config: TextConfig) -> bool:
    """Whether a CLIP model takes its weights or its tokenizer from the hub.

    Raises:
        ModelError: there is no such model.
    """
    import open_clip

    open_clip_dim(config)
    if config.encoder.startswith(HUB_MODEL):
        return True
    if config.encoder.startswith(LOCAL_FOLDER):
        return False
    settings = open_clip.get_model_config(config.encoder) or {}
    own_tokenizer = not settings.get("text_cfg", {}).get("hf_tokenizer_name")
    return not (config.pretrained.endswith(WEIGHT_SUFFIXES) and own_tokenizer)
