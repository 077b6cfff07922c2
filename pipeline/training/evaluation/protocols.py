"""Which pictures each protocol scores, what it asks, and how the network sees them.

unified         validation sets in MSeg's universal classes
native-names    a dataset's own classes, asked by the dataset's own label names
native-mapped   a dataset's own classes, from universal ones: probabilities summed
ade20k-150      LSeg's table 6: the labels as published, six scales, flips, windows
pascal-5i, coco-20i, fss-1000    zero-shot episodes of HSNet, as LSeg scores them
held-out        MSeg's six held-out sets, mapped; harmonic mean
behaviours      the four behaviours of LSeg's first figure; see `behaviours`
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

import pipeline.data.taxonomy as taxonomy_module
from pipeline.data.datasets import BadSample, open_reader
from pipeline.data.fewshot import FEW_SHOT_SETS, Episode, open_few_shot
from pipeline.data.ingest import open_corpus
from pipeline.data.shards import Manifest
from pipeline.data.taxonomy import (
    DATASETS,
    IGNORE,
    label_text,
    lookup_table,
    native_table,
    universal,
)
from pipeline.errors import UserError, did_you_mean
from pipeline.training.evaluation.answers import DROPPED, AnswerSpace, space_of
from pipeline.training.evaluation.config import EvaluateConfig, Geometry, OtherPolicy
from pipeline.training.evaluation.items import (
    Item,
    ItemSource,
    RootItems,
    ShardItems,
    UnreadableItem,
    digest,
    spread,
)
from pipeline.training.evaluation.scoring import Part

ANYTHING_ELSE = "(other)"
"""The class of all pixels that a zero-shot question does not name; itself not scored."""

FEW_SHOT_OTHER = "others"
"""LSeg's text for the background of an episode."""

_FEW_SHOT_ROOTS = frozenset(FEW_SHOT_SETS)


@dataclass(frozen=True)
class Plan:
    """A protocol, ready to run."""

    parts: tuple[Part, ...]
    kind: str
    """How counts become figures: `classes`, `few-shot` or `held-out`."""
    mean_over: str = "target"
    """Classes of the mean IoU: those that the labels show, or `all`, absent ones counting 0."""
    equal_classes: dict[str, tuple[int, ...]] = field(default_factory=dict)
    """By part: a number for each class; equal numbers are classes that cannot be told apart."""
    unscored: frozenset[str] = frozenset()
    """Classes that do not enter the mean: the answer "other" of a zero-shot question."""
    notes: tuple[str, ...] = ()
    """What keeps the figures from being the published protocol's."""


def make_plan(config: EvaluateConfig, trained: Sequence[str]) -> Plan:
    """Builds the parts of the configured protocol.

    Args:
        config: The evaluation.
        trained: Labels of the checkpoint, as universal names or any words.

    Raises:
        UserError: Data that the protocol needs is missing, or a setting does not go with it.
    """
    if config.protocol in FEW_SHOT_SETS:
        return _few_shot(config)
    if config.protocol == "held-out":
        from pipeline.training.evaluation.held_out import held_out_plan

        return held_out_plan(config)
    if config.protocol == "ade20k-150":
        return _ade20k(config)
    native = config.protocol != "unified"
    if native and config.labels != "all":
        raise UserError(
            f"labels={config.labels}: has no effect on protocol {config.protocol}: leave it out"
        )
    unseen = not native and config.labels == "unseen"
    policy = config.other or OtherPolicy(policy="prompts" if unseen else "none")
    if unseen and policy.policy == "none":
        raise UserError(
            "other.policy=none: with labels=unseen most pixels are of other classes, so it must be "
            "prompts or threshold"
        )
    sources = _sources(config, native)
    names = () if native else _unified_names(config, trained, sources)
    parts, equal = [], {}
    for dataset, source in sources.items():
        space, same = _space(config, dataset, names)
        if same:
            equal[dataset] = same
        parts.append(
            Part(dataset, source, space.with_policy(policy), config.geometry or Geometry())
        )
    unscored = frozenset({ANYTHING_ELSE} if unseen else ())
    return Plan(tuple(parts), "classes", equal_classes=equal, unscored=unscored)


def native_classes(dataset: str) -> tuple[tuple[int, str], ...]:
    """Id on disk and label text of the classes that a dataset's own benchmark scores.

    Those that its table maps to a universal class; Cityscapes so keeps its 19.
    """
    return tuple(
        (native.native_id, native_text(native.native_name))
        for native in native_table(dataset)
        if native.universal_name is not None
    )


def native_text(name: str) -> str:
    """A native name as words: the first of several synonyms, without separators or "-merged"."""
    first = re.split(r"[;,]", name)[0]
    words = re.sub(r"-(merged|other)\b", "", first)
    words = re.sub(r"--|[-_/]", " ", words)
    return " ".join(words.split()).lower()


def _space(
    config: EvaluateConfig, dataset: str, unified: Sequence[str]
) -> tuple[AnswerSpace, tuple[int, ...]]:
    """The question about one dataset; and which of its classes no answer can tell apart."""
    if config.protocol == "unified":
        texts = [label_text(name) for name in unified]
        if config.labels != "unseen":
            return space_of(unified, texts, _universal_lut(unified, IGNORE)), ()
        rest = len(unified)
        lut = _universal_lut(unified, rest)
        return space_of([*unified, ANYTHING_ELSE], texts, lut, range(rest), rest), ()
    classes = native_classes(dataset)
    lut = np.full(256, IGNORE, np.uint8)
    for position, (native_id, _) in enumerate(classes):
        lut[native_id] = position
    names = [name for _, name in classes]
    if config.protocol == "native-names":
        # Equal names give equal scores; the first takes them all, and so it is counted.
        same = tuple(names.index(name) for name in names)
        return space_of(names, names, lut), _numbered(same)
    table = lookup_table(dataset)
    universal_ids = [int(table[native_id]) for native_id, _ in classes]
    first = {uid: position for position, uid in reversed(list(enumerate(universal_ids)))}
    texts = [label_text(name) for name in universal().classes]
    text_class = [first.get(uid, DROPPED) for uid in range(len(texts))]
    same = tuple(first[uid] for uid in universal_ids)
    return space_of(names, texts, lut, text_class), _numbered(same)


def _numbered(same: tuple[int, ...]) -> tuple[int, ...]:
    """Consecutive numbers for groups; empty where every class is its own."""
    if len(set(same)) == len(same):
        return ()
    order = {value: number for number, value in enumerate(dict.fromkeys(same))}
    return tuple(order[value] for value in same)


def _universal_lut(names: Sequence[str], others: int) -> np.ndarray:
    """Universal id -> position in `names`; `others` for the rest of the taxonomy."""
    lut = np.full(256, IGNORE, np.uint8)
    lut[: len(universal().classes)] = others
    for position, name in enumerate(names):
        lut[universal().id_of(name)] = position
    return lut


def _unified_names(
    config: EvaluateConfig, trained: Sequence[str], sources: Mapping[str, ItemSource]
) -> tuple[str, ...]:
    """The universal classes that `labels` asks for."""
    if config.labels == "all":
        return universal().classes
    by_text = {label_text(name): name for name in universal().classes}
    names = [by_text[label_text(label)] for label in trained if label_text(label) in by_text]
    if not names:
        raise UserError(
            f"labels={config.labels}: must be a checkpoint trained on universal classes, and none "
            f"of its {len(trained)} labels is one: set labels=all"
        )
    if config.labels == "checkpoint":
        return tuple(names)
    pixels = np.zeros(len(universal().classes), np.int64)
    for source in sources.values():
        pixels += source.manifest.class_pixels if isinstance(source, ShardItems) else 1
    shown = [name for name, count in zip(universal().classes, pixels, strict=True) if count]
    unseen = tuple(name for name in shown if name not in set(names))
    if not unseen:
        raise UserError("labels=unseen: the checkpoint was trained on every class that is shown")
    return unseen


def _sources(config: EvaluateConfig, native: bool) -> dict[str, ItemSource]:
    """The pictures of each dataset: from its root where one is given, else from shards."""
    unknown = [name for name in config.roots if name not in DATASETS]
    if unknown:
        raise UserError(
            f"roots.{unknown[0]}: not a dataset of protocol {config.protocol}"
            f"{did_you_mean(unknown[0], DATASETS)}: use {', '.join(DATASETS)}"
        )
    sources: dict[str, ItemSource] = {}
    manifests: dict[str, Manifest] = {}
    if config.shards:
        corpus = open_corpus(config.shards, config.split)
        manifests = corpus.manifests
    elif not config.roots:
        raise UserError(
            f"shards='': protocol {config.protocol} needs prepared shards or official downloads: "
            "set shards, or roots.DATASET"
        )
    available = sorted({*manifests, *config.roots})
    for name in config.datasets or available:
        if name in config.roots:
            sources[name] = _root_items(config, name, native)
        elif name in manifests:
            manifest = manifests[name]
            indices = spread(manifest.num_samples, config.max_images)
            sources[name] = ShardItems(config.shards, manifest, indices, native)
        else:
            raise UserError(
                f"datasets={name}: must be one of {', '.join(available)}"
                f"{did_you_mean(name, available)}"
            )
    return sources


def _root_items(config: EvaluateConfig, dataset: str, native: bool) -> RootItems:
    root = config.roots[dataset]
    if config.split not in ("train", "val"):
        raise UserError(f"split={config.split!r}: an official download has train and val")
    sources = open_reader(dataset, root).listing(config.split).sources  # type: ignore[arg-type]
    if not sources:
        raise UserError(f"roots.{dataset}={root}: holds no picture with a label in {config.split}")
    chosen = tuple(sources[index] for index in spread(len(sources), config.max_images))
    return RootItems(dataset, root, chosen, native)


def published_ade20k_labels() -> tuple[str, ...]:
    """LSeg's 150 labels of ADE20K, as its label file truncates them; "screen" is there twice."""
    path = Path(taxonomy_module.__file__).parent / "ade20k_published.txt"
    return tuple(path.read_text(encoding="utf-8").splitlines())


def _ade20k(config: EvaluateConfig) -> Plan:
    labels = published_ade20k_labels()
    source = _sources(replace(config, datasets=("ade20k",)), native=True)["ade20k"]
    lut = np.full(256, IGNORE, np.uint8)
    lut[1:151] = np.arange(150)
    notes = []
    geometry = config.geometry or Geometry(mode="published")
    if geometry != Geometry(mode="published"):
        notes.append(f"geometry {geometry.mode} at {geometry.base_px} px, not the published one")
    if config.split != "val" or len(source) != 2000:
        notes.append(f"{len(source)} pictures of split {config.split}; published: 2000 of val")
    policy = config.other or OtherPolicy()
    if policy.policy != "none":
        notes.append(f"other: {policy}; published: none")
    space = space_of(labels, labels, lut).with_policy(policy)
    part = Part("ade20k", source, space, geometry)
    return Plan((part,), "classes", mean_over="all", notes=tuple(notes))


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


def _few_shot(config: EvaluateConfig) -> Plan:
    name = config.protocol
    if name not in config.roots:
        raise UserError(
            f"roots.{name}: not set, and protocol {name} reads an official download: set it"
        )
    few_shot = open_few_shot(name, config.roots[name], config.splits)
    geometry = config.geometry or Geometry(mode="squash")
    policy = config.other or OtherPolicy(policy="prompts", prompts=(FEW_SHOT_OTHER,))
    if policy.policy != "prompts":
        raise UserError(
            f"other.policy={policy.policy}: an episode has a class and a background, so {name} "
            f"needs prompts for the background: published is '{FEW_SHOT_OTHER}'"
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
        ids = tuple(i for i in few_shot.class_ids(fold) if any(e.class_id == i for e in episodes))
        names = few_shot.class_names()
        texts = tuple((*policy.prompts, names[i]) for i in ids)
        source = EpisodeItems(name, config.roots[name], chosen, texts, ids)
        part_name = f"fold{fold}" if few_shot.num_folds > 1 else "test"
        strata = tuple(names[i] for i in ids)
        parts.append(Part(part_name, source, space, geometry, strata))
    notes = list(few_shot.notes)
    if geometry != Geometry(mode="squash"):
        notes.append(f"geometry {geometry.mode}; published: squash to 480")
    if policy.prompts != (FEW_SHOT_OTHER,):
        notes.append(f"other: {policy}; published: {FEW_SHOT_OTHER}")
    if config.max_images:
        notes.append(f"max_images={config.max_images}: not all episodes")
    if config.seed:
        notes.append(f"seed={config.seed}; published: 0")
    return Plan(tuple(parts), "few-shot", notes=tuple(notes))
