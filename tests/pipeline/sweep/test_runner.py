"""What ends a sweep between its trials."""

import errno
from types import SimpleNamespace
from typing import Any

from pipeline.storage.open import open_storage
from pipeline.sweep import results
from pipeline.sweep.config import SweepConfig
from pipeline.sweep.runner import _Ledger, _Stopper


def dead(name: str) -> Any:
    """A trial of Tune's whose process died."""
    given = {"trial": {"params": {"train.lr": 0.1}, "seed": 0}}
    return SimpleNamespace(config=given, last_result={}, get_error=lambda: OSError(name))


def test_a_result_that_cannot_be_stored_ends_the_sweep_in_its_message(tmp_path, monkeypatch):
    config = SweepConfig(name="two", base="x.yaml", grid={"train.lr": [0.1]}, storage=str(tmp_path))
    storage = open_storage(str(tmp_path))
    ledger = _Ledger(config, storage, 1)
    stopper = _Stopper("val/miou", ledger)
    ledger.on_trial_error(0, [], dead("gone"))
    assert ledger.num_ended == 1
    assert not stopper.stop_all()
    (result,) = results.read_all(storage).values()
    assert result.error == "its process died: OSError: gone"

    def refuse(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(type(storage), "_write", refuse)
    ledger.on_trial_error(0, [], dead("gone again"))
    assert "no space left on device: make room" in str(ledger.problem)
    assert stopper.stop_all()


def test_a_trial_that_could_not_store_its_result_says_so_to_the_sweep(tmp_path):
    config = SweepConfig(name="two", base="x.yaml", grid={"train.lr": [0.1]}, storage=str(tmp_path))
    ledger = _Ledger(config, open_storage(str(tmp_path)), 1)
    trial = dead("")
    trial.last_result = {"ended": True, "failed": True, "unstored": "x: no space left: make room"}
    ledger.on_trial_complete(0, [], trial)
    assert str(ledger.problem) == "x: no space left: make room"
    assert _Stopper("val/miou", ledger).stop_all()
