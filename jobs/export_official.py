"""Writes a checkpoint of this project in the published form (.ckpt), for tools that read that.

python jobs/export_official.py runs/mine/checkpoint --out mine.ckpt
"""

import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from jobs import cli
from pipeline.errors import UserError


@dataclass(frozen=True, kw_only=True)
class ExportConfig:
    """Which checkpoint to export, and to which file."""

    checkpoint: str
    """A checkpoint folder; may also be the first word of the command line."""
    out: str
    """The .ckpt file to write."""
    clip: Literal["include", "omit"] = "include"
    """Whether the whole CLIP model goes into the file, as in the published ones, where tools that
    load strictly expect it. It has to be downloaded (or cached) for that."""


def run(config: ExportConfig) -> None:
    """Exports the checkpoint.

    Raises:
        UserError: A file is missing.
        ModelError: The published form cannot hold this network, or CLIP could not be fetched.
    """
    from model.checkpoint_files import TEXT_WEIGHTS
    from model.config import ONE_HOT, STAND_IN, TABLE
    from model.lseg import LSeg
    from model.official import export_official
    from model.packages import PACKAGE
    from model.text import SENTENCE_PREFIX
    from model.text.open_clip_tower import load_open_clip
    from pipeline.checkpoints.prefetched import use_prefetched
    from pipeline.storage.places import ensure_writable_file

    out = Path(config.out)
    if os.path.isdir(out):
        raise UserError(f"out={out}: is a folder: name a file in it, such as {out / 'lseg.ckpt'}")
    ensure_writable_file("out", config.out)
    use_prefetched()
    try:
        lseg = LSeg.load(config.checkpoint)
    except FileNotFoundError as error:
        raise UserError(str(error)) from error
    clip = None
    encoder = lseg.config.text.encoder
    no_clip = (STAND_IN, ONE_HOT, TABLE, PACKAGE, SENTENCE_PREFIX)
    if config.clip == "include" and encoder.startswith(no_clip):
        raise UserError(
            f"clip=include: the text encoder of this checkpoint is {encoder}, which is no CLIP "
            "model, so there is none to include: set --clip omit"
        )
    if config.clip == "omit" and Path(lseg.config.text.pretrained).name == TEXT_WEIGHTS:
        raise UserError(
            f"clip=omit: this checkpoint has a text encoder of its own ({TEXT_WEIGHTS}), without "
            "which it answers wrongly: set --clip include"
        )
    if config.clip == "include":
        clip = load_open_clip(lseg.config.text, keep_image_tower=True).state_dict()
    export_official(lseg, config.out, clip)
    print(f"written: {config.out}")


if __name__ == "__main__":
    sys.exit(cli.main(ExportConfig, run, None, __doc__, {"checkpoint": {"nargs": "?"}}))
