"""Turns a published LSeg or CAT-Seg checkpoint into a checkpoint folder of this project.

    python jobs/import_official.py lseg.ckpt --out runs/published

The file is read without running anything that it contains.
"""

import sys
from dataclasses import dataclass, field, replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from jobs import cli
from model.config import RegularizerConfig
from model.errors import ModelError
from pipeline.errors import UserError


@dataclass(frozen=True, kw_only=True)
class ImportConfig:
    """Which checkpoint to import, and into which folder."""

    checkpoint: str
    """The published file, .ckpt of LSeg or .pth of CAT-Seg; may also be the first word of the
    command line."""
    out: str
    """The checkpoint folder to write."""
    labels: str | None = None
    """A text file with one label a line, to be kept as the labels of the checkpoint."""
    keep_text: bool = False
    """Also keep the file's CLIP text tower (125 to 250 MB), for use where there is no network.
    CAT-Seg's is kept in any case, since it was trained."""
    regularizer: RegularizerConfig = field(default_factory=RegularizerConfig)
    """The regularizer, for a file that has one and does not say which."""


def run(config: ImportConfig) -> None:
    """Imports the checkpoint and prints notes about what it holds.

    Raises:
        UserError: A file is missing.
        ModelError: The checkpoint is damaged, suspicious or no LSeg.
    """
    from safetensors.torch import save_file

    from model.checkpoint import save_checkpoint
    from model.checkpoint_files import TEXT_WEIGHTS
    from model.official import import_official
    from pipeline.checkpoints.label_list import read_label_list
    from pipeline.storage.places import try_writable_place

    given = config.regularizer if config.regularizer.applications else None
    labels: tuple[str, ...] = ()
    if config.labels is not None:
        labels = read_label_list(config.labels, f"labels={config.labels}")
    try_writable_place("out", config.out)
    try:
        imported = import_official(config.checkpoint, given)
    except FileNotFoundError as error:
        raise UserError(str(error)) from error
    lseg = imported.lseg
    for note in imported.notes:
        print(note)
    keeps_text = config.keep_text or imported.text_trained
    if keeps_text:
        if not imported.text_weights:
            raise ModelError(
                f"keep_text=true: {config.checkpoint} holds no CLIP text tower: set it to false"
            )
        text = replace(lseg.config.text, pretrained=TEXT_WEIGHTS)
        lseg.config = replace(lseg.config, text=text)
    save_checkpoint(config.out, lseg, labels)
    if keeps_text:
        save_file(imported.text_weights, Path(config.out) / TEXT_WEIGHTS)
    print(f"written: {config.out}")


if __name__ == "__main__":
    sys.exit(cli.main(ImportConfig, run, None, __doc__, {"checkpoint": {"nargs": "?"}}))
