"""Workers that ended because a node is about to leave are followed by others, without a failure."""

from types import SimpleNamespace
from typing import Any

import pytest

from pipeline.errors import UserError
from pipeline.training.driver import launch
from pipeline.training.driver.launch import Lineage, plan_run
from pipeline.training.job import EarlyEnd
from tests.support.mini_shards import MiniShards


@pytest.fixture
def fit(mini_shards: MiniShards, tmp_path, monkeypatch) -> Any:
    """Runs the driver's part of a training whose attempts end as given; the number of attempts."""
    plan = plan_run(mini_shards.config(tmp_path, "leaving"))
    monkeypatch.setattr(launch, "start_signal", lambda: None)
    monkeypatch.setattr(launch, "run_stoppable", lambda work, _: work())
    lease: Any = SimpleNamespace(on_loss=lambda _: None)

    def run(*ends: EarlyEnd | None) -> int:
        left = list(ends)
        trainer = SimpleNamespace(fit=lambda: SimpleNamespace(return_value=left.pop(0)))
        monkeypatch.setattr(launch, "_trainer", lambda *_: trainer)
        launch._fit(plan, Lineage(), lease, ())
        return len(ends) - len(left)

    return run


def test_each_announcement_is_followed_by_new_workers(fit, caplog):
    assert fit(EarlyEnd(leaving="aaaa"), EarlyEnd(leaving="bbbb"), None, None) == 3
    told = [line for line in caplog.messages if "about to leave" in line]
    assert told == [
        f"run leaving: node {node} is about to leave; workers start without it from the start: it "
        "has no checkpoint"
        for node in ("aaaa", "bbbb")
    ]


def test_what_ends_the_run_after_an_announcement_is_still_told(fit):
    with pytest.raises(UserError, match="a diagnosis"):
        fit(EarlyEnd(leaving="aaaa"), EarlyEnd(failed="a diagnosis"), None)
