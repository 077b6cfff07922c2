"""The four behaviours as a protocol of `jobs/evaluate.py`.

The questions are drawn one after the other from one generator, so one process asks them all: the
figures are those of the demo's report, whatever the number of workers.
"""

import json
import logging
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from model.lseg import LSeg
from pipeline.checkpoints.files import checkpoint_fingerprint
from pipeline.checkpoints.prefetched import use_prefetched
from pipeline.checkpoints.provenance import Provenance
from pipeline.data.taxonomy import universal
from pipeline.errors import UserError
from pipeline.evaluation.behaviours.classes import HELD_OUT, SUPER_CLASSES
from pipeline.evaluation.behaviours.protocol import FourBehaviours, verdict_table
from pipeline.evaluation.behaviours.questions import OTHER, Asker
from pipeline.evaluation.config import EvaluateConfig
from pipeline.evaluation.items import ShardItems
from pipeline.evaluation.overlay import draw
from pipeline.evaluation.protocols import open_shards
from pipeline.scoring import evenly

logger = logging.getLogger(__name__)

IMAGES = 20
"""Images of each dataset where `max_images` is 0: the features of them all are held in memory."""


def evaluate_behaviours(
    config: EvaluateConfig, checkpoint: Path, provenance: Provenance, folder: Path
) -> dict[str, Any]:
    """Asks the questions, writes report.json and behaviours.png, and shows a table.

    Raises:
        UserError: There are no shards, or the checkpoint names too few universal classes.
    """
    if config.other is not None or config.geometry is not None:
        raise UserError(
            "other, geometry: have no effect on protocol behaviours, whose questions are fixed: "
            "leave them out"
        )
    if config.roots:
        raise UserError("roots: protocol behaviours reads prepared shards: set shards instead")
    corpus = replace(open_shards(config), wanted=universal())
    known = set(universal().classes)
    vocabulary = [name for name in provenance.labels if name in known]
    if len(vocabulary) < 10:
        raise UserError(
            f"checkpoint={config.checkpoint}: must be trained on universal classes, of which its "
            f"labels.txt names {len(vocabulary)}: protocol behaviours draws from them"
        )
    vocabulary += [name for name in HELD_OUT if name not in vocabulary]
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    use_prefetched()
    lseg = LSeg.load(checkpoint, device)
    asker = Asker(lseg, lseg.text_encoder)
    behaviours = FourBehaviours(vocabulary, SUPER_CLASSES, config.seed)
    samples, count = [], config.max_images or IMAGES
    side_px = provenance.trained_size.base_px
    for sample in asker.samples(corpus, count, side_px):
        behaviours.add(asker, sample)
        samples.append(sample)
    draw(behaviours.rows(asker, samples), folder / "behaviours.png")
    report = behaviours.report()
    content = {
        "protocol": config.protocol,
        "checkpoint": config.checkpoint,
        "checkpoint_fingerprint": checkpoint_fingerprint(checkpoint),
        "split": config.split,
        "data": [
            ShardItems(name, corpus.uri, evenly(each.num_samples, count), each, False).described()
            for name, each in corpus.manifests.items()
        ],
        "other": f"prompts: {OTHER}",
        "zero_shot": "no",
        "images": len(samples),
        "notes": [],
        **report,
    }
    text = json.dumps(content, indent=1, ensure_ascii=False) + "\n"
    (folder / "report.json").write_text(text, encoding="utf-8")
    Console(file=sys.stderr).print(
        verdict_table(behaviours.verdicts(), f"behaviours: {config.checkpoint}")
    )
    return content
