"""What the MLflow run is told of the checkpoints and models that the storage has."""

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import ray.train

from pipeline.checkpoints.files import content_fingerprint, step_folder
from pipeline.errors import Outage
from pipeline.training.saving.logged import BEST_TAG, LAST_TAG
from tests.pipeline.training.saving.test_saver import (
    METRIC,
    local,  # noqa: F401
    offer,
    save,
    saver,
    stored,
)


class Page:
    """What MLflow's page of the run is told."""

    def __init__(self) -> None:
        self.tags: dict[str, str] = {}
        self.models: list[Any] = []

    def set_tags(self, tags: dict[str, str]) -> None:
        """As a tracker's."""
        self.tags |= tags

    def log_model(self, model: Any) -> None:
        """As a tracker's."""
        self.models.append(model)

    def wait_for_run(self, _: float) -> str:
        """As a tracker's."""
        return "r"


def test_the_best_model_becomes_the_runs_model_once_it_is_stored(tmp_path, monkeypatch):
    mine, door = saver(tmp_path, monkeypatch)
    mine._tracker = page = Page()  # type: ignore[assignment]
    door.open.clear()
    offer(mine, 3, 0.25)
    mine._settle()
    assert not page.models
    door.open.set()
    mine.wait()
    address = str(tmp_path / "mine/best_00000003")
    assert page.tags == {BEST_TAG: address}
    (model,) = page.models
    assert (model.address, model.step, model.metrics) == (address, 3, {METRIC: 0.25})
    stored_folder = tmp_path / "mine/best_00000003"
    assert model.tags["content"] == content_fingerprint(stored_folder)
    assert model.params["backbone"] == "vit_tiny_patch16_224"


def test_a_page_that_cannot_be_told_costs_no_model(tmp_path, monkeypatch, caplog):
    mine, _ = saver(tmp_path, monkeypatch)
    mine._tracker = page = Page()  # type: ignore[assignment]
    monkeypatch.setattr(page, "log_model", lambda _: 1 / 0)
    offer(mine, 3, 0.25)
    mine.wait()
    assert stored(tmp_path)[0] == ["best_00000003"]
    assert "the best model, of step 3, is not shown in MLflow: division by zero" in caplog.text


def test_a_run_names_its_newest_checkpoint_once_that_is_stored(tmp_path, monkeypatch):
    mine, door = saver(tmp_path, monkeypatch, "")
    mine._tracker = page = Page()  # type: ignore[assignment]
    uploads = ThreadPoolExecutor(1)

    def report(_, *, checkpoint, checkpoint_dir_name, checkpoint_upload_fn, **__) -> None:
        uploads.submit(checkpoint_upload_fn, checkpoint, checkpoint_dir_name)

    monkeypatch.setattr(ray.train, "report", report)
    door.open.clear()
    save(mine, 1)
    assert page.tags == {}
    door.open.set()
    mine.wait()
    newest = str(tmp_path / "mine" / step_folder(1))
    assert page.tags == {LAST_TAG: newest}
    door.broken = True
    save(mine, 2)
    with pytest.raises(Outage, match=r"checkpoint step_00000002 was not stored"):
        mine.wait()
    assert page.tags == {LAST_TAG: newest}
