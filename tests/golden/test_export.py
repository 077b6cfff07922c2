"""The published network with rule-filled weights, exported: onnxruntime answers as PyTorch does."""

from pathlib import Path

import numpy as np
import pytest

from pipeline.inference.export.graph import (
    IMAGE,
    LOGITS,
    TEXT,
    reference_logits,
    segment_program,
)
from pipeline.inference.export.stored import open_program, write_program
from tests.golden.run_case import published_lseg

DATA = Path(__file__).parent / "data"


@pytest.mark.slow
def test_onnxruntime_answers_as_the_golden_network(tmp_path):
    lseg = published_lseg("vitb32", "depthwise", 4, "tanh")
    path = tmp_path / "segment.onnx"
    write_program(segment_program(lseg), path, (IMAGE, TEXT), (LOGITS,))
    run = open_program(path)
    text = np.load(DATA / "inputs.npz")["text"]
    numbers = np.random.default_rng(0)
    for size in ((96, 96), (128, 128), (101, 174)):
        image = numbers.integers(0, 256, (*size, 3), np.uint8)
        wanted = reference_logits(lseg, image, text)
        assert np.ptp(wanted) > 1  # Scores of nothing would be equal too.
        np.testing.assert_allclose(run(image[None], text)[0], wanted, rtol=0, atol=1e-3)
