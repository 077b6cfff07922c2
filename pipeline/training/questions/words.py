"""The texts that a run asks beside its classes: words for "other", and classes that no image shows.

Without torch, as is all that a plan is made of.
"""

import logging

from pipeline.data.taxonomy import label_text, spelling
from pipeline.errors import UserError
from pipeline.training.config import DistractorConfig, OtherConfig, TrainConfig
from pipeline.training.questions.labels import LabelSpace

logger = logging.getLogger(__name__)


def asked_texts(train: TrainConfig, labels: LabelSpace) -> tuple[str, ...]:
    """Lists all texts that a step of a run may ask.

    Raises:
        UserError: No word for "other" is left, or there are too few distractors.
    """
    other = words_for_other(train.other, labels)
    return (*labels.texts, *other, *distractor_texts(train.distractors, labels))


def words_for_other(config: OtherConfig, labels: LabelSpace) -> tuple[str, ...]:
    """Lists the words for "none of these", without those that a class of the run is called.

    Such a word would be right for the class's pixels in one step and wrong in the next.

    Raises:
        UserError: No word is left.
    """
    if not config.share:
        return ()
    called = {spelling(text) for text in labels.texts}
    kept = tuple(word for word in config.words if spelling(word) not in called)
    if not kept:
        raise UserError(
            f"train.other.words={list(config.words)}: each is the name of a class of this run: "
            "add a word that is none, or set train.other.share to 0"
        )
    if lost := [word for word in config.words if word not in kept]:
        logger.info("train.other.words: %s is a class of this run, and not asked", ", ".join(lost))
    return kept


def distractor_texts(config: DistractorConfig, labels: LabelSpace) -> tuple[str, ...]:
    """Lists the texts of the negative labels: classes that no training image shows, or words.

    Raises:
        UserError: There are fewer than one step wants, or one to leave out is no class.
    """
    if config.words:
        left_out = (label_text(name) for name in labels.held_out)
        called = {spelling(text) for text in (*labels.texts, *left_out)}
        words = tuple(word for word in config.words if spelling(word) not in called)
        if len(words) < config.count:
            raise UserError(
                f"train.distractors.count={config.count}: only {len(words)} of "
                "train.distractors.words are no class of this run: lower it, or add words"
            )
        return words if config.count else ()
    for name in config.never:
        labels.taxonomy.id_of(name)
    if not config.count:
        return ()
    names = {*labels.taxonomy.classes} - {*labels.names, *labels.held_out, *config.never}
    if len(names) < config.count:
        raise UserError(
            f"train.distractors.count={config.count}: only {len(names)} classes are neither "
            "trained nor in train.distractors.never: lower it"
        )
    return tuple(label_text(name) for name in sorted(names))
