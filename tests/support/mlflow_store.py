"""New MLflow stores in sqlite files, without the seconds that MLflow takes to make their tables."""

import tempfile
from functools import cache
from pathlib import Path


def new_store(folder: Path, name: str = "mlflow.db") -> str:
    """The URI of a store that has MLflow's tables and its default experiment, and no run."""
    path = folder / name
    path.write_bytes(_tables())
    return f"sqlite:///{path}"


@cache
def _tables() -> bytes:
    """The file of an empty store, made once in a process by MLflow itself."""
    from pipeline.tracking.mlflow_run import prepare_environment

    prepare_environment()
    from mlflow import MlflowClient

    with tempfile.TemporaryDirectory(prefix="lseg-mlflow-") as folder:
        path = Path(folder) / "mlflow.db"
        MlflowClient(f"sqlite:///{path}").search_experiments()
        return path.read_bytes()
