"""The digest of a step: the same however rows are dealt, another for any other row."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np

from pipeline.checkpoints.files import ORDER
from pipeline.data.ingest.mixture import Mixture
from pipeline.training.state import order
from pipeline.training.state.order import StreamOrder, wrapped

SIZES = {"one": 7, "two": 5}
BATCH = 6


def plan(seed: int = 0, prefix: str = "") -> StreamOrder:
    def manifest(name: str) -> SimpleNamespace:
        keys = [SimpleNamespace(key=f"{prefix}{name}-{i}") for i in range(SIZES[name])]
        return SimpleNamespace(shards=[SimpleNamespace(samples=keys)])

    corpus = SimpleNamespace(manifests={name: manifest(name) for name in SIZES})
    return StreamOrder(Mixture(SIZES, {"one": 1, "two": 2}, BATCH, seed), corpus)  # type: ignore[arg-type]


def digest(rows, of: StreamOrder | None = None) -> int:
    return (of or plan()).digest(rows, [7 * row.t for row in rows])


def test_the_digest_does_not_depend_on_the_workers():
    for step in range(20):
        rows = plan().rows(step)
        assert [row.t for row in rows] == list(range(step * BATCH, (step + 1) * BATCH))
        whole = digest(rows)
        for workers in (2, 3, 6):
            parts = [digest(rows[worker::workers]) for worker in range(workers)]
            summed = np.array(parts, np.int64).sum()  # Overflows as an all-reduce does.
            assert int(summed) == wrapped(sum(parts)) == whole


def test_another_row_has_another_digest():
    rows = plan().rows(3)
    first = rows[0]
    changes = [
        replace(first, t=first.t + 1),
        replace(first, seed=first.seed + 1),
        replace(first, sample=(first.sample + 1) % 5),
    ]
    digests = {digest([row, *rows[1:]]) for row in (first, *changes)}
    digests |= {digest(rows, plan(prefix="x")), digest(rows[1:]), digest(rows[:1])}
    digests.add(plan().digest(rows, [0, *(7 * row.t for row in rows[1:])]))
    assert len(digests) == 8


def test_digests_survive_a_file(tmp_path):
    digests = [0, -1, 2**63 - 1, -(2**63), 12345]
    order.write(tmp_path / ORDER, digests)
    assert order.read(tmp_path / ORDER) == digests
    assert order.summary(digests) != order.summary(digests[:-1])
    assert order.read(_empty(tmp_path)) == []


def _empty(folder):
    path = folder / "empty.txt"
    path.write_text("")
    return path
