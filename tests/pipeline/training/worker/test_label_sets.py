from types import SimpleNamespace
from typing import Any

import pytest
import torch

from pipeline.training.worker import label_sets


@pytest.mark.parametrize(("is_few_shot", "kind"), [(True, "episodes"), (False, "labels")])
def test_a_few_shot_run_asks_for_the_classes_of_its_rows(
    monkeypatch: pytest.MonkeyPatch, is_few_shot: bool, kind: str
):
    monkeypatch.setattr(label_sets, "EpisodeQuestions", lambda *given: ("episodes", *given))
    monkeypatch.setattr(label_sets, "Questions", lambda *given: ("labels", *given))
    config = SimpleNamespace(loss="binary")
    plan: Any = SimpleNamespace(
        is_few_shot=is_few_shot,
        labels="labels",
        config=config,
        own_labels="own",
        label_weights="weights",
    )
    encoder: Any = "encoder"
    found: Any = label_sets.label_sets_of(plan, encoder, torch.device("cpu"))
    assert found[0] == kind
    assert ("binary" in found) == is_few_shot
    assert ("own" in found) != is_few_shot
    assert ("weights" in found) != is_few_shot
