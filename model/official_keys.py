"""What the keys of a published LSeg checkpoint are called, and what follows from them.

`pretrained.*` is the image encoder with its reassemble blocks, `scratch.*` the decoder and the
regulariser, `clip_pretrained.*` the frozen CLIP (named in our checkpoints, not stored). Of the
regulariser the keys say only that there is one; its kind, depth and activation are
hyper-parameters of the file.
"""

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

from model.config import (
    BackboneConfig,
    ModelConfig,
    RegularizerConfig,
    TextConfig,
    config_from_dict,
)
from model.errors import ModelError
from model.lightning_file import plain_mapping

Shapes = Mapping[str, tuple[int, ...]]

CONFIG_KEY = "lseg_config"
"""The hyper-parameter under which our exports carry our configuration."""

NAMES = (
    (r"backbone\.vit\.(.+)", r"pretrained.model.\1"),
    (r"backbone\.net\.conv1\.(.+)", r"pretrained.layer1.0.\1"),
    (r"backbone\.net\.bn1\.(.+)", r"pretrained.layer1.1.\1"),
    (r"backbone\.net\.layer1\.(.+)", r"pretrained.layer1.4.\1"),
    (r"backbone\.net\.layer([234])\.(.+)", r"pretrained.layer\1.\2"),
    (r"reassemble\.(\d)\.readout\.(.+)", r"pretrained.act_postprocess{\1}.0.project.0.\2"),
    (r"reassemble\.(\d)\.project\.(.+)", r"pretrained.act_postprocess{\1}.3.\2"),
    (r"reassemble\.(\d)\.resample\.(.+)", r"pretrained.act_postprocess{\1}.4.\2"),
    (r"decoder\.adapt\.(\d)\.(.+)", r"scratch.layer{\1}_rn.\2"),
    (r"decoder\.fusion\.(\d)\.out\.(.+)", r"scratch.refinenet{\1}.out_conv.\2"),
    (r"decoder\.fusion\.(\d)\.skip_unit\.(.+)", r"scratch.refinenet{\1}.resConfUnit1.\2"),
    (r"decoder\.fusion\.(\d)\.path_unit\.(.+)", r"scratch.refinenet{\1}.resConfUnit2.\2"),
    (r"decoder\.head\.(.+)", r"scratch.head1.\1"),
    (r"regularizer\.convs\.0\.(.+)", r"scratch.head_block.depthwise.depthwise.\1"),
)
"""Ours -> published; `{n}` stands for n + 1 (levels are counted from 1 there)."""

DEAD = (
    ("the CLIP visual tower", r"clip_pretrained\.(visual\..+|logit_scale)"),
    ("the CLIP text tower (frozen; named in config.yaml)", r"clip_pretrained\.(?!visual\.).+"),
    ("the ViT's final norm and classifier", r"pretrained\.model\.(norm|head|pre_logits)\..+"),
    ("a fusion unit that is never run", r"scratch\.refinenet4\.resConfUnit1\..+"),
)
"""Published entries that no output depends on (or that are frozen and known by name)."""

VITS = {
    (768, 32, 12): "vit_base_patch32_384",
    (768, 16, 12): "vit_base_patch16_384",
    (1024, 16, 24): "vit_large_patch16_384",
}
TEXT_ENCODERS = {
    (512, 32): "ViT-B-32-quickgelu",
    (512, 16): "ViT-B-16-quickgelu",
    (640, None): "RN50x4-quickgelu",
    (768, None): "RN50x16-quickgelu",
}
ACTIVATIONS = ("relu", "lrelu", "tanh")


def official_name(name: str) -> str:
    """Translates a name of our state dict into the published one (without `net.`).

    Raises:
        ModelError: the published form has no such part.
    """
    for ours, published in NAMES:
        match = re.fullmatch(ours, name)
        if match:
            expanded = match.expand(published)
            return re.sub(r"\{(\d)\}", lambda level: str(int(level[1]) + 1), expanded)
    raise ModelError(
        f"{name}: has no place in a published checkpoint: only a plain ViT or a ResNet, with one "
        "shared regulariser kernel, can be exported"
    )


def infer_config(
    shapes: Shapes, hyper: Mapping[str, Any], regularizer: RegularizerConfig | None, where: str
) -> tuple[ModelConfig, list[str]]:
    """Works out the configuration from the published keys, shapes and hyper-parameters.

    Returns:
        The configuration (with `pretrained` off: the file brings the weights) and what was found.
    """
    for key in ("scratch.head1.weight", "scratch.layer1_rn.weight"):
        if len(shapes.get(key, ())) != 4:
            raise ModelError(
                f"{where}: has no {key} (its {len(shapes)} tensors begin with "
                f"{sorted(shapes)[:3]}): must be an LSeg checkpoint: check the file"
            )
    if CONFIG_KEY in hyper:
        if regularizer is not None and regularizer.applications:
            raise ModelError(
                f"regularizer.kind={regularizer.kind}: {where} carries its own configuration: "
                "leave it out"
            )
        config = config_from_dict(ModelConfig, plain_mapping(hyper[CONFIG_KEY]), "model")
        config = replace(config, backbone=replace(config.backbone, pretrained=False))
        return config, [f"exported by this project: {config.backbone.name}, its own configuration"]
    backbone, notes = _infer_backbone(shapes, where)
    embed_dim = shapes["scratch.head1.weight"][0]
    patch = shapes.get("clip_pretrained.visual.conv1.weight", (0, 0, 32, 32))[-1]
    encoder = TEXT_ENCODERS.get((embed_dim, patch if embed_dim == 512 else None))
    if encoder is None:
        raise ModelError(
            f"{where}: embeds into {embed_dim} dimensions: must be 512 (CLIP ViT-B), 640 (RN50x4) "
            "or 768 (RN50x16)"
        )
    notes.append(f"text width {embed_dim}: {encoder} of OpenAI")
    found = _infer_regularizer(shapes, hyper, regularizer, where)
    notes.append(
        f"regulariser: {found.kind} x {found.depth}, {found.activation}"
        if found.depth
        else "regulariser: none"
    )
    projections = [f"pretrained.act_postprocess{level}.3.weight" for level in (1, 2, 3, 4)]
    widths = tuple(shapes[key][0] for key in projections if key in shapes)
    config = ModelConfig(
        backbone=backbone,
        text=TextConfig(encoder=encoder, pretrained="openai"),
        regularizer=found,
        features=shapes["scratch.layer1_rn.weight"][0],
        reassemble=widths if len(widths) == 4 else None,
    )
    return config, notes


def _infer_backbone(shapes: Shapes, where: str) -> tuple[BackboneConfig, list[str]]:
    patches = shapes.get("pretrained.model.patch_embed.proj.weight")
    if patches:
        blocks = {key.split(".")[3] for key in shapes if key.startswith("pretrained.model.blocks.")}
        known = (patches[0], patches[-1], len(blocks))
        if known not in VITS:
            raise ModelError(
                f"{where}: its ViT has (width, patch, blocks) = {known}: must be one of "
                f"{[*VITS]}, which were published: check the file"
            )
        positions = shapes.get("pretrained.model.pos_embed", ())
        if len(positions) != 3:
            raise ModelError(
                f"{where}: pretrained.model.pos_embed is missing or has shape {positions}: must be "
                "(1, tokens, width): check the file"
            )
        side = round(max(0, positions[1] - 1) ** 0.5) * patches[-1]
        kwargs = {} if side == 384 else {"img_size": side}
        note = f"backbone {VITS[known]}, position embedding for {side} pixels; the zero-shot form "
        note += "has the same keys (score it with two labels for each image)"
        return BackboneConfig(name=VITS[known], pretrained=False, kwargs=kwargs), [note]
    layer3 = {key.split(".")[2] for key in shapes if key.startswith("pretrained.layer3.")}
    if len(layer3) == 23:
        note = (
            "backbone resnet101, published in the zero-shot form only (two labels for each image)"
        )
        return BackboneConfig(name="resnet101.tv_in1k", pretrained=False), [note]
    raise ModelError(
        f"{where}: has neither a ViT (pretrained.model.*) nor a ResNet101 (pretrained.layer*; "
        f"{len(layer3)} blocks in layer3): must be a published LSeg: check the file"
    )


def _infer_regularizer(
    shapes: Shapes, hyper: Mapping[str, Any], given: RegularizerConfig | None, where: str
) -> RegularizerConfig:
    if "scratch.head_block.depthwise.depthwise.weight" not in shapes:
        if given is not None and given.applications:
            raise ModelError(
                f"regularizer.kind={given.kind}: {where} has no regulariser block: set it to none"
            )
        return RegularizerConfig()
    if given is not None and given.applications:
        return replace(given, init="reference")
    arch = hyper.get("arch_option")
    kind = {1: "bottleneck", 2: "depthwise"}.get(arch) if type(arch) is int else None
    activation = hyper.get("activation", "lrelu")
    depth = hyper.get("block_depth")
    if kind is None or activation not in ACTIVATIONS or type(depth) is not int:
        raise ModelError(
            f"{where}: has a regulariser block and does not say which one: name it: "
            "--regularizer.kind depthwise|bottleneck --regularizer.depth N "
            "--regularizer.activation lrelu|relu|tanh"
        )
    # The published network applies its block once when it is set to apply it 0 times.
    return RegularizerConfig(
        kind=cast(Any, kind), depth=max(1, depth), activation=activation, init="reference"
    )


def check_keys(found: Shapes, wanted: Shapes, path: Path | str) -> None:
    """Compares a file's keys and shapes with those of the network, both under published names.

    Raises:
        ModelError: something is missing, unexpected (and not known to be dead) or of another
            shape; lists it.
    """
    missing = sorted(key for key in wanted if key not in found)
    unexpected = sorted(
        key
        for key in found
        if key not in wanted and not any(re.fullmatch(pattern, key) for _, pattern in DEAD)
    )
    wrong = [
        f"{key} {found[key]} instead of {shape}"
        for key, shape in sorted(wanted.items())
        if key in found and found[key] != shape
    ]
    if missing or unexpected or wrong:
        raise ModelError(
            f"{path}: does not fit the network that its keys suggest:"
            f"{listed('missing', missing)}{listed('unexpected', unexpected)}"
            f"{listed('of another shape', wrong)}"
        )


def listed(what: str, keys: list[str]) -> str:
    """Up to 20 keys, one a line, under how many there are; empty for none."""
    if not keys:
        return ""
    more = f"\n    and {len(keys) - 20} more" if len(keys) > 20 else ""
    return f"\n  {len(keys)} {what}:\n    " + "\n    ".join(keys[:20]) + more
