import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.tracking.records import Record, RunIdentity, from_line, to_line

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
    "line",
    [
        b"",
        b"{}\n",
        b'{"kind": "metr',
        b"[1]\n",
        b'{"kind": "metrics", "surprise": 1}\n',
        b"[" * 100_000,
    ],
    ids=len,
)
def test_what_is_no_record_is_a_value_error(line):
    with pytest.raises(ValueError, match=r"."):
        from_line(line)


def test_a_file_name_that_is_not_utf8_stops_no_record():
    record = Record(kind="artifact", time_ms=1, path="/runs/caf\udce9.png")
    assert from_line(to_line(IDENTITY, record))[1].path == "/runs/caf?.png"
