"""The published checkpoints of CAT-Seg (cvlab-kaist/CAT-Seg): their keys, and what follows.

A file holds three parts: `sem_seg_head.predictor.transformer.*` is the aggregator, whose names are
ours; `upsample1` and `upsample2` lead the guidance to it; `sem_seg_head.predictor.clip_model.*` is
a whole CLIP under OpenAI's names, but for the weights of queries, keys and values, which stand
apart there because only some of them train. Its text tower trains too, so that it has to be kept.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from model.config import BackboneConfig, HeadConfig, ModelConfig, TextConfig
from model.errors import ModelError
from model.lseg import LSeg, build_lseg
from model.official_keys import Shapes, listed

HEAD = "sem_seg_head.predictor.transformer."
CLIP = "sem_seg_head.predictor.clip_model."
_BLOCK = r"visual\.transformer\.resblocks\.(\d+)\."

NAMES = (
    (r"cost\.aggregator\.(.+)", HEAD + r"\1"),
    (r"cost\.(upsample[12]\..+)", r"\1"),
    (r"backbone\.vit\.cls_token", CLIP + "visual.class_embedding"),
    (r"backbone\.vit\.pos_embed", CLIP + "visual.positional_embedding"),
    (r"backbone\.vit\.patch_embed\.proj\.weight", CLIP + "visual.conv1.weight"),
    (r"backbone\.vit\.norm_pre\.(.+)", CLIP + r"visual.ln_pre.\1"),
    (r"backbone\.vit\.norm\.(.+)", CLIP + r"visual.ln_post.\1"),
    (r"backbone\.vit\.head\.weight", CLIP + "visual.proj"),
    (r"backbone\.vit\.blocks\.(\d+)\.norm([12])\.(.+)", CLIP + r"{block}ln_\2.\3"),
    (r"backbone\.vit\.blocks\.(\d+)\.attn\.qkv\.(.+)", CLIP + r"{block}attn.in_proj_\2"),
    (r"backbone\.vit\.blocks\.(\d+)\.attn\.proj\.(.+)", CLIP + r"{block}attn.out_proj.\2"),
    (r"backbone\.vit\.blocks\.(\d+)\.mlp\.fc1\.(.+)", CLIP + r"{block}mlp.c_fc.\2"),
    (r"backbone\.vit\.blocks\.(\d+)\.mlp\.fc2\.(.+)", CLIP + r"{block}mlp.c_proj.\2"),
)
"""Ours -> published."""

TOWERS = {512: "ViT-B-16-quickgelu", 768: "ViT-L-14-336-quickgelu"}
"""Length of the vectors -> open_clip model of the text tower."""
TEMPLATE = "A photo of a {} in the scene"
PROJECTION = "backbone.vit.head.weight"
"""Stands transposed in OpenAI's files."""
MOST = {"width": 4096, "blocks": 64, "grid": 64}
"""Sizes that no published network comes near to."""


@dataclass(frozen=True, kw_only=True)
class ImportedCost:
    """A published checkpoint of CAT-Seg in our form."""

    lseg: LSeg
    text_weights: dict[str, Tensor]
    """The trained text tower under OpenAI's names."""


def is_cost(keys: Mapping[str, object]) -> bool:
    """Whether the keys are those of a CAT-Seg checkpoint."""
    return any(key.startswith(HEAD) for key in keys)


def published_name(name: str) -> str:
    """The published key of one of our weights; empty for the projection's bias, which has none."""
    for ours, published in NAMES:
        if match := re.fullmatch(ours, name):
            block = f"visual.transformer.resblocks.{match[1]}." if "{block}" in published else ""
            return match.expand(published.replace("{block}", block))
    assert name == "backbone.vit.head.bias", name
    return ""


def import_cost(shapes: Shapes, tensor: Callable[[str], Tensor], path: Path | str) -> ImportedCost:
    """Makes the network of a file.

    Args:
        shapes: of every tensor in the file, by published key.
        tensor: reads one of them.
        path: the file, for messages.

    Raises:
        ModelError: the keys or shapes are not those of a CAT-Seg on a CLIP ViT; lists them.
    """
    separate = _separate(shapes)
    joined = {
        k: v for k, v in shapes.items() if k not in {n for ns in separate.values() for n in ns}
    }
    for key, parts in separate.items():
        joined[key] = (3 * shapes[parts[0]][0], *shapes[parts[0]][1:])

    def read(key: str) -> Tensor:
        found = [tensor(part) for part in separate[key]] if key in separate else [tensor(key)]
        return torch.cat(found) if len(found) > 1 else found[0]

    lseg = build_lseg(_config(joined, path), joined[f"{CLIP}visual.proj"][1])
    state: dict[str, Tensor] = {}
    problems: list[str] = []
    for name, own in lseg.state_dict().items():
        key = published_name(name)
        if not key:
            state[name] = torch.zeros_like(own)
            continue
        wanted = _published_shape(name, tuple(own.shape))
        if joined.get(key) != wanted:
            problems.append(f"{key} {joined.get(key, 'missing')} instead of {wanted}")
            continue
        value = read(key)
        state[name] = (value.T if name == PROJECTION else value).reshape(own.shape)
    known = {published_name(name) for name in lseg.state_dict()}
    problems += [
        f"{key}: unexpected"
        for key in joined
        if key not in known and (not key.startswith(CLIP) or key.startswith(f"{CLIP}visual."))
    ]
    if f"{CLIP}text_projection" not in joined:
        problems.append(f"{CLIP}text_projection: missing, with the text tower")
    if problems:
        raise ModelError(
            f"{path}: does not fit the CAT-Seg that its keys suggest:"
            f"{listed('different', problems)}"
        )
    lseg.load_state_dict({n: v.float() for n, v in state.items()})
    text = {
        key.removeprefix(CLIP): read(key).float()
        for key in joined
        if key.startswith(CLIP) and not key.startswith(f"{CLIP}visual.")
    }
    return ImportedCost(lseg=lseg.eval(), text_weights=text)


def _separate(shapes: Shapes) -> dict[str, list[str]]:
    """Key of each joint weight -> the keys of its queries, keys and values."""
    ends = "attn.q_proj_weight"
    return {
        key.removesuffix(ends) + "attn.in_proj_weight": [
            f"{key.removesuffix(ends)}attn.{each}_proj_weight" for each in "qkv"
        ]
        for key in shapes
        if key.endswith(ends)
        # Of one matrix each: others cannot be joined.
        and len(shapes[key]) == 2
        and all(
            shapes.get(f"{key.removesuffix(ends)}attn.{each}_proj_weight") == shapes[key]
            for each in "kv"
        )
    }


def _published_shape(name: str, ours: tuple[int, ...]) -> tuple[int, ...]:
    if name == PROJECTION:
        return ours[::-1]
    if name.endswith(".cls_token"):
        return ours[2:]
    return ours[1:] if name.endswith(".pos_embed") else ours


def _config(shapes: Shapes, path: Path | str) -> ModelConfig:
    """What was trained, by the shapes of CLIP's image tower."""
    patches, projection, positions = (
        shapes.get(f"{CLIP}visual.{name}", ())
        for name in ("conv1.weight", "proj", "positional_embedding")
    )
    blocks = {int(match[1]) for key in shapes if (match := re.match(re.escape(CLIP) + _BLOCK, key))}
    dims = len(patches), len(projection), len(positions)
    if dims != (4, 2, 2) or positions[0] < 2 or not blocks:
        raise ModelError(
            f"{path}: holds no CLIP ViT beside CAT-Seg's aggregator: must be a published "
            "checkpoint of it on ViT-B/16 or ViT-L/14: check the file"
        )
    width, patch_px, grid = patches[0], patches[2], round((positions[0] - 1) ** 0.5)
    sizes = {"width": width, "blocks": max(blocks) + 1, "grid": grid}
    encoder = TOWERS.get(projection[1], "")
    if not encoder or any(sizes[name] > most for name, most in MOST.items()) or width % 64:
        raise ModelError(
            f"{path}: a CLIP of {width} channels, {sizes['blocks']} blocks and vectors of "
            f"{projection[1]} numbers is none that CAT-Seg publishes: must be ViT-B/16 or "
            "ViT-L/14: check the file"
        )
    large = encoder.startswith("ViT-L")
    name = (
        "vit_large_patch14_clip_quickgelu_336" if large else "vit_base_patch16_clip_quickgelu_224"
    )
    kwargs = {
        "embed_dim": width,
        "depth": sizes["blocks"],
        "num_heads": width // 64,
        "patch_size": patch_px,
        "img_size": grid * patch_px,
        "num_classes": projection[1],
    }
    padding = any(key.startswith(f"{HEAD}layers.0.attention.padding") for key in shapes)
    return ModelConfig(
        backbone=BackboneConfig(name=name, pretrained=False, kwargs=kwargs),
        text=TextConfig(encoder=encoder, pretrained="openai", templates=TEMPLATE),
        head=HeadConfig(kind="cost", padded=256 if padding else 0),
    )
