"""The ADE20K protocol with the published network, from files to files."""

import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from model.sliding import PUBLISHED
from tests.golden import plain_lseg, run_sliding
from tests.golden.fill_rule import fill
from tests.golden.run_case import published_shapes
from tests.golden.run_sliding import INPUTS, main
from tests.support.plain_sliding import summed_logits

SCALES = (0.5, 0.75, 1.0, 1.25, 1.5, 1.75)
PICTURE = np.random.default_rng(0).uniform(-1, 1, (1, 3, 91, 150)).astype(np.float32)


@pytest.mark.slow  # 2 x 3 windows of 480 through a ViT-B/32, once plainly and once by the command
def test_two_scales_equal_plain_rules_on_the_plain_network(tmp_path, monkeypatch):
    monkeypatch.setattr(run_sliding, "PUBLISHED", replace(PUBLISHED, scales=(0.5, 1.25)))
    np.save(tmp_path / "x.npy", PICTURE)
    main(["--image", str(tmp_path / "x.npy"), "--out", str(tmp_path / "logits.npy")])
    found, expected = np.load(tmp_path / "logits.npy"), plain_logits((0.5, 1.25))
    # Four sums of logits that agree within 1e-4 each.
    np.testing.assert_allclose(found, expected.numpy(), rtol=0, atol=4e-4)
    assert expected.std() > 0.5


@pytest.mark.long  # 2 x 28 windows
def test_the_command_equals_plain_rules_on_the_plain_network(tmp_path):
    np.save(tmp_path / "x.npy", PICTURE)
    script = Path(__file__).parent / "run_sliding.py"
    command = [sys.executable, script, "--image", "x.npy", "--out", "found/logits.npy"]
    running = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True)

    expected = plain_logits(SCALES)  # Meanwhile, on another core.
    _, errors = running.communicate()
    assert running.returncode == 0, errors
    found = np.load(tmp_path / "found/logits.npy")
    assert (found.shape, found.dtype) == ((1, 5, 91, 150), np.float32)
    # Twelve sums of logits that agree within 1e-4 each.
    np.testing.assert_allclose(found, expected.numpy(), rtol=0, atol=1.2e-3)
    assert expected.std() > 0.5


def plain_logits(scales: Sequence[float]) -> torch.Tensor:
    """The summed logits of the picture by the plain rules, (1, 5, H, W)."""
    shapes = published_shapes("vitb32", has_block=False)
    state = {name: torch.from_numpy(fill(name, shape)) for name, shape in shapes.items()}
    text = torch.from_numpy(np.load(INPUTS)["text"])
    with torch.inference_mode():
        return summed_logits(
            lambda x: plain_lseg.logits(state, x, text[None], heads=12),
            torch.from_numpy(PICTURE),
            torch.full((3,), -1.0),
            5,
            scales=scales,
            base=520,
            window=480,
        )


def test_the_command_refuses_what_is_no_picture(tmp_path, capsys):
    np.save(tmp_path / "x.npy", np.zeros((3, 8, 8), np.float32))
    with pytest.raises(SystemExit) as ended:
        main(["--image", str(tmp_path / "x.npy"), "--out", str(tmp_path / "y")])
    assert ended.value.code == 2
    assert "(1, 3, H, W)" in capsys.readouterr().err
