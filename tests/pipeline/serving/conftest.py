"""A tiny network behind the service, in this process."""

import io
from collections.abc import Iterator

import numpy as np
import pytest
from PIL import Image
from starlette.testclient import TestClient

from pipeline.inference.served_limits import Limits
from pipeline.serving.app import Example, build_app
from pipeline.serving.champion import Champion
from pipeline.serving.engine import Engine
from pipeline.serving.local import LocalBackend
from tests.support.tiny_checkpoint import tiny_checkpoint

LIMITS = Limits(max_image_mib=0.05, max_image_mpx=0.01, max_labels=300)


def png(seed: int = 1, height: int = 40, width: int = 64) -> bytes:
    blocks = np.random.default_rng(seed).integers(0, 256, (height // 8, width // 8, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(np.kron(blocks, np.ones((8, 8, 1), np.uint8))).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture(scope="module")
def champion(tmp_path_factory) -> Champion:
    folder = tiny_checkpoint(tmp_path_factory.mktemp("served") / "step_00000003")
    return Champion(str(folder), "cpu", LIMITS, 0)


@pytest.fixture(scope="module")
def engine(champion) -> Iterator[Engine]:
    engine = Engine(lambda: champion.current)
    yield engine
    engine.close()


@pytest.fixture
def client(champion, engine) -> TestClient:
    examples = [Example("one", png(), "image/png", ("dog",))]
    app = build_app(LocalBackend(champion, engine), LIMITS, examples=examples)
    return TestClient(app, base_url="http://127.0.0.1:7860", raise_server_exceptions=False)
