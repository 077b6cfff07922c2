"""The settings of the network: backbone, text encoder, spatial regulariser, decoder width.

Frozen dataclasses, read from YAML and the command line by jsonargparse; every value that cannot
work is refused here, before anything is built.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from difflib import get_close_matches
from types import UnionType
from typing import Any, Literal, TypeVar, cast, get_args, get_origin, get_type_hints

from model.errors import ModelError
from model.packages import BACKBONE_PACKAGES, PACKAGE, TEXT_PACKAGES, package_of
from model.settings_file import check_plain, shown

Config = TypeVar("Config")

STAND_IN = "stand-in"
"""The name of the text encoder that needs no download."""
ONE_HOT = "one-hot"
"""The name of the text encoder to which no two labels have anything in common."""
TABLE = "table:"
"""What `text.encoder` begins with where a file holds the vectors."""
_WITHOUT_PRETRAINED = ("sentence-transformers/", PACKAGE, TABLE)
"""Beginnings of encoders that read no `text.pretrained`."""
NOT_PUBLISHED = "(not published)"
"""Stands in a published checkpoint for the path of a text encoder or of its weights."""

MAX_FEATURES, MAX_CHANNELS = 8192, 2**16
"""Channels of the fusion stages, and of a reassembled map: thirty times those of any ViT."""

MAX_TEXT, MAX_TEMPLATES = 10_000, 200
"""Characters of a name or of the templates that a file gives, and how many these are."""

NO_TEMPLATE = "none"
IMAGENET_TEMPLATES = "imagenet"
TEMPLATES = (NO_TEMPLATE, IMAGENET_TEMPLATES, "cat-seg", "vild", "tcl")
"""Names of lists of templates, which `model.text.templates` holds."""


@dataclass(frozen=True, kw_only=True)
class BackboneConfig:
    """The image encoder: any timm ViT, or any timm CNN with feature maps at strides 4 to 32."""

    name: str = "vit_large_patch16_384"
    """A timm model name, with an optional tag: `vit_base_patch32_384`, `resnet101.tv_in1k`."""

    pretrained: bool = True
    """Start from published weights: those that `weights` names, or else timm's (downloaded once,
    or found in the local cache)."""

    weights: str = ""
    """Weights to start from in place of timm's: `package:NAME` for those of an installed package
    (`package:efficientnet-lite0`, `package:efficientnet-lite2`), or the path of a weights file of
    this model, which every worker can read."""

    hooks: tuple[int, ...] | None = None
    """The four transformer blocks that are tapped, counted from 0; null: the end of each quarter
    of the depth (5, 11, 17, 23 of 24). Only for ViTs."""

    kwargs: dict[str, Any] = field(default_factory=dict)
    """Further arguments of `timm.create_model`, such as `{patch_size: 8, depth: 4}`."""

    def __post_init__(self) -> None:
        if not self.name:
            raise ModelError("backbone.name='': must name a timm model: see timm.list_models()")
        if self.weights.startswith(PACKAGE):
            entry = package_of(BACKBONE_PACKAGES, self.weights, "backbone.weights")
            if self.name.split(".")[0] != entry.backbone:
                raise ModelError(
                    f"backbone.weights={self.weights}: are those of {entry.backbone}: set "
                    f"backbone.name={entry.backbone} (now {shown(self.name)[1:-1]}), or name others"
                )
        if "checkpoint_path" in self.kwargs:
            # timm would read that file whatever `pretrained` says, also for a checkpoint of ours.
            raise ModelError(
                "backbone.kwargs.checkpoint_path: is not allowed: name a weights file with "
                "backbone.weights"
            )
        if self.kwargs.get("in_chans", 3) != 3:
            raise ModelError(
                f"backbone.kwargs.in_chans={shown(self.kwargs['in_chans'])}: must be 3, since "
                "images are RGB: leave it out"
            )
        if self.hooks is not None:
            object.__setattr__(self, "hooks", tuple(self.hooks))
            if len(self.hooks) != 4 or list(self.hooks) != sorted(self.hooks) or self.hooks[0] < 0:
                raise ModelError(
                    f"backbone.hooks={list(self.hooks)}: must be four block numbers in rising "
                    "order, from 0: leave it out to tap the end of each quarter"
                )


def reads_pretrained(encoder: str) -> bool:
    """Whether a text encoder of this name has weights to choose with `text.pretrained`."""
    return encoder not in (STAND_IN, ONE_HOT) and not encoder.startswith(_WITHOUT_PRETRAINED)


@dataclass(frozen=True, kw_only=True)
class TextConfig:
    """The text encoder, which is frozen unless `train.text` says otherwise."""

    encoder: str = "ViT-B-32-quickgelu"
    """An open_clip model name; `package:all-minilm-l6-v2` for the sentence encoder of an installed
    package; `table:FILE` for vectors of a file, a word and its numbers on each line;
    `sentence-transformers/NAME`; or, without any download, `stand-in` and `one-hot`, which know no
    language."""

    pretrained: str = "openai"
    """The open_clip tag of the weights, or the path of a weights file. The other kinds of
    encoder have nothing to choose and do not read it."""

    templates: str = NO_TEMPLATE
    """Sentences with the label: `none` (the bare label, as LSeg does); the mean over CLIP's 80
    (`imagenet`), ViLD's 14 (`vild`), TCL's 9 (`tcl`) or CAT-Seg's one (`cat-seg`); or your own, one
    a line, each with `{}`."""

    channels: bool = False
    """With the cost head alone: keep the vectors of the templates apart, each a channel of the
    cosine maps (as SED does with `imagenet`), in place of their mean."""

    synonyms: Literal["none", "first", "mean"] = "none"
    """What a label of several names between commas ("car, auto") is to the encoder: one text, as
    LSeg takes it, or its `first` name, or the `mean` of all."""

    def __post_init__(self) -> None:
        if not self.encoder:
            raise ModelError(
                "text.encoder='': must be an open_clip model, `stand-in`, `package:NAME`, "
                "`table:FILE` or `sentence-transformers/NAME`: see open_clip.list_models()"
            )
        if self.encoder.startswith(PACKAGE):
            package_of(TEXT_PACKAGES, self.encoder, "text.encoder")
        if self.synonyms not in ("none", "first", "mean"):
            raise ModelError(
                f"text.synonyms={self.synonyms!r}: must be one of none, first, mean: choose one"
            )
        own = [line for line in self.templates.splitlines() if line]
        if self.templates not in TEMPLATES and not (own and all("{}" in line for line in own)):
            raise ModelError(
                f"text.templates={shown(self.templates)}: must be one of {', '.join(TEMPLATES)}, "
                "or texts that contain {}, one a line: write for example 'a photo of a {}'"
            )
        if len(own) > MAX_TEMPLATES:
            raise ModelError(
                f"text.templates: has {len(own)} lines: must be at most {MAX_TEMPLATES}: drop some"
            )


@dataclass(frozen=True, kw_only=True)
class RegularizerConfig:
    """The spatial regularisation block between the scores and the upsampling."""

    kind: Literal["none", "depthwise", "bottleneck"] = "none"
    """`depthwise`: a 3x3 convolution that every label shares; `bottleneck`: the same plus the
    maximum over the labels."""

    depth: int = 0
    """How often the block is applied, 0 to 8; 0 is no block, whatever the kind."""

    activation: Literal["relu", "lrelu", "tanh"] = "relu"
    """Between two applications (not after the last); `lrelu` has slope 0.01."""

    shared: bool = True
    """One set of weights for all applications, as published; false: one set for each."""

    init: Literal["identity", "reference", "reference-negative", "reference-positive"] = "identity"
    """`identity` starts as a block that changes nothing and trains at the base learning rate;
    `reference` is the published one: random, at ten times the base rate (may collapse), and the
    other two are that with the sign of the bias, which decides the matter, chosen."""

    def __post_init__(self) -> None:
        # Checked here too: a checkpoint's config.yaml does not pass through the recipes' parser.
        for name in ("kind", "activation", "init"):
            allowed = get_args(get_type_hints(RegularizerConfig)[name])
            if getattr(self, name) not in allowed:
                raise ModelError(
                    f"regularizer.{name}={getattr(self, name)!r}: must be one of "
                    f"{', '.join(allowed)}"
                )
        if not 0 <= self.depth <= 8:
            raise ModelError(f"regularizer.depth={self.depth}: must be 0 to 8: lower it")
        if self.kind == "none" and self.depth:
            raise ModelError(
                f"regularizer.depth={self.depth}: has no meaning with kind 'none': set "
                "regularizer.kind to depthwise or bottleneck, or the depth to 0"
            )

    @property
    def applications(self) -> int:
        """How often a block is applied; 0 where there is none."""
        return 0 if self.kind == "none" else self.depth


LossKind = Literal["softmax", "binary", "binary-all"]
"""Over the labels that compete, or of each label alone; `all`: unlabelled pixels are of none."""

Variant = Literal["tokens", "value", "value+mlp", "cat-seg", "csa"]
Positions = Literal["bicubic", "bicubic-antialias", "bilinear"]


@dataclass(frozen=True, kw_only=True)
class AlignedConfig:
    """How dense image features in the space of the text encoder are made."""

    variant: Variant = "cat-seg"
    """What stands in place of the backbone's last attention, which mixes positions: `value` (each
    token's own value alone), `value+mlp`, `cat-seg` (with the class token's residual), `csa`, or
    `tokens`, which leaves it."""

    positions: Positions = "bicubic"
    """How learned positions are resized to the grid of the patches."""

    def __post_init__(self) -> None:
        for name, kind in (("variant", Variant), ("positions", Positions)):
            if getattr(self, name) not in get_args(kind):
                raise ModelError(
                    f"model.head.aligned.{name}={getattr(self, name)!r}: must be one of "
                    f"{', '.join(get_args(kind))}: choose one"
                )


@dataclass(frozen=True, kw_only=True)
class HeadConfig:
    """What makes scores of an image's features and the vectors of labels."""

    kind: Literal["dot", "dot-aligned", "cost"] = "dot"
    """`dot`: a decoder and cosines, as LSeg publishes; `dot-aligned`: the same, plus the cosines of
    the backbone's own features; `cost`: CAT-Seg's cost aggregation of these. Both need a CLIP,
    SigLIP, EVA or PE ViT and the text encoder that it was trained with."""

    aligned: AlignedConfig = field(default_factory=AlignedConfig)
    """With `dot-aligned` and `cost`."""

    padded: int = 256
    """With `cost`, fewer labels are filled up to this number with a learned one, and of more only
    the best of each image are scored; 0 for neither."""

    pool: int = 2
    """With `cost`, side of the squares of positions that its attention over labels sees as one
    while it trains."""

    def __post_init__(self) -> None:
        if self.kind not in ("dot", "dot-aligned", "cost"):
            raise ModelError(
                f"model.head.kind={shown(self.kind)}: must be one of dot, dot-aligned, cost: "
                "choose one"
            )
        if not 0 <= self.padded <= MAX_CHANNELS:
            raise ModelError(
                f"model.head.padded={shown(self.padded)}: must be 0 to {MAX_CHANNELS}: 256 as "
                "published"
            )
        if not 1 <= self.pool <= 16:
            raise ModelError(f"model.head.pool={shown(self.pool)}: must be 1 to 16: 2 as published")
        changed = {"aligned": AlignedConfig(), "padded": 256, "pool": 2}
        for name, default in changed.items():
            used = self.kind == "cost" or (self.kind == "dot-aligned" and name == "aligned")
            if not used and getattr(self, name) != default:
                raise ModelError(
                    f"model.head.{name}: has no meaning with model.head.kind={self.kind}: set the "
                    "kind to cost, or leave it out"
                )


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The whole network."""

    backbone: BackboneConfig = field(default_factory=BackboneConfig)
    text: TextConfig = field(default_factory=TextConfig)
    regularizer: RegularizerConfig = field(default_factory=RegularizerConfig)
    head: HeadConfig = field(default_factory=HeadConfig)

    features: int = 256
    """Channels of the decoder's fusion stages."""

    reassemble: tuple[int, ...] | None = None
    """Channels of the four reassembled ViT maps, finest first; null: by the width D of the ViT,
    (D/8, D/4, D/2, D) below 1024 and (D/4, D/2, D, D) from there, as published."""

    activation_checkpointing: bool = False
    """Recompute the transformer blocks in the backward pass: less memory, more time. Only for
    ViTs."""

    def __post_init__(self) -> None:
        if not 1 <= self.features <= MAX_FEATURES:
            raise ModelError(
                f"model.features={shown(self.features)}: must be at least 1, and at most "
                f"{MAX_FEATURES}: 256 as published"
            )
        if self.reassemble is not None:
            object.__setattr__(self, "reassemble", tuple(self.reassemble))
            fits = len(self.reassemble) == 4 and min(self.reassemble) >= 1
            if not fits or max(self.reassemble) > MAX_CHANNELS:
                raise ModelError(
                    f"model.reassemble={shown(list(self.reassemble))}: must be four positive "
                    f"channel counts up to {MAX_CHANNELS}: leave it out for the published ones"
                )
        if self.head.kind == "cost":
            self._check_cost()
        elif self.text.channels:
            raise ModelError(
                f"model.text.channels=true: has no meaning with model.head.kind={self.head.kind}: "
                "leave it out, or set the kind to cost"
            )

    def _check_cost(self) -> None:
        """Refuses what the cost head has no use for, with the values that a recipe may set."""
        published = {
            "regularizer.depth": (self.regularizer.applications, 0),
            "features": (self.features, 256),
            "reassemble": (self.reassemble and list(self.reassemble), None),
            "backbone.hooks": (self.backbone.hooks and list(self.backbone.hooks), None),
        }
        for name, (value, default) in published.items():
            if value != default:
                raise ModelError(
                    f"model.{name}={json.dumps(value)}: has no meaning with model.head.kind=cost, "
                    "which has no decoder and no regularizer: leave it out, or set "
                    f"--model.{name} {json.dumps(default)} where a recipe has it"
                )


def config_from_dict(config_class: type[Config], values: Mapping[str, Any], where: str) -> Config:
    """Builds a configuration from plain values, as read from YAML.

    Args:
        config_class: one of the dataclasses above.
        values: field names and values; missing fields keep their defaults.
        where: the dotted key of `values`, for messages.

    Raises:
        ModelError: an unknown key (names the nearest), or a value that is not allowed.
    """
    known = {entry.name: entry for entry in fields(cast(Any, config_class))}
    hints = get_type_hints(config_class)
    built: dict[str, Any] = {}
    for key, value in values.items():
        if key not in known:
            # Cut, since the search takes time that grows with the square of the length.
            close = get_close_matches(str(key)[:80], known, n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"known are {sorted(known)}"
            name = str(key) if len(str(key)) <= 80 else shown(key)
            raise ModelError(f"{where}.{name}={shown(value)}: is no setting of the model: {hint}")
        nested = known[key].default_factory
        if isinstance(nested, type) and is_dataclass(nested):
            if not isinstance(value, Mapping):
                raise ModelError(
                    f"{where}.{key}={shown(value)}: must be a mapping: see config.yaml"
                )
            value = config_from_dict(nested, value, f"{where}.{key}")
        else:
            _check_type(value, hints[key], f"{where}.{key}")
        built[key] = value
    try:
        return config_class(**built)
    except TypeError as error:  # a value of another type than its check compares it with
        raise ModelError(f"{where}: has a value of a wrong type ({error}): check it") from error


def _is_plain(number: Any) -> bool:
    """Returns whether a value is a whole number that JSON holds, and not true or false."""
    return type(number) is int and abs(number) < 2**53


def _are_plain(numbers: Any) -> bool:
    return len(numbers) <= 100 and all(map(_is_plain, numbers))


def _check_type(value: Any, hint: Any, where: str) -> None:
    """Refuses a value that is not of the type of its field, and kwargs of no plain values."""
    allowed = get_args(hint) if isinstance(hint, UnionType) else (hint,)
    if value is None and type(None) in allowed:
        return
    (kind,) = (each for each in allowed if each is not type(None))
    if get_origin(kind) is Literal:  # The field's own check names what is allowed.
        kind = str
    words = {
        bool: "true or false",
        int: "a whole number",
        str: "a text",
        tuple: "a list of whole numbers",
        dict: "a mapping",
    }
    kind = get_origin(kind) or kind
    fits = bool(isinstance(value, {tuple: list | tuple, dict: Mapping}.get(kind, kind)))
    if fits and kind is int:
        fits = _is_plain(value)
    if fits and kind is tuple:
        fits = _are_plain(value)
    if not fits:
        raise ModelError(
            f"{where}={shown(value)}: has a value of a wrong type: must be {words[kind]}: "
            "correct it"
        )
    if kind is str and len(str(value)) > MAX_TEXT:
        raise ModelError(
            f"{where}={shown(value)}: must be at most {MAX_TEXT} characters: shorten it"
        )
    if kind is dict:
        check_plain(value, where)
