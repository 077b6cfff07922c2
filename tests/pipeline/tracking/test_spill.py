import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.tracking.mlflow_run import in_batches, next_batch
from pipeline.tracking.spill import Record, RunIdentity, SpillFile, from_line, to_line

IDENTITY = RunIdentity(experiment="lseg", run_name="mix", run_key="k1")
_NAMES = st.text(min_size=1, max_size=12)
_RECORDS = st.one_of(
    st.builds(
        Record,
        kind=st.just("metrics"),
        time_ms=st.integers(0, 2**40),
        step=st.integers(0, 2**31),
        values=st.dictionaries(_NAMES, st.floats(allow_nan=False), max_size=4),
    ),
    st.builds(
        Record,
        kind=st.sampled_from(["params", "tags"]),
        time_ms=st.integers(0, 2**40),
        values=st.dictionaries(_NAMES, st.text(max_size=20), max_size=4),
    ),
    st.builds(
        Record, kind=st.just("text"), time_ms=st.just(1), text=st.text(), artifact_path=_NAMES
    ),
)


def _metrics(step: int, num: int = 1, key: str = "loss") -> Record:
    values = {f"{key}{i}": float(step) for i in range(num)}
    return Record(kind="metrics", time_ms=1000 + step, step=step, values=values)


@given(_RECORDS)
def test_a_line_holds_the_whole_record(record):
    line = to_line(IDENTITY, record)
    assert line.count(b"\n") == 1
    assert from_line(line) == (IDENTITY, record)


def test_nan_and_infinity_survive():
    record = Record(kind="metrics", time_ms=1, values={"a": math.nan, "b": -math.inf})
    values = from_line(to_line(IDENTITY, record))[1].values
    assert math.isnan(float(values["a"]))
    assert values["b"] == -math.inf


@pytest.mark.parametrize(
    "line", [b"", b"{}\n", b'{"kind": "metr', b"[1]\n", b'{"kind": "metrics", "surprise": 1}\n']
)
def test_what_is_no_record_is_a_value_error(line):
    with pytest.raises(ValueError, match=r"."):
        from_line(line)


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


def test_what_was_passed_leaves_the_file_and_the_rest_stays(tmp_path):
    spill = SpillFile(tmp_path / "deep" / "spill.jsonl")
    assert not spill.pending
    spill.append(IDENTITY, [_metrics(step) for step in range(5)])
    spill.advance(spill.read_lines(2))
    assert spill.count() == 3
    spill.append(IDENTITY, [_metrics(5)])
    spill.close()

    again = SpillFile(tmp_path / "deep" / "spill.jsonl")
    steps = [from_line(line)[1].step for line in again.read_lines(99)]
    assert steps == [2, 3, 4, 5]
    again.advance(again.read_lines(99))
    again.close()
    assert list((tmp_path / "deep").iterdir()) == []


def test_a_crash_while_compacting_loses_nothing(tmp_path):
    path = tmp_path / "spill.jsonl"
    path.touch()
    path.with_name("spill.jsonl.partial").write_bytes(to_line(IDENTITY, _metrics(7)))
    spill = SpillFile(path)
    assert [from_line(line)[1].step for line in spill.read_lines(9)] == [7]
    spill.close()
    assert [file.name for file in tmp_path.iterdir()] == ["spill.jsonl"]


def test_a_torn_line_costs_only_itself(tmp_path):
    path = tmp_path / "spill.jsonl"
    path.write_bytes(to_line(IDENTITY, _metrics(0)) + to_line(IDENTITY, _metrics(1))[:20])
    spill = SpillFile(path)
    spill.append(IDENTITY, [_metrics(2)])
    found = []
    while spill.pending:
        identity, batch, lines = next_batch(spill)
        found.append([record.step for record in batch] if identity else "torn")
        spill.advance(lines)
    assert found == [[0], "torn", [2]]


def test_a_batch_holds_one_run(tmp_path):
    spill = SpillFile(tmp_path / "spill.jsonl")
    other = RunIdentity(experiment="lseg", run_name="mix", run_key="k2")
    spill.append(IDENTITY, [_metrics(0), _metrics(1)])
    spill.append(other, [_metrics(2)])
    identity, batch, lines = next_batch(spill)
    assert (identity, [record.step for record in batch]) == (IDENTITY, [0, 1])
    spill.advance(lines)
    assert next_batch(spill)[0] == other


def test_a_copy_adds_what_the_file_lacks_and_a_torn_end_costs_only_itself(tmp_path):
    lines = [to_line(IDENTITY, _metrics(step)) for step in range(5)]
    spill = SpillFile(tmp_path / "spill.jsonl")
    assert spill.rest() == b""
    spill.append(IDENTITY, [_metrics(0), _metrics(1)])
    spill.add_lines(b"".join(lines[1:4]) + lines[4][:20])
    assert spill.rest() == b"".join(lines[:4]) + lines[4][:20] + b"\n"
    spill.advance(spill.read_lines(3))
    assert spill.rest() == lines[3] + lines[4][:20] + b"\n"
    assert spill.count() == 2
    spill.close()


@pytest.mark.parametrize("add", ["append", "add_lines"])
def test_a_full_disk_leaves_no_torn_line(tmp_path, monkeypatch, add):
    spill = SpillFile(tmp_path / "s.jsonl")
    spill.append(IDENTITY, [_metrics(0)])
    before = spill.rest()

    def full(file, data):
        file.write(data[:9])
        raise OSError(28, "No space left on device")

    arguments = {"append": (IDENTITY, [_metrics(1)]), "add_lines": (b"one\ntwo\n",)}
    monkeypatch.setattr("pipeline.tracking.spill._write_all", full)
    with pytest.raises(OSError, match="No space left"):
        getattr(spill, add)(*arguments[add])
    assert spill.rest() == before


def test_two_processes_cannot_use_one_file(tmp_path):
    first, second = SpillFile(tmp_path / "s.jsonl"), SpillFile(tmp_path / "s.jsonl")
    first.append(IDENTITY, [_metrics(0)])
    with pytest.raises(BlockingIOError):
        second.append(IDENTITY, [_metrics(1)])
    first.close()
    second.append(IDENTITY, [_metrics(1)])
    assert second.count() == 2
