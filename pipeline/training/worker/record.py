"""What a training says to MLflow beside its curves: its data, settings and what it has learnt."""

import logging
from collections.abc import Mapping

from pipeline.checkpoints.files import MOST_NAMED, TRAINING, VALIDATION
from pipeline.data.ingest.stream import Corpus
from pipeline.data.shards.format import MANIFEST_NAME, folder
from pipeline.tracking.page_records import InputDataset
from pipeline.tracking.tracker import Tracker
from pipeline.training.config import plain
from pipeline.training.plan import RunPlan
from pipeline.training.saving.logged import FOLDER_TAG, address_of
from pipeline.training.worker.pictures import draw_confusion, draw_examples
from pipeline.training.worker.validation import Validation

logger = logging.getLogger(__name__)

_TABLE = ("step", "dataset", "class", "IoU", "pixels", "predicted pixels")


def describe_run(tracker: Tracker, plan: RunPlan, tags: Mapping[str, str]) -> None:
    """Logs the datasets, the configuration and the place of the checkpoints; begins to watch.

    Args:
        tracker: The run in MLflow.
        plan: The run.
        tags: Its tags, with the fingerprints of its data.
    """
    config = plan.config
    tracker.set_tags({FOLDER_TAG: address_of(config.run)})
    tracker.log_inputs(inputs_of(plan, tags))
    tracker.log_dict(plain(config), "config.yaml")
    tracker.watch_system(config.train.system_metrics_s)


def inputs_of(plan: RunPlan, tags: Mapping[str, str]) -> list[InputDataset]:
    """The training and validation shards; one entry for all where they are very many."""
    found = _inputs(plan.corpus, "train", tags, TRAINING)
    if plan.validation is not None:
        found += _inputs(plan.validation, "validation", tags, VALIDATION)
    return found


def _inputs(
    corpus: Corpus, context: str, tags: Mapping[str, str], prefix: str
) -> list[InputDataset]:
    manifests, root = corpus.manifests, corpus.uri.rstrip("/")
    if len(manifests) > MOST_NAMED:
        return [
            InputDataset(
                name=f"{len(manifests)} datasets",
                # The tag says how many after the digest.
                digest=tags.get(f"{prefix}s", "").split(" ")[0],
                source=root,
                context=context,
                profile={"num_rows": sum(m.num_samples for m in manifests.values())},
            )
        ]
    return [
        InputDataset(
            name=name,
            digest=tags.get(f"{prefix}.{name}") or manifest.fingerprint,
            source=f"{root}/{folder(name, manifest.split)}/{MANIFEST_NAME}",
            context=context,
            profile={
                "num_rows": manifest.num_samples,
                "num_shards": len(manifest.shards),
                "num_bytes": manifest.size,
                "num_classes": len(manifest.classes_seen),
                "taxonomy": manifest.taxonomy,
            },
        )
        for name, manifest in manifests.items()
    ]


def tell_validation(
    tracker: Tracker, result: Validation, metrics: dict[str, float], step: int
) -> None:
    """Logs a validation's figures, in MLflow and in the log, and its IoU of each class."""
    tracker.log_metrics(metrics, step)
    tracker.log_text(result.table(), f"validation/step_{step:08d}.txt")
    logger.info("step %d  validation mIoU %.3f", step, metrics["val/miou"])
    if result.unscored:
        logger.warning("none of the labels is in val of %s", ", ".join(result.unscored))


def show_validation(tracker: Tracker, result: Validation, step: int) -> None:
    """Logs the class table and the images of a validation; a defect in them ends no run."""
    try:
        tracker.log_table(_TABLE, class_rows(result, step), "classes.json")
        if result.examples:
            tracker.log_picture("overlays", draw_examples(result.examples, result.labels), step)
        if picture := draw_confusion(list(result.matrices.values()), result.labels):
            tracker.log_picture("confusion", picture, step)
    except Exception as error:
        logger.warning("step %d: no pictures of the validation: %s", step, error)


def class_rows(result: Validation, step: int) -> list[tuple[int, str, str, float, int, int]]:
    """A row for each class that a dataset shows or is said to show."""
    rows = []
    for dataset, matrix in result.matrices.items():
        counts = matrix.counts.cpu()
        columns = (matrix.iou_per_class().cpu(), counts.sum(1), counts.sum(0))
        for label, iou, there, predicted in zip(
            result.labels, *(column.tolist() for column in columns), strict=True
        ):
            if there or predicted:
                rows.append((step, dataset, label, round(iou, 4), there, predicted))
    return rows
