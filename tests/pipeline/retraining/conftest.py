"""Registries to re-train against: a database file, and a real MLflow server."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from model.checkpoint import save_checkpoint
from model.lseg import build_lseg
from pipeline.inference import served_model
from tests.pipeline.retraining.world import World
from tests.support.mini_shards import tiny_model
from tests.support.mlflow_server import MlflowServer
from tests.support.mlflow_store import new_store


@pytest.fixture(scope="session")
def mlflow_server(tmp_path_factory) -> Iterator[MlflowServer]:
    server = MlflowServer(tmp_path_factory.mktemp("mlflow-server"))
    server.start()
    yield server
    server.kill()


@pytest.fixture(scope="session")
def mlflow_file(tmp_path_factory) -> str:
    return new_store(tmp_path_factory.mktemp("mlflow-file"))


@pytest.fixture(scope="session")
def small_checkpoint(tmp_path_factory) -> Path:
    """Random weights, with all files that a training leaves."""
    folder = tmp_path_factory.mktemp("small") / "checkpoint"
    torch.manual_seed(0)
    save_checkpoint(folder, build_lseg(tiny_model(), 512), ["road", "sky"])
    (folder / "provenance.json").write_text(json.dumps({"git_commit": "0" * 40}))
    (folder / "metrics.json").write_text(json.dumps({"step": 4}))
    return folder


@pytest.fixture
def make_world(small_checkpoint, tmp_path, request, monkeypatch) -> Callable[..., World]:
    """A world with a champion, version 1, that has seen the data `old` and reaches 0.5."""

    def make(uri: str, kind: type[World] = World, is_first: bool = False) -> World:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
        monkeypatch.setenv("MLFLOW_REGISTRY_URI", uri)
        monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "60")  # As the command does.
        # What travels with a version is tested where it is served: here it is 260 files for each.
        monkeypatch.setattr(served_model, "code_paths", list)
        name = "m" + format(abs(hash(request.node.nodeid)), "x")[:12]
        world = World(uri, name, tmp_path, small_checkpoint)
        world.arrive("old", 0.5, 0.5, 0.5)
        if not is_first:
            assert world.call().kind == "promoted"
            assert world.champion() == "1"
            (tmp_path / "done.txt").unlink()
        return kind(uri, name, tmp_path, small_checkpoint)

    return make
