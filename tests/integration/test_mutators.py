"""The damage of the fuzzer is the same for a seed, and finds a weak reader."""

import io
import json
import random
import zipfile

import pytest

from tests.benchmarks.fuzz import Report, damaged, run
from tests.support.archive_mutators import members, zipped
from tests.support.fuzz_target import Target
from tests.support.mutators import BLIND
from tests.support.text_mutators import json_fields


def weak(data: bytes) -> int:
    """Counts the items of a JSON document that should be numbers."""
    return sum(json.loads(data)["items"])


TARGET = Target("weak", [b'{"items": [1, 2, 3]}'], weak, (json.JSONDecodeError,), [json_fields])


def test_a_seed_and_a_number_name_a_file():
    assert damaged(TARGET, 1, 7) == damaged(TARGET, 1, 7)
    assert len({damaged(TARGET, 1, number) for number in range(50)}) > 25
    assert damaged(TARGET, 1, 7) != damaged(TARGET, 2, 7)


def test_what_a_reader_does_not_promise_is_a_defect():
    report = run(TARGET, 60, 0)
    assert sum(report.outcomes.values()) == 60
    assert report.outcomes["JSONDecodeError"] > 0
    assert {"DEFECT KeyError ?", "DEFECT TypeError ?"} <= set(report.outcomes)


@pytest.mark.parametrize(
    ("read", "outcome"),
    [
        ("while True: pass", "DEFECT took too long"),
        ("bytearray(300 << 20)", "DEFECT memory"),
        ("import os; os.abort()", "DEFECT ended by SIGABRT"),
        ("'x' * (9 << 30)", "DEFECT MemoryError ?"),
    ],
)
def test_a_reader_that_hangs_grows_or_crashes_ends_alone(read, outcome):
    def reads(data: bytes) -> None:
        if data != b"good":
            exec(read)

    # Only the first is to be ended for its time: a busy machine may take a second for 300 MiB.
    cpu_s = 0.5 if outcome == "DEFECT took too long" else 20
    report: Report = run(Target("x", [b"good"], reads, (), cpu_s=cpu_s), 2, 3)
    assert outcome in report.outcomes
    assert sum(report.outcomes.values()) == 2


def test_archives_are_written_anew_around_a_damaged_member():
    archive = zipped({"a/data.pkl": b"x" * 50, "a/other": b"y"})
    changed = members({"/data.pkl": BLIND})(archive, random.Random(0), [archive])
    with zipfile.ZipFile(io.BytesIO(changed)) as file:
        assert file.testzip() is None
        assert file.read("a/other") == b"y"
        assert file.read("a/data.pkl") != b"x" * 50
