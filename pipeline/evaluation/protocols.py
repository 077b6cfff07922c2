"""Which images each protocol scores, what it asks, and how the network sees them.

unified         validation sets in MSeg's universal classes
native-names    a dataset's own classes, asked by the dataset's own label names
native-mapped   a dataset's own classes, from universal ones: probabilities summed
ade20k-150      LSeg's table 6: the labels as published, six scales, flips, windows
pascal-5i, coco-20i, fss-1000    zero-shot episodes of HSNet, as LSeg scores them
held-out        MSeg's six held-out sets, mapped; harmonic mean
a-150, ...      the open-vocabulary suite, each set in its own classes; see `suite`
behaviours      the four behaviours of LSeg's first figure; see `behaviours`
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

import pipeline.data.taxonomy as taxonomy_module
from pipeline.checkpoints.provenance import PUBLISHED_SIZE, TrainedSize
from pipeline.data.datasets import open_reader
from pipeline.data.datasets.base import ALL_SPLITS
from pipeline.data.datasets.few_shot import FEW_SHOT_SETS
from pipeline.data.ingest.stream import Corpus, open_corpus
from pipeline.data.prepare.relabel import split_classes
from pipeline.data.shards.format import Manifest, find_manifests
from pipeline.data.shards.union import ids_in, union_of
from pipeline.data.taxonomy import (
    DATASETS,
    IGNORE,
    Taxonomy,
    label_text,
    lookup_table,
    native_table,
    universal,
)
from pipeline.errors import UserError, did_you_mean
from pipeline.evaluation.config import SUITE_PROTOCOLS, EvaluateConfig, OtherPolicy
from pipeline.evaluation.items import ItemSource, RootItems, ShardItems
from pipeline.evaluation.plan import Part, ProtocolPlan, calibrated, with_policy
from pipeline.evaluation.views import View, size_remark, view_of
from pipeline.scoring import DROPPED, AnswerSpace, evenly, space_of
from pipeline.storage.open import open_storage

ANYTHING_ELSE = "(other)"
"""The class of all pixels that a zero-shot question does not name; itself not scored."""


def make_plan(
    config: EvaluateConfig, trained: Sequence[str], size: TrainedSize = PUBLISHED_SIZE
) -> ProtocolPlan:
    """Builds the parts of the configured protocol for a checkpoint.

    Args:
        config: The protocol, and what departs from it.
        trained: The labels that the checkpoint was trained on.
        size: How large its training saw images.

    Raises:
        UserError: Data that the protocol needs is missing, or a setting does not go with it.
    """
    plan = _plan(config, trained, size)
    if config.mean_over is None or config.mean_over == plan.mean_over:
        return plan
    if plan.kind == "few-shot":
        raise UserError(
            f"mean_over={config.mean_over}: has no effect on protocol {config.protocol}, whose "
            "mean is over all classes of a fold: leave it out"
        )
    note = f"mean over {config.mean_over}; the protocol's: {plan.mean_over}"
    return replace(plan, mean_over=config.mean_over, notes=(*plan.notes, note))


def _plan(config: EvaluateConfig, trained: Sequence[str], size: TrainedSize) -> ProtocolPlan:
    if config.protocol in FEW_SHOT_SETS:
        from pipeline.evaluation.few_shot import few_shot_plan

        return few_shot_plan(config, size)
    if config.protocol in SUITE_PROTOCOLS:
        from pipeline.evaluation.suite import suite_plan

        return suite_plan(config, size)
    if config.protocol == "held-out":
        from pipeline.evaluation.held_out import held_out_plan

        return held_out_plan(config, size)
    if config.protocol == "ade20k-150":
        return _ade20k(config, size)
    native = config.protocol != "unified"
    if native and config.labels != "all":
        raise UserError(
            f"labels={config.labels}: has no effect on protocol {config.protocol}: leave it out"
        )
    unseen, alone = config.labels == "unseen", config.labels == "unseen-alone"
    policy = config.other or OtherPolicy(policy="prompts" if unseen else "none")
    if alone and policy.policy != "none":
        raise UserError(
            f"other.policy={policy.policy}: with labels=unseen-alone pixels of other classes do "
            "not count: leave it out, or set labels=unseen"
        )
    if unseen and policy.policy == "none":
        raise UserError(
            "other.policy=none: with labels=unseen most pixels are of other classes, so it must be "
            "prompts or threshold"
        )
    sources = _sources(config, native)
    spaces, equal, notes = {}, {}, []
    if native:
        for dataset in sources:
            spaces[dataset], same = _native_space(config, dataset)
            if same:
                equal[dataset] = same
            notes.append(
                f"{dataset}: scored in {len(spaces[dataset].classes)} of its own classes, those "
                "that the taxonomy has a class for"
            )
    else:
        taxonomy = _taxonomy(sources)
        if config.labels == "native":
            spaces = {n: own_space(config, s, taxonomy) for n, s in sources.items()}
        else:
            names = _unified_names(config, trained, sources, taxonomy)
            spaces = {n: _unified_space(config, s, names, taxonomy) for n, s in sources.items()}
    geometry = view_of(config, size)
    spaces = {n: with_policy(space, policy) for n, space in spaces.items()}
    spaces = {n: calibrated(space, trained, config.calibration) for n, space in spaces.items()}
    parts = [Part(n, s, spaces[n], geometry) for n, s in sources.items()]
    unscored = frozenset({ANYTHING_ELSE} if unseen else ())
    return ProtocolPlan(
        tuple(parts), "classes", equal_classes=equal, unscored=unscored, notes=tuple(notes)
    )


def size_remarks(plan: ProtocolPlan, trained: TrainedSize) -> tuple[str, ...]:
    """Remarks on parts whose images are seen at another size than in training, each once."""
    remarks = (size_remark(part.geometry, trained) for part in plan.parts)
    return tuple(dict.fromkeys(filter(None, remarks)))


def native_classes(dataset: str) -> tuple[tuple[int, str], ...]:
    """Id on disk and label text of the classes that a dataset's own benchmark scores.

    They are the classes that its table maps to a universal one; Cityscapes so keeps its 19.
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


def _unified_space(
    config: EvaluateConfig, source: ItemSource, names: Sequence[str], taxonomy: Taxonomy
) -> AnswerSpace:
    """The answer space of a dataset in classes of `taxonomy`, of which `names` are asked."""
    texts = [label_text(name) for name in names]
    rest = len(names) if config.labels == "unseen" else None
    lut = np.full(256, IGNORE, np.uint8)
    if rest is not None:
        lut[: len(taxonomy.classes)] = rest
    for position, name in enumerate(names):
        lut[taxonomy.id_of(name)] = position
    if isinstance(source, ShardItems):
        stored = ids_in(source.manifest, taxonomy)
        lut = lut if stored is None else lut[stored]
    if rest is None:
        return space_of(names, texts, lut)
    return space_of([*names, ANYTHING_ELSE], texts, lut, range(rest), rest)


def own_space(config: EvaluateConfig, source: ItemSource, taxonomy: Taxonomy) -> AnswerSpace:
    """The answer space of a dataset's own classes, asked by the words of its own table.

    Shards that say no words are asked by the names of the classes that any of their splits shows.

    Raises:
        UserError: The dataset is read from an official download, which another protocol is for.
    """
    if isinstance(source, RootItems):
        raise UserError(
            f"labels=native: {source.dataset} is read from an official download: use protocol "
            "native-names"
        )
    assert isinstance(source, ShardItems)
    manifest = source.manifest
    pairs = manifest.own_words
    if not pairs:
        storage = open_storage(config.shards)
        there = (find_manifests(storage, split).get(manifest.dataset) for split in ALL_SPLITS)
        seen = {name for each in (manifest, *there) if each for name in each.classes_seen}
        pairs = tuple((name, label_text(name)) for name in manifest.class_names if name in seen)
    names = list(dict.fromkeys(name for name, _ in pairs))
    words = {label_text(word): names.index(name) for name, word in pairs}
    lut = np.full(256, IGNORE, np.uint8)
    for position, name in enumerate(names):
        lut[taxonomy.id_of(name)] = position
    stored = ids_in(manifest, taxonomy)
    lut = lut if stored is None else lut[stored]
    return space_of(names, tuple(words), lut, tuple(words.values()))


def _native_space(config: EvaluateConfig, dataset: str) -> tuple[AnswerSpace, tuple[int, ...]]:
    """The answer space of a dataset's own classes, and which of them no answer separates."""
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
    position_of = {native_id: position for position, (native_id, _) in enumerate(classes)}
    parts = {}
    for name, natives in split_classes(dataset).items():
        found = [position_of[native_id] for native_id in natives if native_id in position_of]
        if found:  # A class that MSeg has cut out of this one: its pixels are this one's.
            parts[universal().id_of(name)] = found[0]
    owner = parts | first
    text_class = [owner.get(uid, DROPPED) for uid in range(len(texts))]
    same = tuple(first[uid] for uid in universal_ids)
    return space_of(names, texts, lut, text_class), _numbered(same)


def _numbered(same: tuple[int, ...]) -> tuple[int, ...]:
    """Consecutive numbers for groups; empty where every class is its own."""
    if len(set(same)) == len(same):
        return ()
    order = {value: number for number, value in enumerate(dict.fromkeys(same))}
    return tuple(order[value] for value in same)


def _taxonomy(sources: Mapping[str, ItemSource]) -> Taxonomy:
    """The universal classes, and those that shards of a user's own dataset add."""
    manifests = {n: s.manifest for n, s in sources.items() if isinstance(s, ShardItems)}
    if not manifests:
        return universal()
    taxonomy, known = union_of(manifests), universal()
    if len(manifests) < len(sources) and taxonomy.classes[: len(known.classes)] != known.classes:
        raise UserError(
            "roots: an official download is read in the universal classes, and the shards hold "
            "others: name one kind in datasets"
        )
    return taxonomy


def _unified_names(
    config: EvaluateConfig,
    trained: Sequence[str],
    sources: Mapping[str, ItemSource],
    taxonomy: Taxonomy,
) -> tuple[str, ...]:
    """The classes that `labels` asks for."""
    if config.labels == "all":
        return taxonomy.classes
    by_text = {label_text(name): name for name in taxonomy.classes}
    words = [label_text(label) for label in trained]
    names = tuple(dict.fromkeys(by_text[word] for word in words if word in by_text))
    if not names:
        raise UserError(
            f"labels={config.labels}: must be a checkpoint trained on classes of this data, and "
            f"none of its {len(trained)} labels is one: set labels=all"
        )
    if config.labels == "checkpoint":
        return names
    shown: set[str] = set()
    for source in sources.values():
        if isinstance(source, ShardItems):
            pairs = zip(source.manifest.class_names, source.manifest.class_pixels, strict=True)
            shown |= {name for name, count in pairs if count}
        elif isinstance(source, RootItems):  # What it shows is not known before it is read.
            shown |= {n.universal_name for n in native_table(source.dataset) if n.universal_name}
    unseen = tuple(n for n in taxonomy.classes if n in shown and n not in set(names))
    if not unseen:
        raise UserError(
            f"labels={config.labels}: the checkpoint was trained on every class that is shown"
        )
    return unseen


def _sources(config: EvaluateConfig, native: bool) -> dict[str, ItemSource]:
    """The images of each dataset: from its root where one is given, else from shards."""
    unknown = [name for name in config.roots if name not in DATASETS]
    if unknown:
        raise UserError(
            f"roots.{unknown[0]}: not a dataset of protocol {config.protocol}"
            f"{did_you_mean(unknown[0], DATASETS)}: use {', '.join(DATASETS)}"
        )
    sources: dict[str, ItemSource] = {}
    manifests: dict[str, Manifest] = {}
    if config.shards:
        manifests = open_shards(config).manifests
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
            if native:
                _check_native(config, manifest)
            indices = evenly(manifest.num_samples, config.max_images)
            sources[name] = ShardItems(name, config.shards, indices, manifest, native)
        else:
            raise UserError(
                f"datasets={name}: must be one of {', '.join(available)}"
                f"{did_you_mean(name, available)}"
            )
    return sources


def open_shards(config: EvaluateConfig) -> Corpus:
    """The shards that are configured.

    Raises:
        UserError: There are none.
    """
    if not config.shards:
        raise UserError(f"shards='': protocol {config.protocol} needs prepared shards: set it")
    try:
        return open_corpus(config.shards, config.split)
    except UserError as error:  # The key has another name in the configuration of a training.
        raise UserError(str(error).removeprefix("data.")) from None


def _check_native(config: EvaluateConfig, manifest: Manifest) -> None:
    """Refuses shards that do not hold a dataset's own ids beside the unified ones."""
    where = f"shards={config.shards}: {manifest.dataset}/{manifest.split}"
    if manifest.dataset not in DATASETS or manifest.classes:
        raise UserError(
            f"{where} stores its own classes alone, which protocol {config.protocol} is not for: "
            "use protocol unified"
        )
    if not manifest.settings.get("native"):
        raise UserError(
            f"{where} holds no native labels, which protocol {config.protocol} needs: give "
            f"roots.{manifest.dataset}, or convert with --native true"
        )


def _root_items(config: EvaluateConfig, dataset: str, native: bool) -> RootItems:
    root = config.roots[dataset]
    if config.split not in ("train", "val"):
        raise UserError(f"split={config.split!r}: an official download has train and val")
    sources = open_reader(dataset, root).listing(config.split).sources  # type: ignore[arg-type]
    if not sources:
        raise UserError(f"roots.{dataset}={root}: holds no image with a label in {config.split}")
    chosen = tuple(sources[index] for index in evenly(len(sources), config.max_images))
    return RootItems(dataset, root, chosen, native)


def published_ade20k_labels() -> tuple[str, ...]:
    """LSeg's 150 labels of ADE20K, as its label file truncates them; "screen" is there twice."""
    path = Path(taxonomy_module.__file__).parent / "ade20k_published.txt"
    return tuple(path.read_text(encoding="utf-8").splitlines())


def _ade20k(config: EvaluateConfig, size: TrainedSize) -> ProtocolPlan:
    labels = published_ade20k_labels()
    source = _sources(replace(config, datasets=("ade20k",)), native=True)["ade20k"]
    lut = np.full(256, IGNORE, np.uint8)
    lut[1:151] = np.arange(150)
    notes = []
    geometry = view_of(config, size)
    if geometry != View(mode="published"):
        notes.append(f"geometry {geometry.mode} at {geometry.base_px} px, not the published one")
    if config.split != "val" or len(source) != 2000:
        notes.append(f"{len(source)} images of split {config.split}; published: 2000 of val")
    if isinstance(source, ShardItems):
        notes.append("from shards, which may be shrunk; published: the original files")
    policy = config.other or OtherPolicy()
    if policy.policy != "none":
        notes.append(f"other: {policy}; published: none")
    space = with_policy(space_of(labels, labels, lut), policy)
    part = Part("ade20k", source, space, geometry)
    return ProtocolPlan((part,), "classes", mean_over="all", notes=tuple(notes))
