"""What the demo's model learned: figures, thresholds, two sheets of images, and one table."""

import json
import logging
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from model.lseg import LSeg, build_lseg
from model.text import build_text_encoder
from pipeline.checkpoints.provenance import read_provenance
from pipeline.data.ingest.stream import Corpus, open_corpus
from pipeline.data.taxonomy import IGNORE, universal
from pipeline.evaluation.behaviours.classes import HELD_OUT, SUPER_CLASSES
from pipeline.evaluation.behaviours.protocol import THRESHOLDS as BEHAVIOUR_THRESHOLDS
from pipeline.evaluation.behaviours.protocol import (
    TITLES,
    FigureVerdict,
    FourBehaviours,
    compare,
    label_members,
    verdict_table,
)
from pipeline.evaluation.behaviours.questions import (
    Asker,
    ClosedQuestion,
    ViewedSample,
    class_question,
)
from pipeline.evaluation.overlay import ComparedImage, draw
from pipeline.training.config import TrainMixConfig
from pipeline.training.driver.launch import Outcome
from pipeline.training.job import open_tracker

logger = logging.getLogger(__name__)

THRESHOLDS = {
    "seen_miou": 0.60,
    "unseen_miou": 0.35,
    "unseen_over_chance": 3.0,
    **BEHAVIOUR_THRESHOLDS,
}
"""What the demo should reach; all are lower bounds but `absent`, an upper one."""


@dataclass
class DemoReport:
    """The figures of one demo; `finish` writes them and prints the table."""

    figures: dict[str, Any]
    out: Path
    checkpoint: str
    ui_hint: str
    verdicts: list[FigureVerdict]

    def finish(self, seconds: dict[str, float]) -> None:
        """Writes report.json and prints the closing table."""
        self.figures["seconds"] = seconds
        (self.out / "report.json").write_text(json.dumps(self.figures, indent=1) + "\n")
        console = Console(file=sys.stderr, soft_wrap=True)
        console.print(self._table())
        stages = ", ".join(f"{name} {value:g}" for name, value in seconds.items())
        print(f"seconds     {stages}", file=sys.stderr)
        print(f"checkpoint  {self.checkpoint}", file=sys.stderr)
        print(f"report      {self.out / 'report.json'}", file=sys.stderr)
        for name in ("overlay.png", "behaviours.png"):
            print(f"image       {self.out / name}", file=sys.stderr)
        print(f"MLflow      {self.ui_hint}", file=sys.stderr)

    def _table(self) -> Table:
        table = verdict_table(self.verdicts)
        for name, value in self.figures["datasets"].items():
            table.add_row(f"mIoU, seen classes, {name}", f"{value['miou']:.3f}", "", "")
        for key in ("unseen_chance_miou", "untrained_unseen_miou"):
            table.add_row(key.replace("_", " "), f"{self.figures[key]:.3f}", "", "")
        return table


def evaluate_demo(
    config: TrainMixConfig, outcome: Outcome, seed: int, per_dataset: int, out: Path
) -> DemoReport:
    """Evaluates the demo's last checkpoint, draws sheets and sends all to the MLflow run.

    `per_dataset` counts validation images; overlay.png, behaviours.png and report.json go to `out`.
    """
    corpus = open_corpus(config.data.shards, config.data.val_split)
    lseg = LSeg.load(outcome.checkpoint)
    labels = read_provenance(outcome.checkpoint).labels
    asker = Asker(lseg, lseg.text_encoder)
    seen = {name: class_question(labels, with_other=False) for name in corpus.sizes}
    unseen = class_question(HELD_OUT, with_other=True)
    behaviours = FourBehaviours([*labels, *HELD_OUT], SUPER_CLASSES, seed)
    samples = []
    for sample in asker.samples(corpus, per_dataset, config.data.augment.base_px):
        seen[sample.dataset].add(asker, sample)
        unseen.add(asker, sample)
        behaviours.add(asker, sample)
        samples.append(sample)

    untrained = _untrained_unseen(config, corpus, lseg.embed_dim, per_dataset, seed)
    figures = _figures(seen, unseen, behaviours, untrained)
    draw(_rows(asker, samples, labels), out / "overlay.png")
    draw(behaviours.rows(asker, samples), out / "behaviours.png")
    tracker = open_tracker(config)
    tracker.log_metrics(_flat(figures), config.train.steps)
    tracker.log_artifact(out / "overlay.png")
    tracker.log_artifact(out / "behaviours.png")
    tracker.log_dict(figures, "demo_report.json")
    tracker.wait_for_run(30)
    hint = tracker.ui_hint()
    tracker.close("FINISHED")
    return DemoReport(figures, out, outcome.checkpoint, hint, _verdicts(figures))


def _untrained_unseen(
    config: TrainMixConfig, corpus: Corpus, dim: int, per_dataset: int, seed: int
) -> float:
    """Unseen mIoU of the same network before its first step."""
    torch.manual_seed(seed)
    asker = Asker(build_lseg(config.model, dim), build_text_encoder(config.model.text))
    unseen = class_question(HELD_OUT, with_other=True)
    for sample in asker.samples(corpus, per_dataset, config.data.augment.base_px):
        unseen.add(asker, sample)
    return unseen.miou


def _figures(
    seen: dict[str, ClosedQuestion],
    unseen: ClosedQuestion,
    behaviours: FourBehaviours,
    untrained: float,
) -> dict[str, Any]:
    datasets = {
        name: _rounded(
            {
                "miou": closed.matrix.miou(over="target"),
                "pixel_accuracy": closed.matrix.pixel_accuracy(),
            }
        )
        for name, closed in seen.items()
    }
    total, *others = (closed.matrix for closed in seen.values())
    for matrix in others:
        total.merge(matrix)
    per_class = unseen.matrix.iou_per_class()[: len(unseen.names)].tolist()
    overall = {
        "seen_miou": total.miou(over="target"),
        "seen_pixel_accuracy": total.pixel_accuracy(),
        "unseen_miou": unseen.miou,
        "unseen_chance_miou": unseen.chance_miou,
        "untrained_unseen_miou": untrained,
    }
    return {
        **_rounded(overall),
        "unseen_iou": _rounded(dict(zip(unseen.names, per_class, strict=True))),
        "datasets": datasets,
        "behaviours": _rounded(behaviours.figures()),
        "thresholds": THRESHOLDS,
    }


def _rounded(figures: Mapping[str, float]) -> dict[str, float]:
    return {name: round(value, 4) for name, value in figures.items()}


def _verdicts(figures: dict[str, Any]) -> list[FigureVerdict]:
    """The verdicts on all figures with a threshold, which are noted in `figures` too."""
    titles = {
        "seen_miou": "seen classes: mIoU over all datasets",
        "unseen_miou": "unseen classes: mIoU, zero-shot",
        "unseen_over_chance": "unseen classes: times chance",
        **TITLES,
    }
    ratio = figures["unseen_miou"] / figures["unseen_chance_miou"]
    values = {**figures, "unseen_over_chance": ratio, **figures["behaviours"]}
    verdicts = [FigureVerdict(k, t, values[k], THRESHOLDS[k]) for k, t in titles.items()]
    figures["reached"] = {verdict.name: verdict.holds for verdict in verdicts}
    return verdicts


def _rows(
    asker: Asker, samples: list[ViewedSample], labels: tuple[str, ...]
) -> list[ComparedImage]:
    """Comparisons to draw: two images each for seen classes, unseen ones, and "other"."""
    taxonomy = universal()
    unseen_ids = [taxonomy.id_of(name) for name in HELD_OUT]
    richness = [len(np.unique(sample.label)) for sample in samples]
    of_unseen = [float(np.isin(sample.label, unseen_ids).mean()) for sample in samples]
    plain = [samples[i] for i in np.lexsort((np.array(of_unseen), -np.array(richness)))]
    by_unseen = [samples[i] for i in np.argsort(of_unseen)[::-1]]
    seen = label_members(labels)
    rows = [compare(asker, p, "seen classes", seen, has_other=False) for p in _distinct(plain, 2)]
    chosen = _distinct(by_unseen, 4)
    rows += [compare(asker, p, "unseen classes", label_members(HELD_OUT)) for p in chosen[:2]]
    for sample in chosen[2:]:
        shown = [taxonomy.classes[i] for i in np.unique(sample.label) if i != IGNORE]
        # Name every second class of the image; the rest has no label but "other".
        rows.append(compare(asker, sample, "half of the classes named", label_members(shown[::2])))
    return rows


def _distinct(samples: list[ViewedSample], count: int) -> list[ViewedSample]:
    """The first `count` images of different datasets."""
    found: dict[str, ViewedSample] = {}
    for sample in samples:
        found.setdefault(sample.dataset, sample)
    return list(found.values())[:count]


def _flat(figures: dict[str, Any]) -> dict[str, float]:
    flat = {f"val_demo/{key}": value for key, value in figures.items() if isinstance(value, float)}
    flat |= {f"val_demo/behaviours/{key}": v for key, v in figures["behaviours"].items()}
    flat |= {f"val_demo_miou/{name}": v["miou"] for name, v in figures["datasets"].items()}
    return flat
