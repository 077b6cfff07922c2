"""Readers of the small files that jobs write for themselves, as targets of the fuzzer."""

from contextlib import suppress
from pathlib import Path

from pipeline.errors import UserError
from pipeline.inference.config import PredictConfig, read_labels
from pipeline.retraining.state import Attempt, StateFile
from pipeline.storage.lease import _lives, _name, _parse
from pipeline.storage.local import LocalStorage
from pipeline.sweep import results
from pipeline.tracking.records import (
    Record,
    RunIdentity,
    from_line,
    identity_bytes,
    identity_from,
    to_line,
)
from tests.support.fuzz_target import Target, one_changed
from tests.support.text_mutators import json_fields, json_lines, text_lines

_WHEN = "2026-01-01 00:00:00.000+00:00"


def records(folder: Path) -> list[Target]:
    """Small files that this project wrote itself: journals, identities, states, results, labels."""
    identity = RunIdentity(experiment="lseg", run_name="r", run_key="k" * 16)
    kinds = [
        to_line(identity, Record(kind="metrics", time_ms=1, step=3, values={"train/loss": 1.0})),
        to_line(identity, Record(kind="params", time_ms=1, values={"train.lr": "0.1"})),
    ]
    storage = LocalStorage(folder)
    states = StateFile(storage)
    states.write(
        Attempt("0" * 16, "night", {"a": "b"}, {"a": "c"}, ("new data",), "fresh", "", "1", _WHEN)
    )
    result = results.Result("t1", {"train.lr": 0.1}, 3, "finished", {"val/miou": 0.5}, "/x", 1.5)
    results.write(storage, result)
    state_bytes = (folder / "state.json").read_bytes()
    result_bytes = (folder / "results/t1.json").read_bytes()
    labels = folder / "labels.txt"

    def journal(data: bytes) -> None:
        for line in data.split(b"\n"):
            with suppress(ValueError):
                from_line(line)

    def read_result() -> None:
        for found in results.read_all(storage).values():
            assert isinstance(found.is_done, bool)
            found.value("val/miou")

    def lease(data: bytes) -> None:
        fields = _parse(data)
        assert _name(fields)
        _lives(fields)

    lock = b'{"token": "x", "host": "h", "pid": 1, "place": "p", "started": 1.5, "since": "s"}\n'
    predict = {"images": ("x.jpg",), "checkpoint": "c", "labels_file": str(labels)}
    text = "road\nsky\nBäume\n".encode()
    return [
        Target("journal", kinds, journal, (), [json_lines]),
        Target("identity", [identity_bytes(identity)], identity_from, (), [json_fields]),
        Target(
            "retrain state",
            [state_bytes],
            one_changed(folder / "state.json", states.read),
            (UserError,),
            [json_fields],
        ),
        Target(
            "sweep result",
            [result_bytes],
            one_changed(folder / "results/t1.json", read_result),
            (),
            [json_fields],
        ),
        Target("lease", [lock], lease, (), [json_fields]),
        Target(
            "label list",
            [text],
            one_changed(labels, lambda: read_labels(PredictConfig(**predict), ("road",))),
            (UserError,),
            [text_lines],
        ),
    ]
