"""The plan of a run: datasets, stream, labels and length, made once and handed down.

Training, dry run and re-training all begin here, so that they agree on what a configuration means.
Only manifests are read; nothing is trained, written or started.
"""

import logging
from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np

from model.checkpoint_files import is_one_line
from pipeline.checkpoints.files import MOST_NAMED, VALIDATION, manifest_tags
from pipeline.data.datasets.few_shot.training import class_of, without_fold
from pipeline.data.ingest.mixture import Mixture
from pipeline.data.ingest.stream import Corpus, build_mixture, open_corpus
from pipeline.data.shards.format import find_manifests
from pipeline.data.shards.union import pixels_in
from pipeline.errors import UserError, did_you_mean
from pipeline.storage.open import open_storage
from pipeline.training.config import TrainMixConfig, in_steps
from pipeline.training.questions.labels import (
    LabelSpace,
    balanced,
    episode_labels,
    training_labels,
)
from pipeline.training.questions.words import distractor_texts, words_for_other

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class RunPlan:
    """What a run trains and validates on, and for how long."""

    config: TrainMixConfig
    """The configuration, with the length of the run in steps."""
    corpus: Corpus
    """The training split of the datasets in the mixture."""
    mixture: Mixture
    """The training stream."""
    labels: LabelSpace
    """The classes that the run trains on."""
    validation: Corpus | None
    """The validation split of the datasets to validate on; None where there is none."""

    @property
    def is_few_shot(self) -> bool:
        """Whether the run trains on the pairs of a few-shot benchmark."""
        return class_of(self.corpus.manifests[self.mixture.datasets[0]]) is not None

    @property
    def own_labels(self) -> dict[str, np.ndarray]:
        """(K,) bool by dataset of the mixture: which labels of the run its masks show."""
        taxonomy, manifests = self.corpus.taxonomy, self.corpus.manifests
        ids = [taxonomy.id_of(name) for name in self.labels.names]
        return {
            name: pixels_in([manifests[name]], taxonomy)[ids] > 0 for name in self.mixture.datasets
        }

    @property
    def label_weights(self) -> dict[str, np.ndarray] | None:
        """(K,) float32 by dataset of the mixture, what a pixel of each label counts by in the loss.

        See `train.balance`; None where all pixels count the same.
        """
        if not self.config.train.balance:
            return None
        taxonomy, manifests = self.corpus.taxonomy, self.corpus.manifests
        ids = [taxonomy.id_of(name) for name in self.labels.names]
        return {
            name: balanced(pixels_in([manifests[name]], taxonomy)[ids], self.config.train.balance)
            for name in self.mixture.datasets
        }

    @property
    def manifest_tags(self) -> dict[str, str]:
        """The fingerprints of the training shards, as tags."""
        return manifest_tags(self.corpus.manifests)

    @property
    def validation_tags(self) -> dict[str, str]:
        """The fingerprints of the validation shards, as tags."""
        return manifest_tags(self.validation.manifests, VALIDATION) if self.validation else {}

    def announce(self, first: int) -> None:
        """Logs what the run trains on, how long it is, and after which step it begins."""
        config, sizes = self.config, self.corpus.sizes
        named = list(zip(self.mixture.datasets, self.mixture.shares, strict=True))
        shares = ", ".join(
            f"{name} {share:.1%} of {sizes[name]}" for name, share in named[:MOST_NAMED]
        )
        if len(named) > MOST_NAMED:
            shares += f", ... ({len(named)} in all)"
        logger.info("mixture: %s", shares)
        logger.info(
            "run %s: %d labels, %d steps of %d images on %d workers%s",
            config.run.name,
            len(self.labels),
            config.train.steps,
            config.train.batch_size,
            config.cluster.num_workers,
            f", resuming after step {first}" if first else "",
        )


def make_plan(config: TrainMixConfig, corpus: Corpus | None = None) -> RunPlan:
    """Reads the manifests that a configuration names, and makes the plan of its run.

    Args:
        config: The configuration of the run.
        corpus: Its training split, where the caller has read it already.

    Raises:
        UserError: The shards and the settings do not fit each other.
    """
    # The mixture decides which datasets are used, and these decide the length and the labels.
    corpus = corpus or training_corpus(config)
    mixture = build_mixture(corpus, config.data, config.train.batch_size, config.run.seed)
    used = {name: corpus.manifests[name] for name in mixture.datasets}
    corpus = replace(corpus, manifests=used)
    config = replace(config, train=in_steps(config.train, mixture.rows_per_epoch))
    labels = episode_labels(used.values(), config.train) or training_labels(
        used.values(), config.train.labels, corpus.taxonomy, config.train.held_out
    )
    _check_names(config.data.shards, (*labels.names, *labels.texts))
    # Both are drawn in the workers; too few of them are refused here.
    if config.train.balance and any(map(class_of, used.values())):
        raise UserError(
            f"train.balance={config.train.balance:g}: has no meaning on the pairs of a few-shot "
            "benchmark, each of one class: leave it out"
        )
    distractor_texts(config.train.distractors, labels)
    words_for_other(config.train.other, labels)
    _check_padded(config, len(labels))
    return RunPlan(config, corpus, mixture, labels, validation_corpus(config, corpus))


def plan_if_possible(config: TrainMixConfig) -> RunPlan | None:
    """The plan of a run for a look at it; None where no training shards are there.

    Raises:
        UserError: The shards and the settings do not fit each other.
    """
    if not config.data.shards:
        return None
    try:
        corpus = training_corpus(config)
    except UserError as error:
        logger.warning("%s", error)
        return None
    return make_plan(config, corpus)


def training_corpus(config: TrainMixConfig) -> Corpus:
    """The training split, without the classes of the test fold."""
    corpus = open_corpus(config.data.shards, config.data.train_split)
    fold = config.train.test_fold
    if fold is None:
        return corpus
    return replace(corpus, manifests=without_fold(corpus.manifests, fold))


def validation_corpus(config: TrainMixConfig, training: Corpus) -> Corpus | None:
    """The validation split, with its labels read in the classes of the training split.

    Raises:
        UserError: A dataset that `train.val_datasets` or `train.keep_best` names is not there.
    """
    if config.train.test_fold is not None:
        return None  # The test fold is for `jobs/evaluate.py`; pairs have no validation split.
    split, chosen = config.data.val_split, config.train.val_datasets
    there = find_manifests(open_storage(config.data.shards), split)
    if isinstance(chosen, tuple):
        for name in chosen:
            if name not in there:
                raise UserError(
                    f"train.val_datasets={list(chosen)}: {config.data.shards} has no split "
                    f"{split!r} of {name}: leave it out{did_you_mean(name, there)}"
                )
    else:
        chosen = tuple(there) if chosen == "all" else tuple(training.manifests)
    manifests = {name: manifest for name, manifest in there.items() if name in chosen}
    if not manifests:
        logger.warning("no shards of split %r: no validation", split)
        return None
    best = config.train.keep_best.split("/")[1:-1]
    if best and best[0] not in manifests:
        raise UserError(
            f"train.keep_best={config.train.keep_best}: validated are {', '.join(manifests)}: name "
            "one of them, or add the dataset to train.val_datasets"
        )
    return Corpus(config.data.shards, split, manifests, training.taxonomy)


def _check_padded(config: TrainMixConfig, num_labels: int) -> None:
    """Refuses a cost head that leaves labels of a step out: these would not train."""
    head, train = config.model.head, config.train
    asked = num_labels + train.distractors.count + bool(train.other.share)
    asked = min(asked, train.labels_per_step or asked)
    if head.kind == "cost" and 0 < head.padded < asked:
        raise UserError(
            f"model.head.padded={head.padded}: must be at least {asked}, the labels of a step, or "
            "0: raise it, or lower train.labels_per_step"
        )


def _check_names(shards: str, names: Iterable[str]) -> None:
    """Refuses a class that no checkpoint could be written with, before anything is trained."""
    for name in names:
        if not is_one_line(name):
            raise UserError(
                f"data.shards={shards}: the class {name!r} has a line break in its name, and a "
                "checkpoint's labels are one a line: correct the name in the dataset's table of "
                "classes and prepare the shards again"
            )
