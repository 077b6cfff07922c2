"""How lines are grouped into calls; `test_tracker.py` has the calls themselves."""

from hypothesis import given
from hypothesis import strategies as st

from pipeline.tracking.delivery import in_batches, next_batch
from pipeline.tracking.records import Record, RunIdentity, to_line

IDENTITY = RunIdentity(experiment="lseg", run_name="mix", run_key="k1")


def _metrics(step: int, num: int = 1) -> Record:
    values = {f"loss{i}": float(step) for i in range(num)}
    return Record(kind="metrics", time_ms=1000 + step, step=step, values=values)


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["metrics", "params", "tags", "text", "artifact"]), st.integers(1, 100)
        ),
        max_size=60,
    )
)
def test_batches_keep_the_order_and_the_limits_of_mlflow(shapes):
    records = [
        Record(
            kind=kind,
            time_ms=index,
            values={f"k{i}": "v" for i in range(num)}
            if kind in ("metrics", "params", "tags")
            else {},
        )
        for index, (kind, num) in enumerate(shapes)
    ]
    batches = list(in_batches(records))
    assert [record for batch in batches for record in batch] == records
    for batch in batches:
        sizes = {
            kind: sum(len(r.values) for r in batch if r.kind == kind)
            for kind in ("metrics", "params", "tags")
        }
        assert sum(sizes.values()) <= 1000
        assert sizes["params"] <= 100
        assert sizes["tags"] <= 100
        assert len(batch) == 1 or all(r.kind in sizes for r in batch)


def test_many_metrics_share_a_call():
    assert len(list(in_batches([_metrics(step, 10) for step in range(200)]))) == 2


def test_a_batch_holds_one_run(tmp_path):
    other = RunIdentity(experiment="lseg", run_name="mix", run_key="k2")
    lines = [to_line(IDENTITY, _metrics(step)) for step in (0, 1)] + [to_line(other, _metrics(2))]
    identity, batch = next_batch(lines)
    assert (identity, [record.step for record in batch]) == (IDENTITY, [0, 1])
    assert next_batch(lines[2:])[0] == other
