"""What the network of the demo on photographs learned: figures, words, two sheets, one report."""

import json
import logging
import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table

from model.lseg import LSeg
from pipeline.checkpoints.files import PROVENANCE, USABLE
from pipeline.checkpoints.provenance import read_provenance
from pipeline.data.ingest.stream import Corpus, open_corpus
from pipeline.data.taxonomy import IGNORE, label_text
from pipeline.demo.frequent import FREQUENT
from pipeline.errors import UserError
from pipeline.evaluation.behaviours.questions import Asker, ViewedSample
from pipeline.evaluation.overlay import ComparedImage, draw
from pipeline.evaluation.photos.questions import PhotoQuestions
from pipeline.evaluation.photos.words import photo_words
from pipeline.training.config import TrainMixConfig
from pipeline.training.job import open_tracker

logger = logging.getLogger(__name__)

SHEET = "photos.png"


@dataclass
class PhotosReport:
    """The figures of one run; `finish` writes them, prints the tables and records them."""

    figures: dict[str, Any]
    out: Path
    config: TrainMixConfig

    def finish(self, seconds: Mapping[str, float]) -> None:
        """Writes report.json, and sends it with the sheet to the MLflow run of the training."""
        self.figures["seconds"] = dict(seconds)
        path = self.out / "report.json"
        path.write_text(json.dumps(self.figures, indent=1, ensure_ascii=False) + "\n")
        tracker = open_tracker(self.config)
        tracker.log_metrics(dict(_flat(self.figures)), self.config.train.steps)
        for name in ("report.json", SHEET):
            tracker.log_artifact(self.out / name)
        tracker.wait_for_run(30)
        hint = tracker.ui_hint()
        tracker.close("FINISHED")
        console = Console(file=sys.stderr, soft_wrap=True)
        for table in tables(self.figures):
            console.print(table)
        stages = ", ".join(f"{name} {value:g}" for name, value in seconds.items())
        print(f"seconds     {stages}", file=sys.stderr)
        print(f"checkpoint  {self.figures['checkpoint']}", file=sys.stderr)
        print(f"report      {path}", file=sys.stderr)
        print(f"pictures    {self.out / SHEET}", file=sys.stderr)
        print(f"MLflow      {hint}", file=sys.stderr)


def ask_photos(
    config: TrainMixConfig, checkpoint: Path, per_dataset: int, out: Path
) -> dict[str, Any]:
    """Asks a checkpoint about validation photos by the words of the table, and draws a sheet.

    Args:
        config: The training, which names shards, split and size.
        checkpoint: Its folder.
        per_dataset: Photos of each dataset.
        out: Where the sheet goes.

    Returns:
        The figures of each dataset by its name.
    """
    corpus = open_corpus(config.data.shards, config.data.val_split)
    lseg = LSeg.load(checkpoint)
    asker = Asker(lseg, lseg.text_encoder)
    questions = {
        name: PhotoQuestions(*names_of(corpus, name), photo_words(), config.run.seed)
        for name in corpus.sizes
    }
    lines: list[ComparedImage] = []
    for sample in asker.samples(corpus, per_dataset, config.data.augment.base_px):
        asked = questions[sample.dataset]
        if asked.num_images == 0:
            lines += compared(asker, sample, asked, names_of(corpus, sample.dataset)[1])
        asked.add(asker, sample)
    draw(lines, out / SHEET)
    return {name: asked.figures() for name, asked in questions.items()}


def names_of(corpus: Corpus, dataset: str) -> tuple[tuple[str, ...], np.ndarray]:
    """A dataset's own words, and the table from the corpus's ids to their positions: (256,)."""
    manifest, taxonomy = corpus.manifests[dataset], corpus.taxonomy
    seen = manifest.classes_seen
    pairs = manifest.own_words or [(n, label_text(n)) for n in manifest.class_names if n in seen]
    names = list(dict.fromkeys(name for name, _ in pairs))
    # Of several words for one class the first.
    words = {name: word for name, word in reversed(list(pairs))}
    lut = np.full(256, IGNORE, np.uint8)
    for position, name in enumerate(names):
        lut[taxonomy.id_of(name)] = position
    return tuple(label_text(words[name]) for name in names), lut


def compared(
    asker: Asker, sample: ViewedSample, asked: PhotoQuestions, lut: np.ndarray
) -> Iterator[ComparedImage]:
    """One photo as it is answered by its own names, by other words, and with half of its names."""
    truth = lut[sample.label].astype(np.int64)
    own = asked.texts
    yield ComparedImage(
        f"{sample.dataset}: its own names", sample.image, truth, asker.ask(sample, own), own
    )
    renamed = tuple(asked.renamed)
    if renamed != own:
        answer = asker.ask(sample, renamed)
        yield ComparedImage(f"{sample.dataset}: other words", sample.image, truth, answer, renamed)
    there = [int(i) for i in np.unique(truth) if i != IGNORE]
    half = (*(own[i] for i in there[::2]), "other")
    table = np.full(256, len(half) - 1)
    table[IGNORE] = IGNORE
    table[there[::2]] = np.arange(len(half) - 1)
    yield ComparedImage(
        f"{sample.dataset}: half of its names, and other",
        sample.image,
        table[truth],
        asker.ask(sample, half),
        half,
        has_other=True,
    )


def check_kept(target: Path, run: str) -> None:
    """Refuses a place for the checkpoint that holds something else, before anything is trained.

    Args:
        target: Where the checkpoint goes.
        run: Name of the run; those of the demo's other seeds begin as it does.

    Raises:
        UserError: There is a folder that no run of this demo left.
    """
    if not target.exists() and not target.is_symlink():
        return
    given = read_provenance(target).config.get("run") if (target / PROVENANCE).is_file() else None
    name = str(given.get("name", "")) if isinstance(given, Mapping) else ""
    if name.rpartition("-")[0] != run.rpartition("-")[0]:
        raise UserError(
            f"out: {target} is there, and no checkpoint of this demo, which would take its place: "
            "name another folder with --out, or move it away"
        )


def keep_checkpoint(source: Path | str, target: Path) -> Path:
    """Copies what using a model takes from a run's checkpoint to a place with a short name.

    One that is there is replaced when the copy is complete; see `check_kept`.
    """
    with tempfile.TemporaryDirectory(prefix=f"{target.name}.", dir=target.parent) as beside:
        copy = Path(beside) / "new"
        copy.mkdir()
        for name in USABLE:
            if (Path(source) / name).is_file():
                shutil.copyfile(Path(source) / name, copy / name)
        if target.exists():
            target.rename(Path(beside) / "old")
        copy.rename(target)
    return target


def tables(figures: Mapping[str, Any]) -> Iterator[Table]:
    """The tables of the report: a line for each dataset, then one for each word."""
    table = Table(title="photographs, %", box=box.SIMPLE)
    frequent = f"mIoU, {FREQUENT}+ photos"
    heads = ("mIoU", frequent, "pixels", "not background", "by synonyms", "absent", "to other")
    for name in ("dataset", *heads):
        table.add_column(name, justify="left" if name == "dataset" else "right")
    for name, found in figures["words"].items():
        scored = figures["evaluation"].get(name, {})
        other = found["unnamed_to_other"].get("other")
        values = (
            *(scored.get(key) for key in _SCORED),
            *(found[key] for key in ("synonyms_miou", "absent_share")),
            other,
        )
        table.add_row(name, *map(_per_cent, values))
    yield table
    words = Table(title="words that no training asked: IoU, %", box=box.SIMPLE)
    for name in ("dataset", "word", "stands for", "by the word", "by the names"):
        words.add_column(name, justify="right" if name.startswith("by") else "left")
    for name, found in figures["words"].items():
        for word, values in found["words"].items():
            by_word, by_names = values["iou"], values["iou_by_names"]
            cells = (name, word, values["names"], _per_cent(by_word), _per_cent(by_names))
            words.add_row(*cells)
    yield words
    none = Table(title="pixels that words for none of the names get, %", box=box.SIMPLE)
    for name in ("dataset", "word", "of what no name stands for", "named pixels kept"):
        none.add_column(name, justify="left" if name in ("dataset", "word") else "right")
    for name, found in figures["words"].items():
        for word, value in found["unnamed_to_other"].items():
            none.add_row(name, word, _per_cent(value), _per_cent(found["named_kept"][word]))
    yield none


_SCORED = ("miou", "miou_frequent", "pixel_accuracy", "pixel_accuracy_foreground")
"""Figures of the evaluation that the first table shows."""


def _per_cent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f}"


def _flat(figures: Mapping[str, Any], prefix: str = "photos") -> Iterator[tuple[str, float]]:
    """The figures as MLflow's metrics, whose names have few kinds of signs."""
    for key, value in figures.items():
        name = f"{prefix}/{''.join(c if c.isalnum() or c in '_-. /' else '_' for c in str(key))}"
        if isinstance(value, Mapping):
            yield from _flat(value, name)
        elif isinstance(value, int | float) and not isinstance(value, bool):
            yield name, float(value)
