"""The published LSeg checkpoints, and the way back; those of CAT-Seg come in here too.

A published file is a Lightning `.ckpt`: `state_dict` with `net.` before every key, in which every
parameter of our network has its entry, among others that nothing depends on.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from model.backbone import TokenBackbone, quarter_ends
from model.checkpoint_files import TEXT_WEIGHTS
from model.config import RegularizerConfig
from model.errors import ModelError
from model.lightning_file import TorchFile, is_tensor, plain_mapping, shape_of
from model.lseg import LSeg, build_lseg
from model.official_cost import import_cost, is_cost
from model.official_keys import CONFIG_KEY, DEAD, check_keys, infer_config, official_name

PREFIX = "net."


@dataclass(frozen=True, kw_only=True)
class Imported:
    """A published checkpoint in our form."""

    lseg: LSeg
    """The network with the file's weights, in evaluation mode."""
    notes: tuple[str, ...]
    """What was found and what was left out, a sentence each."""
    text_weights: dict[str, Tensor]
    """The file's CLIP text tower under OpenAI's names (float32); empty where it has none."""
    text_trained: bool = False
    """Whether that tower was trained too, so that no other gives its vectors."""


def import_official(path: Path | str, regularizer: RegularizerConfig | None = None) -> Imported:
    """Reads a published checkpoint, running nothing that it contains.

    Args:
        path: the `.ckpt` file.
        regularizer: overrides what the file says; needed where it has a block and says nothing.

    Raises:
        FileNotFoundError: there is no such file.
        ModelError: it is damaged or suspicious, is no LSeg, or does not fit, with the list of
            missing and unexpected keys.
    """
    file = TorchFile(path)
    content = plain_mapping(file.content)
    entries = plain_mapping(content.get("state_dict", content.get("model", file.content)))
    records = {key.removeprefix(PREFIX): r for key, r in entries.items() if is_tensor(r)}
    shapes = {key: shape_of(record) for key, record in records.items()}
    if is_cost(shapes):
        if regularizer is not None:
            raise ModelError(
                f"regularizer.kind={regularizer.kind}: {path} is a CAT-Seg, which has none: leave "
                "it out"
            )
        cost = import_cost(shapes, lambda key: file.tensor(records[key]), path)
        note = f"{path}: a CAT-Seg; its text tower was trained with it, and is kept"
        return Imported(
            lseg=cost.lseg, notes=(note,), text_weights=cost.text_weights, text_trained=True
        )
    hyper = plain_mapping(content.get("hyper_parameters", {}))
    hyper = {**plain_mapping(hyper.get("kwargs")), **plain_mapping(hyper.get("args")), **hyper}
    config, notes = infer_config(shapes, hyper, regularizer, str(path))
    lseg = build_lseg(config, embed_dim=shapes["scratch.head1.weight"][0])
    wanted = {official_name(name): name for name in lseg.state_dict()}
    check_keys(shapes, {o: tuple(lseg.state_dict()[n].shape) for o, n in wanted.items()}, path)
    for what, pattern in DEAD:
        dropped = sum(bool(re.fullmatch(pattern, key)) for key in shapes)
        if dropped:
            notes.append(f"left out: {what}, {dropped} entries")
    state = {name: _as_ours(file.tensor(records[published])) for published, name in wanted.items()}
    lseg.load_state_dict(state)
    text_prefix = "clip_pretrained."
    text = {
        key.removeprefix(text_prefix): _as_ours(file.tensor(record))
        for key, record in records.items()
        if key.startswith(text_prefix) and not key.startswith(f"{text_prefix}visual.")
    }
    # One of this project whose tower was trained with it, or came with it.
    own = Path(config.text.pretrained).name == TEXT_WEIGHTS
    return Imported(lseg=lseg.eval(), notes=tuple(notes), text_weights=text, text_trained=own)


def _as_ours(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.is_floating_point() else tensor


def official_state(lseg: LSeg, clip: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
    """Translates a network into the published state dict, dead entries included.

    Args:
        lseg: a network on a plain ViT or a ResNet.
        clip: the whole CLIP model's state under OpenAI's names; None leaves it out.

    Raises:
        ModelError: the published form cannot hold this network.
    """
    backbone = lseg.backbone
    if lseg.config.head.kind != "dot":
        raise ModelError(
            f"model.head.kind={lseg.config.head.kind}: the published form has a dot head alone: it "
            "cannot be exported"
        )
    if isinstance(backbone, TokenBackbone) and not (
        isinstance(backbone.vit, VisionTransformer)
        and backbone.has_class_token
        and backbone.num_prefix == 1
        and backbone.hooks == quarter_ends(len(backbone.vit.blocks))
    ):
        raise ModelError(
            f"backbone.name={lseg.config.backbone.name}: the published form holds only plain ViTs "
            "with a class token, tapped at the end of each quarter: it cannot be exported"
        )
    state = {official_name(name): tensor for name, tensor in lseg.state_dict().items()}
    state.update(list(_dead_entries(state)))
    state.update({f"clip_pretrained.{name}": tensor for name, tensor in (clip or {}).items()})
    return {f"{PREFIX}{name}": tensor.detach() for name, tensor in state.items()}


def export_official(lseg: LSeg, path: Path | str, clip: Mapping[str, Tensor] | None = None) -> None:
    """Writes a network as a published checkpoint, a `.ckpt` file.

    Tools that load strictly need `clip`; see `official_state`.
    """
    regularizer = lseg.config.regularizer
    arch = {"none": 0, "bottleneck": 1, "depthwise": 2}[regularizer.kind]
    content = {
        "state_dict": {name: t.cpu() for name, t in official_state(lseg, clip).items()},
        "hyper_parameters": {
            "arch_option": arch if regularizer.applications else 0,
            "block_depth": regularizer.applications,
            "activation": regularizer.activation,
            "num_features": lseg.config.features,
            CONFIG_KEY: asdict(lseg.config),
        },
        "epoch": 0,
        "global_step": 0,
        "pytorch-lightning_version": "1.4.9",
    }
    temporary = Path(f"{path}.tmp")
    torch.save(content, temporary)
    temporary.replace(path)


def _dead_entries(state: Mapping[str, Tensor]) -> Iterable[tuple[str, Tensor]]:
    if "pretrained.model.cls_token" in state:
        width = state["pretrained.model.cls_token"].shape[-1]
        yield "pretrained.model.norm.weight", torch.ones(width)
        yield "pretrained.model.norm.bias", torch.zeros(width)
        yield "pretrained.model.head.weight", torch.zeros(1000, width)
        yield "pretrained.model.head.bias", torch.zeros(1000)
    for name, tensor in state.items():
        if name.startswith("scratch.refinenet4.resConfUnit2."):
            ones = name.endswith(("running_var", "bn1.weight", "bn2.weight"))
            filled = torch.ones_like(tensor) if ones else torch.zeros_like(tensor)
            yield name.replace("resConfUnit2", "resConfUnit1"), filled
