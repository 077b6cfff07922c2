"""The ADE20K protocol with the published network, from files to files."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.golden import plain_lseg
from tests.golden.fill_rule import fill
from tests.golden.run_case import published_shapes
from tests.golden.run_sliding import INPUTS, main
from tests.support.plain_sliding import summed_logits

SCALES = (0.5, 0.75, 1.0, 1.25, 1.5, 1.75)


@pytest.mark.slow  # 2 x 28 windows of 480 through a ViT-B/32, once plainly and once by the command
def test_the_command_equals_plain_rules_on_the_plain_network(tmp_path):
    picture = np.random.default_rng(0).uniform(-1, 1, (1, 3, 91, 150)).astype(np.float32)
    np.save(tmp_path / "x.npy", picture)
    script = Path(__file__).parent / "run_sliding.py"
    command = [sys.executable, script, "--image", "x.npy", "--out", "found/logits.npy"]
    running = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True)

    # Meanwhile, on another core.
    shapes = published_shapes("vitb32", has_block=False)
    state = {name: torch.from_numpy(fill(name, shape)) for name, shape in shapes.items()}
    text = torch.from_numpy(np.load(INPUTS)["text"])
    with torch.inference_mode():
        expected = summed_logits(
            lambda x: plain_lseg.logits(state, x, text[None], heads=12),
            torch.from_numpy(picture),
            torch.full((3,), -1.0),
            5,
            scales=SCALES,
            base=520,
            window=480,
        )
    _, errors = running.communicate()
    assert running.returncode == 0, errors
    found = np.load(tmp_path / "found/logits.npy")
    assert (found.shape, found.dtype) == ((1, 5, 91, 150), np.float32)
    # Twelve sums of logits that agree within 1e-4 each.
    np.testing.assert_allclose(found, expected.numpy(), rtol=0, atol=1.2e-3)
    assert expected.std() > 0.5


def test_the_command_refuses_what_is_no_picture(tmp_path, capsys):
    np.save(tmp_path / "x.npy", np.zeros((3, 8, 8), np.float32))
    with pytest.raises(SystemExit) as ended:
        main(["--image", str(tmp_path / "x.npy"), "--out", str(tmp_path / "y")])
    assert ended.value.code == 2
    assert "(1, 3, H, W)" in capsys.readouterr().err
