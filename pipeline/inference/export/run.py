"""An export: the network's file, text vectors, labels, and a description, into one folder."""

import json
import logging
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from model.checkpoint import local
from model.lseg import LSeg
from model.model_card import published_config
from pipeline.checkpoints.prefetched import use_prefetched
from pipeline.checkpoints.provenance import read_provenance
from pipeline.checkpoints.resolvers import pinned
from pipeline.data.pixels.checks import BadSample
from pipeline.errors import UserError
from pipeline.inference.config import Other, PredictConfig, check_vectors, read_labels
from pipeline.inference.export.check import (
    Agreement,
    compare,
    generated_images,
    one_by_one,
    require_batches,
    require_equal,
    resized,
)
from pipeline.inference.export.config import ExportConfig
from pipeline.inference.export.graph import (
    IMAGE,
    LOGITS,
    TEXT,
    reference_logits,
    segment_program,
)
from pipeline.inference.export.onnx_file import (
    require_onnx,
    store_bytes,
    store_halves,
)
from pipeline.inference.export.stored import open_program, write_program
from pipeline.inference.export.text_tower import write_text_tower
from pipeline.inference.photos import decode_photo
from pipeline.inference.search import find_photos
from pipeline.storage.places import try_writable_place

logger = logging.getLogger(__name__)

DESCRIPTION, LABELS, VECTORS = "export.json", "labels.txt", "text.npy"
NETWORK = {"onnx": "segment.onnx", "torch": "segment.pt2", "safetensors": "model.safetensors"}
MOST_IMAGES = 64
"""Images that are compared; more would only take longer."""


@dataclass(frozen=True)
class Exported:
    """The outcome of an export."""

    folder: Path
    files: tuple[str, ...]
    difference: float
    """The largest between a logit of the exported network in fp32 and of the network."""
    agreement: Agreement | None
    """How far smaller weights answer as the network does; None for fp32."""


def export(config: ExportConfig) -> Exported:
    """Exports a checkpoint.

    Raises:
        UserError: The folder is not empty, labels or images are not usable, a library is missing,
            or the exported network is not the network.
        ModelError: The checkpoint cannot be loaded.
    """
    try_writable_place("out", config.out)
    out = _new_folder(config.out)
    if config.to == "onnx":
        require_onnx()
    images = _read(config.images) if config.images else generated_images()
    use_prefetched()
    folder = local(pinned(config.checkpoint))
    try:
        lseg = LSeg.load(folder)
    except FileNotFoundError as error:
        raise UserError(str(error)) from error
    labels, text_KC = _text(config, lseg)
    images = resized(images)
    with TemporaryDirectory(prefix="lseg-export-") as scratch:
        staged, tower = Path(scratch), None
        if config.text_tower:  # First: a large network takes minutes, and this may be refused.
            tower = write_text_tower(config.to, lseg.text_encoder, staged, labels, text_KC)
        difference, agreement = _write_network(config, lseg, staged, images, text_KC)
        np.save(staged / VECTORS, text_KC)
        # Those of a checkpoint are the ones that it was trained on.
        name = "export_labels.txt" if config.to == "safetensors" else LABELS
        lines = "".join(f"{label}\n" for label in labels)
        (staged / name).write_text(lines, encoding="utf-8")
        described = _description(config, lseg, folder, difference, agreement)
        described |= {"text": tower} if tower else {}
        (staged / DESCRIPTION).write_text(json.dumps(described, indent=1) + "\n", encoding="utf-8")
        files = tuple(sorted(path.name for path in staged.iterdir()))
        out.mkdir(parents=True, exist_ok=True)
        for file in files:
            shutil.move(staged / file, out / file)
    return Exported(out, files, difference, agreement)


def _new_folder(name: str) -> Path:
    out = Path(name)
    if out.is_dir() and any(out.iterdir()):
        raise UserError(f"out={name}: is not empty: name a new folder, or empty this one")
    return out


def _read(patterns: Sequence[str]) -> list[np.ndarray]:
    images = []
    for photo in find_photos(patterns).photos[:MOST_IMAGES]:
        try:
            images.append(decode_photo(photo.read()))
        except (BadSample, OSError) as error:
            raise UserError(f"images: {photo.uri}: {error}: leave it out") from None
    return images


def _text(config: ExportConfig, lseg: LSeg) -> tuple[tuple[str, ...], np.ndarray]:
    """The label set and its vectors (K, C) float32."""
    asked = PredictConfig(checkpoint="", labels=config.labels, labels_file=config.labels_file)
    labels = read_labels(asked, lseg.labels)
    text_KC = lseg.embed_text(labels).cpu().numpy().astype(np.float32)
    where = "labels_file" if config.labels_file else "labels"
    check_vectors(labels, Other(), text_KC, where, is_trained=labels == lseg.labels)
    return labels, text_KC


def _write_network(
    config: ExportConfig,
    lseg: LSeg,
    staged: Path,
    images: Sequence[np.ndarray],
    text_KC: np.ndarray,
) -> tuple[float, Agreement | None]:
    """Writes the network, compared; returns how far off it is, and what smaller weights cost."""
    path = staged / NETWORK[config.to]
    where = f"to={config.to}"
    if config.to == "safetensors":
        return _write_weights(lseg, staged, images, text_KC), None
    logger.info("exporting the network; a large one takes minutes")
    program = segment_program(lseg)
    write_program(program, path, (IMAGE, TEXT), (LOGITS,))
    run = open_program(path)
    difference = require_equal(where, lseg, one_by_one(run), images, text_KC)
    difference = max(difference, require_batches(where, run, images, text_KC))
    if config.precision == "fp32":
        return difference, None
    full = path.rename(staged / "full.onnx")
    (store_halves if config.precision == "fp16" else store_bytes)(full, path)
    for left in staged.glob("full.onnx*"):
        left.unlink()
    return difference, compare(lseg, one_by_one(open_program(path)), images, text_KC)


def _write_weights(
    lseg: LSeg, staged: Path, images: Sequence[np.ndarray], text_KC: np.ndarray
) -> float:
    """Writes the checkpoint's weights and settings, without the addresses of its training."""
    lseg.save_published(staged)
    again = LSeg.load(staged)
    return require_equal(
        "to=safetensors",
        lseg,
        lambda image, text: reference_logits(again, image, text),
        images,
        text_KC,
    )


def _description(
    config: ExportConfig,
    lseg: LSeg,
    folder: Path,
    difference: float,
    agreement: Agreement | None,
) -> dict[str, Any]:
    """What a program, or a person, has to know of the files."""
    told = read_provenance(folder)
    trained = told.trained_size
    return {
        "format": config.to,
        "precision": config.precision,
        "network": NETWORK[config.to],
        "inputs": {
            IMAGE: ["batch", "height", "width", 3, "uint8 RGB"],
            TEXT: ["labels", lseg.text_width, "float32"],
        },
        "outputs": {LOGITS: ["batch", "labels", "(height+1)//2", "(width+1)//2", "float32"]},
        "head": lseg.config.head.kind,
        "labels_compete": not lseg.scores_apart,
        "long_side_px": trained.base_px,
        "crop_px": trained.crop_px,
        "text_encoder": published_config(lseg.config).text.encoder,
        "templates": lseg.config.text.templates,
        "largest_difference": difference,
        "agreement": asdict(agreement) if agreement else None,
        "images": "given" if config.images else "generated",
        "git_commit": told.tags.get("git_commit", ""),
    }
