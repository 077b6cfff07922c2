"""LSeg: one vector per pixel, one per label, their product is the score.

Li et al. 2022 (Language-driven Semantic Segmentation). The network is four rooms: a trained image
encoder (`model.backbone`), a text encoder, mostly frozen, for labels (`model.text`), a head that
scores the features of the one against the vectors of the other at half the input's resolution
(`model.head`), and the spatial regulariser that smooths the scores (`model.regularizer`). Here they
are put together, and asked.

Vectors and scores are float32, also under autocast; float64 where the weights are
(`lseg.double()`).

Shapes: B batch, C embedding, K labels, H W input pixels, h w half resolution (rounded up).
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm

from model.backbone import AlignedVit, AlignedWanted, Backbone, build_backbone
from model.checkpoint import read_checkpoint
from model.checkpoint_files import CONFIG
from model.config import ModelConfig, TextConfig
from model.errors import ModelError
from model.head import head_of
from model.hub import HubMixin
from model.network import Trunk
from model.outline import load_weights, outline_of
from model.partners import require_partner, require_same_length
from model.prediction import NO_LABEL, as_batches
from model.regularizer import Regularizer
from model.sliding import AS_IT_IS, SlidingConfig, sliding_label_ids
from model.text import TextEncoder, TrainedTower, build_text_encoder, channels_of


class LSeg(nn.Module, HubMixin):
    """The network.

    Attributes:
        config: what it was built from.
        labels: the texts that a loaded checkpoint was trained on; what `predict` uses by default.
        text_tower: the text tower while it is trained along; None: it is frozen, and no part of the
            network's weights.
    """

    mean_C: Tensor
    std_C: Tensor
    backbone: Backbone
    regularizer: Regularizer

    def __init__(self, config: ModelConfig, embed_dim: int) -> None:
        super().__init__()
        self.config = config
        self.embed_dim = embed_dim
        self.labels: tuple[str, ...] = ()
        self.text_tower: TrainedTower | None = None
        self._text_encoder: TextEncoder | None = None
        self._memory_format = torch.contiguous_format
        kind = head_of(config)
        backbone = _backbone_for(config, kind.wanted(config), embed_dim)
        self.head = kind(config, backbone, embed_dim)
        # Names and order are those of every checkpoint and optimiser state so far.
        for name, part in self.head.backbone_rate.items():
            self.add_module(name, part)
        self.backbone = backbone
        for name, part in self.head.head_rate.items():
            self.add_module(name, part)
        self.regularizer = Regularizer(config.regularizer)
        # The recipe gives these, not the weights: they stay out of the state dict.
        self.register_buffer("mean_C", torch.tensor(self.backbone.mean), persistent=False)
        self.register_buffer("std_C", torch.tensor(self.backbone.std), persistent=False)

    def __repr__(self) -> str:
        """What the network is, in a line; its modules are those of `named_modules`."""
        parameters = sum(parameter.numel() for parameter in self.parameters())
        return (
            f"LSeg({self.config.backbone.name}, text {self.config.text.encoder}, "
            f"{parameters / 1e6:.1f} M parameters, {len(self.labels)} trained labels)"
        )

    @classmethod
    def load(
        cls,
        source: Path | str,
        device: torch.device | str = "cpu",
        text: TextConfig | None = None,
    ) -> "LSeg":
        """Loads a checkpoint of this project.

        Args:
            source: a checkpoint directory; `hf://owner/name` of the Hub; or, where this project is
                installed or `pipeline.checkpoints.resolvers` was imported, `s3://bucket/folder` or
                `models:/name@alias` (or `/version`) of an MLflow registry.
            device: where the network goes.
            text: the text encoder to use where the checkpoint names one by a place (a folder, the
                hub), which is never followed; None: what LSEG_TEXT_ENCODER and
                LSEG_TEXT_PRETRAINED name.

        Returns:
            The network in evaluation mode; `labels` are those of the checkpoint.

        Raises:
            FileNotFoundError: a file is missing.
            ModelError: the files are damaged, do not fit each other or name what is not followed;
                or nothing can fetch the URI.
        """
        stored = read_checkpoint(source, text)
        # First without memory: the settings may be those of a network that the file is not.
        where = str(stored.weights.with_name(CONFIG))
        outline = outline_of(lambda: build_lseg(stored.config, stored.embed_dim), where)
        weights = load_weights(stored.weights, outline.state_dict())
        lseg = build_lseg(stored.config, stored.embed_dim)
        lseg.load_state_dict(weights)
        lseg.labels = stored.texts or stored.labels
        lseg.folder = stored.weights.parent
        _check_scores(lseg.eval(), str(stored.weights))
        return lseg.to(device)

    def predict(
        self,
        images: Any,
        labels: Sequence[str] | None = None,
        other: str | float | None = None,
        sliding: SlidingConfig | None = None,
    ) -> list[np.ndarray]:
        """Labels every pixel.

        Args:
            images: one image or several: PIL images, or (H, W, 3) uint8 RGB arrays or tensors of
                any sizes, or one (B, H, W, 3).
            labels: any texts; None: those that the checkpoint was trained on.
            other: what becomes of pixels of none of the labels. None: nothing, the best label
                wins everywhere. A text ("other"): it competes as one more label, and its pixels
                get -1. A number in (0, 1): pixels whose best label is less probable get -1.
            sliding: how to look at the images (see `model.sliding`); None: each whole, at its own
                size, in one forward pass, which large images make dear.

        Returns:
            For each image (H, W) int64: positions in `labels`, or -1.

        Raises:
            ModelError: no labels, or images that are not 8-bit RGB.
        """
        if isinstance(labels, str):
            raise ModelError(f"labels={labels!r}: must be a list of texts: write [{labels!r}]")
        names = list(self.labels if labels is None else labels)
        if not names:
            raise ModelError("labels=[]: the checkpoint names none either: pass a list of texts")
        threshold = None if other is None or isinstance(other, str) else float(other)
        if threshold is not None and not 0 < threshold < 1:
            raise ModelError(f"other={other}: must be a text or a probability in (0, 1)")
        text = self.embed_text([*names, other] if isinstance(other, str) else names)
        found: list[np.ndarray] = []
        with _evaluating(self), torch.inference_mode():
            for batch_BHWC in as_batches(images):
                ids = sliding_label_ids(
                    self, self.normalize(batch_BHWC), text, sliding or AS_IT_IS, threshold=threshold
                )
                ids = ids.where(ids < len(names), NO_LABEL)
                found += list(ids.cpu().numpy())
        return found

    def pixel_features(
        self, images: Any, stride: int = 1, dtype: torch.dtype = torch.float32
    ) -> list[Tensor]:
        """Embeds the pixels of images, as in `predict`, into the space of the text vectors.

        A photo of 640 x 360 pixels takes 118 MB with the 512 numbers of a vector in float32, half
        of that in float16, and a quarter at stride 2; while one is made, the network holds several
        times as much.

        Args:
            images: as in `predict`.
            stride: keep every so many vectors in both directions.
            dtype: what the vectors are kept in; they are computed in float32.

        Returns:
            For each image (C, ceil(H / 2 / stride), ceil(W / 2 / stride)), of length 1 over C.
            Gradients flow to the weights where the caller has them enabled.

        Raises:
            ModelError: a stride below 1, whole numbers as the type, or images that are not 8-bit
                RGB.
        """
        if not isinstance(stride, int) or stride < 1:
            raise ModelError(f"stride={stride}: must be a whole number of at least 1")
        if not dtype.is_floating_point:
            # All numbers of a unit vector would become 0.
            raise ModelError(f"dtype={dtype}: must be a floating-point type, as torch.float16 is")
        return [
            # A copy, so that the vectors that are left out take no memory.
            pixels_Chw[:, ::stride, ::stride].to(dtype).contiguous()
            for batch_BHWC in as_batches(images)
            for pixels_Chw in self.embed(self.normalize(batch_BHWC))
        ]

    @property
    def text_width(self) -> int:
        """Numbers of a label's row: those of its vector, or of all where templates are channels."""
        return self.embed_dim * channels_of(self.config.text)

    @property
    def text_encoder(self) -> TextEncoder:
        """The encoder that the configuration names, built at the first use and kept.

        Raises:
            ModelError: there is no such encoder here, or it makes vectors of another length than
                those that the network was trained on.
        """
        if self._text_encoder is None:
            encoder = build_text_encoder(self.config.text)
            if encoder.dim != self.embed_dim:
                raise ModelError(
                    f"text.encoder={self.config.text.encoder}: makes vectors of {encoder.dim} "
                    f"numbers, and the network was trained on {self.embed_dim}: name the encoder "
                    "that it was trained with"
                )
            self._text_encoder = encoder
        return self._text_encoder

    def embed_text(self, labels: Sequence[str], check: Callable[[], None] | None = None) -> Tensor:
        """Encodes labels with the encoder that the configuration names: (K, C), on the device.

        With templates as channels (`text.channels`) a row holds P vectors of C numbers.

        Args:
            labels: any texts.
            check: called before each chunk of texts; what it raises ends the work.
        """
        return self.text_encoder.encode(labels, check).to(self.mean_C.device)

    def normalize(self, image_BHWC: Tensor) -> Tensor:
        """Moves images (B, H, W, 3) uint8 RGB to the model's device and normalises them there.

        Gives (B, 3, H, W), normalised as the backbone was trained; float32, or float64 where the
        weights are.
        """
        image = image_BHWC.to(self.mean_C.device, non_blocking=True).permute(0, 3, 1, 2)
        image = image.to(torch.promote_types(self.mean_C.dtype, torch.float32))
        scale = 1 / (255 * self.std_C)
        shift = self.mean_C / self.std_C
        image = image * scale[:, None, None] - shift[:, None, None]
        return image.contiguous(memory_format=self._memory_format)

    def embed(self, image_BCHW: Tensor) -> Tensor:
        """Embeds pixels.

        Args:
            image_BCHW: (B, 3, H, W) float, normalised; any H and W: the right and lower border
                is repeated up to a multiple of `stride_px`, and cut off again.

        Returns:
            pixels_BChw: (B, C, ceil(H / 2), ceil(W / 2)) float32, of length 1 over C. With
            `dot-aligned` the directions of the sums of the decoder's vectors and the backbone's;
            with the cost head the backbone's, which the head has not refined.
        """
        return self.head.embed(self.trunk(image_BCHW))

    def score(self, image_BCHW: Tensor, text_KC: Tensor) -> Tensor:
        """Scores pixels against labels as `forward` does, before the regulariser.

        Equal to the product of `embed` and the labels, without the pixel vectors' memory.
        """
        return self.head.score(self.trunk(image_BCHW), text_KC)

    def trunk(self, image_BCHW: Tensor) -> Trunk:
        """Computes from images, as in `embed`, all that does not depend on the labels."""
        height, width = image_BCHW.shape[2:]
        pad_right, pad_down = -width % self.stride_px, -height % self.stride_px
        if pad_right or pad_down:
            image_BCHW = functional.pad(image_BCHW, (0, pad_right, 0, pad_down), mode="replicate")
        size = ((height + pad_down + 1) // 2, (width + pad_right + 1) // 2)
        cropped = ((height + 1) // 2, (width + 1) // 2)
        return self.head.trunk(self.backbone(image_BCHW), size, cropped)

    def score_trunk(self, trunk: Trunk, text_KC: Tensor) -> Tensor:
        """Scores the pixels of a `trunk` against labels: what `forward` does to an image."""
        logits = self.head.score(trunk, text_KC)
        with torch.autocast(logits.device.type, enabled=False):
            return self.regularizer(logits)

    @property
    def stride_px(self) -> int:
        """Inputs are padded to multiples of this."""
        return self.head.stride_px

    @property
    def couples_labels(self) -> bool:
        """Whether the score of a label depends on the other labels that are asked."""
        return self.head.couples_labels or self.regularizer.couples_labels

    @property
    def scores_apart(self) -> bool:
        """Whether the score of a label is the logit that this label alone is right."""
        return self.head.scores_apart

    def forward(self, image_BCHW: Tensor, text_KC: Tensor) -> Tensor:
        """Scores every pixel of images against labels.

        Args:
            image_BCHW: as in `embed`.
            text_KC: (K, C), or (B, K, C) where every image has labels of its own; any length.

        Returns:
            logits_BKhw: (B, K, ceil(H / 2), ceil(W / 2)) float32
        """
        return self.score_trunk(self.trunk(image_BCHW), text_KC)

    def train(self, mode: bool = True) -> "LSeg":
        """Changes the mode, as every module's `train`, but for what is frozen.

        Normalisation whose weights are not trained keeps its running statistics too, which a
        forward pass in training would move.
        """
        super().train(mode)
        for module in self.modules():
            if isinstance(module, _BatchNorm) and module.affine and not module.weight.requires_grad:
                module.eval()
        return self

    def channels_last(self) -> "LSeg":
        """Keeps convolutions and normalised images in channels-last order from now on.

        The numbers are the same; half-precision convolutions on GPUs are faster that way.
        """
        self._memory_format = torch.channels_last
        return self.to(memory_format=torch.channels_last)

    def parameter_groups(self, lr: float) -> list[dict[str, Any]]:
        """Groups the parameters for the optimiser as published.

        Gives `backbone` (with what else the head trains so) at the base rate `lr`; `decoder` (what
        is new in the head) at ten times that; `regularizer`, where there is one, at `lr` from the
        identity and at ten times that from the reference initialisation; `text`, where it is
        trained, at `lr`.
        """

        def group(name: str, rate: float, *modules: nn.Module) -> dict[str, Any]:
            params: Iterable[nn.Parameter] = [p for m in modules for p in m.parameters()]
            return {"name": name, "lr": rate, "params": params}

        groups = [
            group("backbone", lr, self.backbone, *self.head.backbone_rate.values()),
            group("decoder", 10 * lr, *self.head.head_rate.values()),
        ]
        if self.regularizer.depth:
            factor = 1 if self.config.regularizer.init == "identity" else 10
            groups.append(group("regularizer", factor * lr, self.regularizer))
        if self.text_tower is not None:
            groups.append(group("text", lr, self.text_tower))
        return groups

    @torch.no_grad()
    def label_spread_gain(self, image_BCHW: Tensor, text_KC: Tensor) -> float:
        """Measures on images what the regulariser leaves of the differences between labels.

        See `Regularizer.gain_warning`. One host synchronisation.
        """
        with _evaluating(self):
            gain = self.regularizer.label_spread_gain(self.score(image_BCHW, text_KC))
        return float(gain)


def _backbone_for(config: ModelConfig, wanted: AlignedWanted | None, embed_dim: int) -> Backbone:
    """Builds the image encoder that a head wants.

    Raises:
        ModelError: its features are wanted in the text encoder's space, and lie in another.
    """
    if wanted is not None:
        require_partner(config)
    backbone = build_backbone(config.backbone, wanted, config.activation_checkpointing)
    if isinstance(backbone, AlignedVit):
        require_same_length(config, backbone, embed_dim)
    return backbone


@torch.inference_mode()
def _check_scores(lseg: LSeg, where: str) -> None:
    """Refuses a network of finite weights that overflows, or whose variances are negative.

    Raises:
        ModelError: its scores of a small image are not finite.
    """
    numbers = torch.Generator().manual_seed(0)
    side = 2 * lseg.stride_px
    image_BHWC = torch.randint(0, 256, (1, side, side, 3), generator=numbers, dtype=torch.uint8)
    text_KC = torch.randn((2, lseg.text_width), generator=numbers)
    logits = lseg(lseg.normalize(image_BHWC), functional.normalize(text_KC, dim=1))
    if not bool(logits.isfinite().all()):
        raise ModelError(
            f"{where}: its weights are finite, and the scores that they give are not: every "
            "prediction would be meaningless: take an earlier checkpoint of the run, or fetch it "
            "again"
        )


@contextmanager
def _evaluating(lseg: LSeg) -> Iterator[None]:
    """Evaluation mode for a while: BatchNorm's running statistics stay as they are."""
    training = lseg.training
    lseg.eval()
    try:
        yield
    finally:
        lseg.train(training)


def build_lseg(config: ModelConfig, embed_dim: int) -> LSeg:
    """Builds the network for text vectors of length `embed_dim` (`TextEncoder.dim`).

    Raises:
        ModelError: settings that do not fit together, or weights that could not be fetched.
    """
    return LSeg(config, embed_dim)
