"""The configuration of `jobs/export.py`."""

from dataclasses import dataclass
from typing import Literal

from pipeline.errors import UserError

TOLERANCE = 1e-3
"""How far a logit of the exported network may be from that of the network."""


@dataclass(frozen=True, kw_only=True)
class ExportConfig:
    """An export: which checkpoint, in which form, with which label set."""

    checkpoint: str
    """Checkpoint folder, `s3://bucket/folder`, or `models:/name@alias`."""

    to: Literal["onnx", "torch", "safetensors"] = "onnx"
    """Form of the network: `onnx` for onnxruntime and its like, `torch` for PyTorch without this
    project; `safetensors` for the weights and their settings, a folder that `LSeg.from_pretrained`
    opens."""

    out: str = "export"
    """Folder for the files; it must be new or empty."""

    labels: str = ""
    """Label set whose text vectors go along: any texts, separated by commas. Without these and
    without a file it is the one that the checkpoint was trained on."""

    labels_file: str | None = None
    """Text file with the label set, one label per line."""

    precision: Literal["fp32", "fp16", "int8"] = "fp32"
    """Numbers in which an ONNX file keeps the weights: `fp16` halves the file and computes in fp32;
    `int8` stores the matrices of linear layers in 8 bits and multiplies in them. What either costs
    is measured on `images` and printed."""

    text_tower: bool = False
    """Write the text tower and its tokenizer too, so that words change without this project: with
    onnx or torch, for CLIP and the sentence encoders of packages."""

    images: tuple[str, ...] = ()
    """Images on which the export is compared with the network, at three sizes: files, folders or
    patterns; without them it is done on generated ones, which says less of `fp16` and `int8`."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "images", tuple(self.images))
        if self.labels.strip() and self.labels_file:
            raise UserError("labels_file: labels is set too: give one of them")
        if self.text_tower and self.to == "safetensors":
            raise UserError(
                "text_tower=true: is for to=onnx and to=torch; the folder of safetensors names its "
                "text encoder: leave it out"
            )
        if self.precision != "fp32" and self.to != "onnx":
            raise UserError(
                f"precision={self.precision}: is for to=onnx alone, and to is {self.to}: leave it "
                "out"
            )
