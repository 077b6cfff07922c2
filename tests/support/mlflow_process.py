"""Which MLflow server this process means: a setting that tests must put back."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

_VARIABLES = ("MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI")
_TRACKING = "mlflow.tracking._tracking_service.utils"
_REGISTRY = "mlflow.tracking._model_registry.utils"


@pytest.fixture(scope="module", autouse=True)
def same_mlflow_afterwards() -> Iterator[None]:
    """Puts back, after each file, the server that this process and its children mean.

    A registry names its server to the whole process, environment included, so that what the tests
    of one file open would else be where the next file's evaluations go.
    """
    before = {name: os.environ.get(name) for name in _VARIABLES}
    yield
    for name, value in before.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value
    # MLflow takes seconds to import: a process that did not has nothing to forget.
    if _TRACKING in sys.modules:
        sys.modules[_TRACKING]._tracking_uri = None
    if _REGISTRY in sys.modules:
        sys.modules[_REGISTRY]._registry_uri = None


@contextmanager
def mlflow_is(uri: str) -> Iterator[None]:
    """Sets the tracking URI of this process and its environment, and puts back what was."""
    import mlflow
    from mlflow.tracking._model_registry import utils as registry_utils
    from mlflow.tracking._tracking_service import utils as tracking_utils

    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_REGISTRY_URI", raising=False)
        patch.setenv("MLFLOW_TRACKING_URI", uri)
        patch.setattr(tracking_utils, "_tracking_uri", None)
        patch.setattr(registry_utils, "_registry_uri", None)
        mlflow.set_tracking_uri(uri)
        yield
