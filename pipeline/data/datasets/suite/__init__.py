"""The open-vocabulary suite: seven sets that published figures are made on, and their classes.

    a-150, a-847       ADE20K: 150 classes of the challenge, 847 of the full release 2021_17_01
    pc-59, pc-459      PASCAL Context, as VOC 2010's validation shows it
    pas-20, pas-20b    PASCAL VOC 2012, without and with the background
    coco-stuff-171     COCO-Stuff 164k, which the published models are trained on

Classes are numbered as everywhere in this field, from 0; `value` is what an official label file
holds. Names are CAT-Seg's prompts, synonyms FC-CLIP's (copied from their repositories).
"""

from dataclasses import dataclass
from functools import cache
from pathlib import Path

from pipeline.data.datasets.suite.readers import LAYOUTS, SuiteReader
from pipeline.data.taxonomy import read_tsv
from pipeline.errors import UserError
from pipeline.storage.open import open_storage

SUITE_SETS = tuple(LAYOUTS)
"""Names of the sets, which are names of protocols too."""
BACKGROUND = "background"
NUM_PUBLISHED = {
    "a-150": 2000,
    "a-847": 2000,
    "pc-59": 5104,
    "pc-459": 5104,
    "pas-20": 1449,
    "pas-20b": 1449,
    "coco-stuff-171": 5000,
}
"""Images of each set."""


@dataclass(frozen=True)
class SuiteClass:
    """One class of a set; its number is its place in the table."""

    value: int
    """Its value in official label files."""
    name: str
    """CAT-Seg's prompt; several names stand between commas."""
    synonyms: tuple[str, ...]
    """FC-CLIP's names."""


@cache
def suite_table(dataset: str) -> tuple[SuiteClass, ...]:
    """The classes of a set, in the order of their numbers."""
    folder = Path(__file__).parent
    table = tuple(
        SuiteClass(int(row["value"]), row["name"], tuple(row["synonyms"].split(",")))
        for row in read_tsv(folder / f"{dataset.removesuffix('b')}.tsv")
    )
    if dataset == "pas-20b":
        table = (*table, SuiteClass(0, BACKGROUND, background_words()))
    return table


@cache
def background_words() -> tuple[str, ...]:
    """What is asked of pas-20b beside VOC's classes: 39 of PASCAL Context's, all background."""
    path = Path(__file__).parent / "pas-20b-background.txt"
    return tuple(path.read_text(encoding="utf-8").splitlines())


def open_suite_set(dataset: str, root_uri: str) -> SuiteReader:
    """Opens a set, as downloaded or as others prepare it.

    Raises:
        UserError: The root is neither.
    """
    root = open_storage(root_uri)
    values = tuple(entry.value for entry in suite_table(dataset))
    for base in ("", *root.folders()[:50]):
        for layout in LAYOUTS[dataset]:
            if (reader := SuiteReader(dataset, layout, root, base, values)).is_there():
                return reader
    wanted = "; or ".join(str(layout) for layout in LAYOUTS[dataset])
    raise UserError(
        f"roots.{dataset}={root_uri}: must hold {wanted}: it holds "
        f"{', '.join(root.folders()[:8]) or 'no folders'}"
    )
