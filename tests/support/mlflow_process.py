"""Which MLflow server this process means: a setting that tests must put back."""

from collections.abc import Iterator
from contextlib import contextmanager

import mlflow
import pytest
from mlflow.tracking._model_registry import utils as registry_utils
from mlflow.tracking._tracking_service import utils as tracking_utils


@contextmanager
def mlflow_is(uri: str) -> Iterator[None]:
    """Sets the tracking URI of this process and its environment, and puts back what was."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_REGISTRY_URI", raising=False)
        patch.setenv("MLFLOW_TRACKING_URI", uri)
        patch.setattr(tracking_utils, "_tracking_uri", None)
        patch.setattr(registry_utils, "_registry_uri", None)
        mlflow.set_tracking_uri(uri)
        yield
