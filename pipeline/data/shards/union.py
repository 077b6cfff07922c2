"""The one label space of a training run over shards whose labels are stored in several.

Classes are the same when their names are. The universal classes come first, if any shards use them,
so that a run over universal shards alone keeps their ids; then come those that a dataset of the
user's, or a dataset in its own classes, adds.
"""

from collections import Counter
from collections.abc import Iterable, Mapping

import numpy as np

from pipeline.data.shards.format import Manifest
from pipeline.data.taxonomy import IGNORE, Taxonomy, id_table, universal
from pipeline.errors import UserError, printable


def union_of(manifests: Mapping[str, Manifest]) -> Taxonomy:
    """The classes of all manifests, by name; their order, and that of each one's classes, is kept.

    Raises:
        UserError: There are more classes than an 8-bit label holds, or labels of an unknown space.
    """
    names: dict[str, None] = {}
    known = universal()
    for dataset, manifest in manifests.items():
        if odd := _odd_name(manifest):
            raise UserError(f"{dataset}/{manifest.split}: {odd}: convert the dataset again")
        if len({*manifest.class_names}) < len(manifest.class_names):
            raise UserError(
                f"{dataset}/{manifest.split}: the manifest names a class twice: convert the "
                "dataset again"
            )
        if not manifest.classes and manifest.taxonomy_fingerprint != known.fingerprint:
            raise UserError(
                f"{dataset}/{manifest.split}: {_stranger(manifest, known)}: convert the dataset "
                "again"
            )
        if manifest.classes[: len(known.classes)] in ((), known.classes):
            names = dict.fromkeys((*known.classes, *names))
        names |= dict.fromkeys(manifest.class_names)
    if tuple(names) == known.classes:
        return known
    if len(names) > IGNORE:
        counts = ", ".join(f"{d} {len(m.class_names)}" for d, m in manifests.items())
        raise UserError(
            f"data.shards: {len(names)} classes of different names ({counts}): must be at most "
            f"{IGNORE} together: name fewer of them in data.weights, or use one taxonomy"
        )
    return Taxonomy("+".join(dict.fromkeys(m.taxonomy for m in manifests.values())), tuple(names))


def label_problems(manifest: Manifest) -> list[str]:
    """Why the labels of one manifest cannot be trained on, or not as it says; nothing if they can.

    The doctor reports them; `union_of` refuses the ones that no training can work with.
    """
    known, classes = universal(), manifest.classes
    problems = []
    if not classes and manifest.taxonomy_fingerprint != known.fingerprint:
        problems.append(_stranger(manifest, known))
    if classes and Taxonomy(manifest.taxonomy, classes).fingerprint != (
        manifest.taxonomy_fingerprint
    ):
        problems.append("the taxonomy's fingerprint is not that of its classes")
    if len(classes) > IGNORE:
        problems.append(f"{len(classes)} classes: must be at most {IGNORE}")
    if twice := sorted(name for name, count in Counter(classes).items() if count > 1):
        problems.append(f"classes that come twice: {', '.join(twice[:5])}")
    if odd := _odd_name(manifest):
        problems.append(odd)
    return problems


def _odd_name(manifest: Manifest) -> str:
    """Says which class could be no label of a checkpoint, each of which is a line of a file."""
    odd = next((n for n in manifest.classes if not n.strip() or n.splitlines() != [n]), None)
    if odd is None:
        return ""
    return f"the manifest names a class {printable(odd)[:60]!r}: a name must be one line of text"


def ids_in(manifest: Manifest, taxonomy: Taxonomy) -> np.ndarray | None:
    """The table from a manifest's stored ids to those of a taxonomy.

    Returns:
        (256,) uint8, IGNORE for what is no id and for classes that the taxonomy lacks; None where
        the ids are the same.
    """
    if manifest.class_names == taxonomy.classes[: len(manifest.class_names)]:
        return None
    ids = {name: number for number, name in enumerate(taxonomy.classes)}
    return id_table({i: ids[n] for i, n in enumerate(manifest.class_names) if n in ids})


def pixels_in(manifests: Iterable[Manifest], taxonomy: Taxonomy) -> np.ndarray:
    """Labelled pixels of each class of a taxonomy over some manifests: (K,) int64."""
    pixels = np.zeros(len(taxonomy.classes), np.int64)
    for manifest in manifests:
        for name, count in zip(manifest.class_names, manifest.class_pixels, strict=True):
            pixels[taxonomy.id_of(name)] += count
    return pixels


def _stranger(manifest: Manifest, known: Taxonomy) -> str:
    """Says that a manifest's classes are none that this program has, or others of their name."""
    if manifest.taxonomy == known.name:
        return (
            f"labels of another {known.name} (fingerprint {manifest.taxonomy_fingerprint[:16]!r}, "
            f"and {known.fingerprint!r} here)"
        )
    return (
        f"labels of taxonomy {manifest.taxonomy!r}, which this program does not know (it has "
        f"{known.name})"
    )
