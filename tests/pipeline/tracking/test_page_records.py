"""What of a dataset, a table and a model goes into the journal: no secrets, nothing too long."""

import json

from pipeline.tracking.page_records import InputDataset, LoggedCheckpoint, table_text


def test_a_dataset_on_a_disk_and_one_with_too_long_names():
    data = InputDataset(name="x" * 600, digest="f" * 40, source="/data/m.json", context="train")
    values = data.values()
    assert (len(values["name"]), len(values["digest"])) == (500, 36)
    assert values["source_type"] == "local"
    assert json.loads(values["source"]) == {"uri": "/data/m.json"}


def test_secrets_and_numbers_that_json_has_not(monkeypatch):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hunter2-hunter2")
    text = table_text(["a"], [["hunter2-hunter2"], [float("inf")], [3]])
    assert json.loads(text) == {"columns": ["a"], "data": [["***"], [None], [3]]}
    model = LoggedCheckpoint(
        name="lseg",
        address="https://me:hunter2@host/best",
        step=3,
        tags={"api_key": "x"},
        params={"note": "hunter2-hunter2"},
        metrics={"val/miou": float("nan"), "val/idd/miou": 0.5},
        signature={},
    )
    assert "hunter2" not in model.text()
    what = json.loads(model.text())
    assert what["tags"] == {"checkpoint": "https://***@host/best", "step": "3"}
    assert what["metrics"] == {"val_miou/idd": {"value": 0.5}}
