"""Zero-shot episodes of HSNet's benchmarks, scored as LSeg does: a class against `others`."""

from collections.abc import Sequence
from dataclasses import dataclass

from pipeline.checkpoints.provenance import TrainedSize
from pipeline.data.datasets.few_shot import Episode, FewShotSet, open_few_shot
from pipeline.data.datasets.few_shot.training import OTHERS
from pipeline.data.taxonomy import IGNORE
from pipeline.errors import UserError
from pipeline.evaluation.config import EvaluateConfig, OtherPolicy
from pipeline.evaluation.items import Item, ItemSource, digest
from pipeline.evaluation.plan import Part, ProtocolPlan
from pipeline.evaluation.views import View, view_of
from pipeline.scoring import AnswerSpace, evenly


@dataclass(frozen=True)
class EpisodeItems(ItemSource):
    """Episodes of a few-shot benchmark."""

    chosen: tuple[Episode, ...]
    texts: tuple[tuple[str, ...], ...]
    """Texts of each stratum, background first."""
    strata: tuple[int, ...]
    """Class id of each stratum."""

    def keys(self) -> Sequence[str]:
        """Image and class id of each episode."""
        return [f"{episode.image}#{episode.class_id}" for episode in self.chosen]

    def fingerprint(self) -> str:
        """Hex digits over images, classes and texts."""
        return digest(self.dataset, self.root, self.keys(), self.texts)

    def connect(self) -> FewShotSet:
        """Opens the benchmark's folder."""
        return open_few_shot(self.dataset, self.root)

    def read(self, connection: FewShotSet, position: int) -> Item:
        """Reads an episode."""
        episode = self.chosen[position]
        stratum = self.strata.index(episode.class_id)
        key = f"{episode.image}#{episode.class_id}"
        return Item(key, *connection.read(episode), self.texts[stratum], stratum)


def few_shot_plan(config: EvaluateConfig, size: TrainedSize) -> ProtocolPlan:
    """Plans the episodes of the configured folds.

    Raises:
        UserError: The download is missing, or the policy for "other" does not go with episodes.
    """
    name = config.protocol
    if name not in config.roots:
        raise UserError(
            f"roots.{name}: not set, and protocol {name} reads an official download: set it"
        )
    few_shot = open_few_shot(name, config.roots[name], config.splits)
    geometry = view_of(config, size)
    policy = config.other or OtherPolicy(policy="prompts", prompts=(OTHERS,))
    if policy.policy != "prompts":
        raise UserError(
            f"other.policy={policy.policy}: an episode has a class and a background, so {name} "
            f"needs prompts for the background: published is '{OTHERS}'"
        )
    classes, text_class = ("background", "foreground"), (*(0 for _ in policy.prompts), 1)
    lut = (0, 1, *[IGNORE] * 254)
    space = AnswerSpace(classes, (), text_class, lut, rest=0, policy=str(policy))
    parts, names = [], few_shot.class_names()
    for fold in config.folds if few_shot.num_folds > 1 else (0,):
        episodes = few_shot.episodes(fold, config.seed)
        chosen = tuple(episodes[i] for i in evenly(len(episodes), config.max_images))
        ids = tuple(i for i in few_shot.test_ids(fold) if any(e.class_id == i for e in episodes))
        texts = tuple((*policy.prompts, names[i]) for i in ids)
        source = EpisodeItems(name, config.roots[name], chosen, texts, ids)
        part_name = f"fold{fold}" if few_shot.num_folds > 1 else "test"
        strata = tuple(names[i] for i in ids)
        parts.append(Part(part_name, source, space, geometry, strata))
    notes = list(few_shot.notes)
    if geometry != View(mode="squash"):
        notes.append(f"geometry {geometry.mode}; published: squash to 480")
    if policy.prompts != (OTHERS,):
        notes.append(f"other: {policy}; published: {OTHERS}")
    if config.max_images:
        notes.append(f"max_images={config.max_images}: not all episodes")
    if config.seed:
        notes.append(f"seed={config.seed}; published: 0")
    return ProtocolPlan(tuple(parts), "few-shot", notes=tuple(notes))
