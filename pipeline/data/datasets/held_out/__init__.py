"""MSeg's six held-out sets: official layouts, stored ids, and which universal classes they mean.

The tables are MSeg's (Lambert et al., CVPR 2020; mseg-api's master table, CC BY 4.0): a universal
class belongs to at most one class of each set, and a set's class has the probability of all its
universal classes together. Stored ids are the values in the label files.
"""

from dataclasses import dataclass
from functools import cache
from pathlib import Path

from pipeline.data.datasets.held_out.readers import HELD_OUT_LAYOUTS, HeldOutReader
from pipeline.data.taxonomy import read_tsv
from pipeline.errors import UserError
from pipeline.storage.open import open_storage

HELD_OUT_SETS = tuple(HELD_OUT_LAYOUTS)
"""Names of the sets, in the order of MSeg's table."""


@dataclass(frozen=True)
class HeldOutClass:
    """One class of a held-out set."""

    stored_id: int
    name: str
    universal_names: tuple[str, ...]
    """The universal classes that it covers; two of PASCAL Context cover none: never found."""


@cache
def held_out_table(dataset: str) -> tuple[HeldOutClass, ...]:
    """All classes of a set, in the order of their stored ids."""
    return tuple(
        HeldOutClass(
            int(row["stored_id"]),
            row["name"],
            tuple(name for name in row["universal_names"].split(",") if name),
        )
        for row in read_tsv(Path(__file__).parent / f"{dataset}.tsv")
    )


def open_held_out(dataset: str, root_uri: str) -> HeldOutReader:
    """Opens a set's download.

    Raises:
        UserError: The root does not hold what the set's layout names.
    """
    layout = HELD_OUT_LAYOUTS[dataset]
    root = open_storage(root_uri)
    for base in ("", *root.folders()[:50]):
        if (reader := HeldOutReader(layout, root, base)).is_there():
            return reader
    raise UserError(
        f"roots.{dataset}={root_uri}: must hold {layout}: it holds "
        f"{', '.join(root.folders()[:8]) or 'no folders'}"
    )
