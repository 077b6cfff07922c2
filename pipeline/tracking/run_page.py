"""What a run's page shows beside curves and parameters: datasets, images, tables and models.

Each is a record of the journal like any other, and each of these functions may be called again with
the same record: what is there already is not made twice.
"""

import base64
import io
import json
import tempfile
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import Any

import yaml
from PIL import Image

from pipeline.tracking.records import Record

CHECKPOINT_TAG = "checkpoint"
"""Tag of a logged model: where its checkpoint lies."""
EXTERNAL_TAG = "mlflow.model.isExternal"
"""Tag of a logged model whose files are not with MLflow; one that is registered has none."""

_LOGGED_TAG = "logged_ms"
_CONTEXT_TAG = "mlflow.data.context"
_IMAGES_TAG = "mlflow.loggedImages"
_ARTIFACTS_TAG = "mlflow.loggedArtifacts"
_SMALL_PX = 256  # The size that MLflow's client gives to the small copy of a picture.


def send_inputs(client: Any, run_id: str, record: Record) -> None:
    """Makes a dataset an input of the run; MLflow keeps those of one name and digest once."""
    from mlflow.entities import Dataset, DatasetInput, InputTag

    values = {key: str(value) for key, value in record.values.items()}
    context = values.pop("context")
    dataset = Dataset(**values)  # type: ignore[arg-type]
    client.log_inputs(run_id, [DatasetInput(dataset, [InputTag(_CONTEXT_TAG, context)])])


def send_picture(client: Any, run_id: str, record: Record) -> None:
    """Stores an image as `MlflowClient.log_image` does, which a record sent again replaces.

    The page shows those of one name as a chart, whose slider is the step.
    """
    data = base64.b64decode(record.text)
    path = PurePosixPath(record.artifact_path)
    with tempfile.TemporaryDirectory(prefix="lseg-picture-") as folder:
        full, small = Path(folder) / path.name, Path(folder) / f"{path.stem}+compressed.webp"
        full.write_bytes(data)
        image = Image.open(io.BytesIO(data)).convert("RGB")
        image.thumbnail((_SMALL_PX, _SMALL_PX))
        image.save(small)
        for file in (full, small):
            client.log_artifact(run_id, str(file), str(path.parent))
    client.set_tag(run_id, _IMAGES_TAG, "True")


def send_table(client: Any, run_id: str, record: Record) -> None:
    """Stores a table in place of an earlier one, where `MlflowClient.log_table` would append."""
    client.log_text(run_id, record.text, record.artifact_path)
    entry = {"path": record.artifact_path, "type": "table"}
    tables = json.loads(client.get_run(run_id).data.tags.get(_ARTIFACTS_TAG, "[]"))
    if entry not in tables:
        client.set_tag(run_id, _ARTIFACTS_TAG, json.dumps([*tables, entry]))


def send_model(client: Any, run_id: str, record: Record) -> None:
    """Makes a checkpoint a logged model of the run, in place of the ones that it beats.

    Its files stay where they are, until it is registered. A model that is registered stays, too.
    """
    from mlflow.entities import LoggedModelOutput, LoggedModelStatus, Metric

    what = json.loads(record.text)
    run = client.get_run(run_id)
    found = models_of(client, run)
    others = [model for model in found if EXTERNAL_TAG in model.tags]
    if any(int(model.tags.get(_LOGGED_TAG, 0)) > record.time_ms for model in others):
        return  # Sent again, after a later one.
    address = what["tags"][CHECKPOINT_TAG]
    model = next((m for m in found if m.tags.get(CHECKPOINT_TAG) == address), None)
    if model is None:
        model = client.create_logged_model(
            run.info.experiment_id,
            name=what["name"],
            source_run_id=run_id,
            tags=what["tags"] | {EXTERNAL_TAG: "true", _LOGGED_TAG: str(record.time_ms)},
            params=what["params"],
            model_type=what["type"],
        )
    if model.status != LoggedModelStatus.READY:
        with tempfile.TemporaryDirectory(prefix="lseg-model-") as folder:
            described = {"run_id": run_id, "model_id": model.model_id, "flavors": {}}
            described |= {"artifact_path": model.artifact_location, "signature": what["signature"]}
            (Path(folder) / "MLmodel").write_text(yaml.safe_dump(described))
            client.log_model_artifacts(model.model_id, folder)
        client.finalize_logged_model(model.model_id, "READY")
    if model.model_id not in [output.model_id for output in outputs_of(run)]:
        client.log_outputs(run_id, [LoggedModelOutput(model.model_id, record.step)])
    metrics = [
        Metric(
            key,
            float(metric["value"]),
            record.time_ms,
            record.step,
            model_id=model.model_id,
            dataset_name=metric.get("dataset"),
            dataset_digest=metric.get("digest"),
        )
        for key, metric in what["metrics"].items()
    ]
    client.log_batch(run_id, metrics=metrics)
    for other in others:
        if other.model_id != model.model_id:
            client.delete_logged_model(other.model_id)


def models_of(client: Any, run: Any) -> list[Any]:
    """The logged models that a run has made, the newest first."""
    return client.search_logged_models(
        [run.info.experiment_id],
        f"source_run_id = '{run.info.run_id}'",
        order_by=[{"field_name": "creation_time", "ascending": False}],
    )


def outputs_of(run: Any) -> list[Any]:
    """The links from a run to models."""
    return list(run.outputs.model_outputs) if run.outputs else []


SENDERS: dict[str, Callable[[Any, str, Record], None]] = {
    "inputs": send_inputs,
    "picture": send_picture,
    "table": send_table,
    "model": send_model,
}
"""By kind of record."""
