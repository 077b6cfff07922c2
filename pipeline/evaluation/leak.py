"""Whether a figure is zero-shot: which classes and which images the training has seen.

By class: a tested class counts as seen when the checkpoint was trained on a label of the same
words, or on the universal class that the benchmark's class is called in MSeg's taxonomy. By
image: the keys of the training shards are compared with the protocol's, where both come from the
same dataset; COCO 2014's validation images are found in COCO 2017's training set by their number.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from pipeline.checkpoints.provenance import Provenance
from pipeline.data.datasets.suite import suite_table
from pipeline.data.taxonomy import DATASETS, label_text
from pipeline.evaluation.config import EvaluateConfig
from pipeline.evaluation.few_shot import EpisodeItems
from pipeline.evaluation.held_out import HeldOutItems
from pipeline.evaluation.items import RootItems, ShardItems
from pipeline.evaluation.plan import Part, ProtocolPlan
from pipeline.evaluation.suite import IN_DOMAIN, SuiteItems

SYNONYMS = {
    "aeroplane": "airplane",
    "motorbike": "motorcycle",
    "boat": "boat ship",
    "chair": "chair other",
    "diningtable": "table",
    "tvmonitor": "television",
    "tv": "television",
    "sofa": "couch",
    "pottedplant": "potted plant",
    "cellphone": "cell phone",
    "hairdrier": "hair dryer",
    "counter": "counter other",
    "curtain": "curtain other",
    "water": "water other",
    "food": "food other",
    "stopsign": "traffic sign",
    "handbag": "bag",
    "doughnut": "donut",
}
"""Names of benchmarks -> words of MSeg's universal classes, where they differ by more than
spaces."""

COCO_STUFF = "coco_stuff"
"""What the recipe of CAT-Seg's own training calls its dataset: photographs of COCO's train2017."""

FLICKR = (
    "trained on COCO; COCO and PASCAL both took their images from Flickr, and the names do not "
    "show whether some are the same"
)


@dataclass
class LeakReport:
    """Which of the tested classes and images the training has seen."""

    known: bool
    """Whether the checkpoint records what it was trained on."""
    reasons: list[str] = field(default_factory=list)
    seen_classes: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """Names of the classes that were trained, by part."""
    num_classes: dict[str, int] = field(default_factory=dict)
    seen_images: dict[str, int | None] = field(default_factory=dict)
    """Number of images that were trained, by part; None where it cannot be decided."""
    num_images: dict[str, int] = field(default_factory=dict)

    @property
    def zero_shot(self) -> str:
        """`yes`, `no`, or `unknown`; `yes` only where no class and no image was seen."""
        if not self.known:
            return "unknown"
        if any(self.seen_classes.values()) or any(self.seen_images.values()):
            return "no"
        undecided = any(seen is None for seen in self.seen_images.values())
        return "unknown" if undecided else "yes"


def check_leaks(config: EvaluateConfig, plan: ProtocolPlan, provenance: Provenance) -> LeakReport:
    """Compares a checkpoint's past with a protocol."""
    report = LeakReport(provenance.is_known)
    if not provenance.is_known:
        report.reasons.append("the checkpoint does not say what it was trained on")
        return report
    trained = {form for label in provenance.labels for form in _forms(label)}
    for part in plan.parts:
        tested = _tested(plan, part)
        seen = tuple(n for n, words in tested.items() if any(_forms(w) & trained for w in words))
        report.seen_classes[part.name] = seen
        report.num_classes[part.name] = len(tested)
        report.num_images[part.name] = len(part.source)
        if seen:
            report.reasons.append(
                f"{part.name}: {len(seen)} of {len(tested)} classes were trained "
                f"({', '.join(seen[:5])}{', ...' if len(seen) > 5 else ''})"
            )
        report.seen_images[part.name], why = _seen_images(config, part, provenance)
        if why:
            report.reasons.append(f"{part.name}: {why}")
    return report


def _tested(plan: ProtocolPlan, part: Part) -> dict[str, tuple[str, ...]]:
    """The classes that are tested, and all words that stand for each."""
    if plan.kind == "few-shot":
        return {name: (name,) for name in part.strata}
    words = {name: [name] for name in part.space.classes}
    for text, number in zip(part.space.texts, part.space.text_class, strict=True):
        if 0 <= number < len(part.space.classes):
            words[part.space.classes[number]].append(text)
    background = None if part.space.rest is None else part.space.classes[part.space.rest]
    return {name: tuple(found) for name, found in words.items() if name != background}


def _plain(words: str) -> str:
    return re.sub(r"[\s_\-]", "", words.lower())


def _forms(name: str) -> set[str]:
    """A name's own words and those of its universal class, however either are spaced."""
    plain = _plain(label_text(name))
    return {plain, _plain(SYNONYMS.get(plain, plain))}


def _seen_images(
    config: EvaluateConfig, part: Part, provenance: Provenance
) -> tuple[int | None, str]:
    """The number of a part's images in the training shards, and a remark about it."""
    source = part.source
    if provenance.has_many:
        return None, "trained on many datasets, whose images are not compared with these"
    own = sorted(set(provenance.datasets) - set(DATASETS))
    if isinstance(source, EpisodeItems):
        seen, why = _seen_episodes(source, provenance)
        return (seen, why) if seen or not own else (None, why or _own(own))
    if isinstance(source, SuiteItems):
        return _seen_of_suite(source.dataset, provenance)
    if isinstance(source, HeldOutItems):
        if own:
            return None, _own(own)
        if source.dataset.startswith(("voc", "pascal")) and "coco_panoptic" in provenance.datasets:
            return None, FLICKR
        return 0, ""
    if not isinstance(source, ShardItems | RootItems):
        return None, "images of an unknown kind"
    dataset = source.dataset
    if dataset not in provenance.datasets:
        return 0, ""
    split = config.split if isinstance(source, RootItems) else source.manifest.split
    trained_split = provenance.group("data").get("train_split", "train")
    if split != trained_split:
        return 0, ""
    manifest = provenance.manifests.get(dataset)
    if manifest is None:
        return len(source), f"the training used split {split} of {dataset}, as this evaluation does"
    keys = {record.key for shard in manifest.shards for record in shard.samples}
    seen = sum(key in keys for key in source.keys())
    return seen, f"{seen} of {len(source)} images were trained" if seen else ""


def _seen_of_suite(dataset: str, provenance: Provenance) -> tuple[int | None, str]:
    """What training shows of a set of the suite."""
    trained = set(provenance.datasets)
    if COCO_STUFF in trained and _is_coco_stuff(provenance.labels):
        trained = trained - {COCO_STUFF} | {"coco_panoptic"}  # Of the same pictures.
    sibling = IN_DOMAIN.get(dataset)
    if sibling in trained:
        return 0, f"in-domain: trained on {sibling}, whose validation pictures these are"
    if own := sorted(trained - set(DATASETS)):
        return None, _own(own)
    if dataset.startswith("p") and "coco_panoptic" in trained:
        return None, FLICKR
    return 0, ""


def _is_coco_stuff(labels: Sequence[str]) -> bool:
    """Whether a checkpoint's labels are COCO-Stuff's, so that a dataset of that name is it."""
    known = {_plain(entry.name) for entry in suite_table("coco-stuff-171")}
    return bool(labels) and {_plain(label) for label in labels} <= known


def _own(datasets: Sequence[str]) -> str:
    return f"trained on {', '.join(datasets)}, of whose images nothing is known"


def _seen_episodes(source: EpisodeItems, provenance: Provenance) -> tuple[int | None, str]:
    if "coco_panoptic" not in provenance.datasets or source.dataset == "fss-1000":
        return 0, ""
    if source.dataset == "pascal-5i":
        return None, FLICKR
    manifest = provenance.manifests.get("coco_panoptic")
    if manifest is None:
        return None, (
            "trained on COCO train2017, which holds most of val2014; the training shards are not "
            "there any more to count how many of these images"
        )
    keys = [record.key for shard in manifest.shards for record in shard.samples]
    trained = {number for key in keys if (number := coco_number(key)) is not None}
    seen = sum(coco_number(key.partition("#")[0]) in trained for key in source.keys())
    return seen, f"{seen} of {len(source)} episodes show images of the training" if seen else ""


def coco_number(name: str) -> int | None:
    """COCO's number of an image: 12 digits at the end of the stem, in every release."""
    match = re.search(r"(\d{12})(?:\.jpg)?$", name)
    return int(match[1]) if match else None
