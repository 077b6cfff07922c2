"""Zero-shot episodes of HSNet's benchmarks, scored as LSeg does: a class against `others`."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from pipeline.data.datasets.few_shot import Episode, open_few_shot
from pipeline.data.datasets.few_shot.training import OTHERS
from pipeline.data.pixels.checks import BadSample
from pipeline.data.taxonomy import IGNORE
from pipeline.errors import UserError
from pipeline.evaluation.answers import AnswerSpace
from pipeline.evaluation.config import EvaluateConfig, Geometry, OtherPolicy
from pipeline.evaluation.items import Item, ItemSource, UnreadableItem, digest, spread
from pipeline.evaluation.plan import Plan
from pipeline.evaluation.scoring import Part


@dataclass(frozen=True)
class EpisodeItems(ItemSource):
    """Episodes of a few-shot benchmark."""

    benchmark: str
    root: str
    chosen: tuple[Episode, ...]
    texts: tuple[tuple[str, ...], ...]
    """Texts of each stratum, background first."""
    strata: tuple[int, ...]
    """Class id of each stratum."""

    def __len__(self) -> int:
        return len(self.chosen)

    def keys(self) -> Sequence[str]:
        """Picture and class id."""
        return [f"{episode.image}#{episode.class_id}" for episode in self.chosen]

    def fingerprint(self) -> str:
        """Of pictures, classes and texts."""
        return digest(self.benchmark, self.root, self.keys(), self.texts)

    def open(self) -> Callable[[int], Item]:
        """Opens the benchmark's folder."""
        few_shot = open_few_shot(self.benchmark, self.root)
        number = {class_id: stratum for stratum, class_id in enumerate(self.strata)}
        keys = self.keys()

        def read(position: int) -> Item:
            episode = self.chosen[position]
            try:
                image, mask = few_shot.read(episode)
            except BadSample as error:
                raise UnreadableItem(str(error)) from None
            stratum = number[episode.class_id]
            return Item(keys[position], image, mask, self.texts[stratum], stratum)

        return read


def few_shot_plan(config: EvaluateConfig) -> Plan:
    """The episodes of the configured folds.

    Raises:
        UserError: The download is missing, or the policy for "other" does not go with episodes.
    """
    name = config.protocol
    if name not in config.roots:
        raise UserError(
            f"roots.{name}: not set, and protocol {name} reads an official download: set it"
        )
    few_shot = open_few_shot(name, config.roots[name], config.splits)
    geometry = config.geometry or Geometry(mode="squash")
    policy = config.other or OtherPolicy(policy="prompts", prompts=(OTHERS,))
    if policy.policy != "prompts":
        raise UserError(
            f"other.policy={policy.policy}: an episode has a class and a background, so {name} "
            f"needs prompts for the background: published is '{OTHERS}'"
        )
    lut = np.full(256, IGNORE, np.uint8)
    lut[:2] = (0, 1)
    space = AnswerSpace(
        ("background", "foreground"),
        (),
        (*(0 for _ in policy.prompts), 1),
        tuple(lut.tolist()),
        rest=0,
        policy=str(policy),
    )
    parts = []
    for fold in config.folds if few_shot.num_folds > 1 else (0,):
        episodes = few_shot.episodes(fold, config.seed)
        chosen = tuple(episodes[i] for i in spread(len(episodes), config.max_images))
        ids = tuple(i for i in few_shot.test_ids(fold) if any(e.class_id == i for e in episodes))
        names = few_shot.class_names()
        texts = tuple((*policy.prompts, names[i]) for i in ids)
        source = EpisodeItems(name, config.roots[name], chosen, texts, ids)
        part_name = f"fold{fold}" if few_shot.num_folds > 1 else "test"
        strata = tuple(names[i] for i in ids)
        parts.append(Part(part_name, source, space, geometry, strata))
    notes = list(few_shot.notes)
    if geometry != Geometry(mode="squash"):
        notes.append(f"geometry {geometry.mode}; published: squash to 480")
    if policy.prompts != (OTHERS,):
        notes.append(f"other: {policy}; published: {OTHERS}")
    if config.max_images:
        notes.append(f"max_images={config.max_images}: not all episodes")
    if config.seed:
        notes.append(f"seed={config.seed}; published: 0")
    return Plan(tuple(parts), "few-shot", notes=tuple(notes))
