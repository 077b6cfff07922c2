"""Figures over the classes that a small dataset shows often enough to be learnt and measured.

A mean IoU over all classes of a few hundred photos is one over classes of two photos as well, which
nothing can learn; and where most pixels are background, pixel accuracy says little of the rest.
"""

import csv
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from pipeline.data.ingest.stream import SampleReader, open_corpus
from pipeline.data.pixels.decode import BadSample, decode_label
from pipeline.evaluation.figures import ClassRow, miou_over

FREQUENT = 20
"""Fewest photos that show a class which counts as frequent."""
BACKGROUND = "background"

Photos = Mapping[str, Mapping[str, int]]
"""By dataset, then by class: photos with at least one of its pixels."""


def photos_by_class(shards: str, splits: Sequence[str]) -> Photos:
    """Counts the photos of some splits that show each class; what does not decode counts nowhere.

    Raises:
        UserError: There are no shards of one of the splits.
    """
    found: dict[str, dict[str, int]] = {}
    for split in splits:
        corpus = open_corpus(shards, split)
        reader = SampleReader(corpus)
        for dataset, size in corpus.sizes.items():
            counts, names = np.zeros(256, np.int64), corpus.manifests[dataset].class_names
            for index in range(size):
                try:
                    stored = reader.read_stored(dataset, index)
                    label = decode_label(stored.png, reader.num_classes(dataset))
                except BadSample:
                    continue
                counts += np.bincount(label.ravel(), minlength=256) > 0
            of_dataset = found.setdefault(dataset, {})
            for name, count in zip(names, counts.tolist(), strict=False):
                of_dataset[name] = of_dataset.get(name, 0) + count
    return found


def frequent_figures(folder: Path, photos: Photos) -> dict[str, float]:
    """Further figures of an evaluation, from the table of classes in its folder.

    Returns:
        `DATASET/miou_frequent` over the classes of FREQUENT or more photos, the number of these as
        `DATASET/frequent_classes`, and `DATASET/pixel_accuracy_foreground` without the pixels of
        a background, where the dataset has one.
    """
    rows: dict[str, list[ClassRow]] = defaultdict(list)
    with (folder / "per_class.csv").open(encoding="utf-8", newline="") as file:
        for line in csv.DictReader(file):
            pixels = (int(line[key]) for key in ("target_px", "predicted_px", "hit_px"))
            iou = float(line["iou"]) if line["iou"] else None
            rows[line["part"]].append(ClassRow(line["part"], line["class"], iou, *pixels))
    figures: dict[str, float] = {}
    for dataset, of_dataset in rows.items():
        shown = photos.get(dataset, {})
        frequent = {r.name for r in of_dataset if shown.get(r.name, 0) >= FREQUENT and r.target_px}
        if (miou := miou_over(of_dataset, frequent, dataset)) is not None:
            figures[f"{dataset}/miou_frequent"] = miou
            figures[f"{dataset}/frequent_classes"] = float(len(frequent))
        rest = [row for row in of_dataset if row.name != BACKGROUND]
        total = sum(row.target_px for row in rest)
        if len(rest) < len(of_dataset) and total:
            hit = sum(row.hit_px for row in rest)
            figures[f"{dataset}/pixel_accuracy_foreground"] = hit / total
    return figures
