import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from model.checkpoint import save_checkpoint
from model.config import BackboneConfig, ModelConfig, TextConfig
from model.errors import ModelError
from model.lseg import LSeg, build_lseg
from model.text import build_text_encoder
from pipeline.errors import UserError
from pipeline.inference.export.config import ExportConfig
from pipeline.inference.export.run import export
from pipeline.inference.export.text_tower import write_text_tower
from tests.support.tiny_clip import DIM, tiny_clip

EXAMPLE = Path(__file__).resolve().parents[4] / "docs" / "examples" / "embed_text_onnx.py"
VIT = {"patch_size": 8, "depth": 4, "embed_dim": 16, "num_heads": 2, "img_size": 48}
ALONE = """
import runpy, sys
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
assert not {"torch", "open_clip", "model"} & set(sys.modules)
"""


def checkpoint(folder: Path, text: TextConfig) -> Path:
    torch.manual_seed(0)
    backbone = BackboneConfig(name="vit_tiny_patch16_224", pretrained=False, kwargs=VIT)
    lseg = build_lseg(ModelConfig(backbone=backbone, text=text, features=4), DIM).eval()
    save_checkpoint(folder, lseg, ["road", "sky"])
    return folder


@pytest.fixture
def tiny(tmp_path, monkeypatch) -> Path:
    """A checkpoint whose text encoder is a small CLIP."""
    text = tiny_clip(tmp_path, templates="a photo of a {}.\nthere is {}")
    # A checkpoint may not name files for itself: its user does.
    monkeypatch.setenv("LSEG_TEXT_ENCODER", text.encoder)
    monkeypatch.setenv("LSEG_TEXT_PRETRAINED", text.pretrained)
    return checkpoint(tmp_path / "c", text)


@pytest.mark.slow
def test_other_words_need_neither_torch_nor_this_project(tmp_path, tiny):
    out = tmp_path / "o"
    config = ExportConfig(checkpoint=str(tiny), text_tower=True, out=str(out))
    assert {"text.onnx", "tokenizer.json"} <= set(export(config).files)
    command = [sys.executable, "-I", "-c", ALONE, str(EXAMPLE), str(out), "horse, wet sand,moon"]
    subprocess.run(command, check=True, timeout=120, cwd=tmp_path)
    words = (out / "labels.txt").read_text().splitlines()
    assert words == ["horse", "wet sand", "moon"]
    expected = LSeg.load(tiny).embed_text(words).numpy()
    found = np.load(out / "text.npy", allow_pickle=False)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)


def test_a_program_of_pytorch_is_compared_with_the_encoder(tmp_path):
    encoder = build_text_encoder(tiny_clip(tmp_path, templates="a {}\nthe {}"))
    labels = ["road", "sky", "wet grass"]
    text_KC = encoder.encode(labels).numpy()
    told = write_text_tower("torch", encoder, tmp_path, labels, text_KC)
    assert told["templates"] == ("a {}", "the {}")
    assert json.loads(json.dumps(told))["inputs"] == {"tokens": ["texts", 77, "int64"]}
    program = torch.export.load(tmp_path / told["tower"]).module()
    assert program(torch.full((5, 77), 320)).shape == (5, DIM)
    with pytest.raises(UserError, match=r"text_tower: the vector of 'sky' is 0\.\d+ from the enc"):
        write_text_tower("torch", encoder, tmp_path, labels, text_KC[[0, 2, 1]])


def test_what_has_no_tower_is_refused(tmp_path):
    with pytest.raises(UserError, match="text_tower=true: is for to=onnx and to=torch"):
        ExportConfig(checkpoint="x", to="safetensors", text_tower=True)
    run = Path(__file__).resolve().parents[4] / "tests/golden/formats/run/best_00000003"
    out = tmp_path / "o"
    with pytest.raises(ModelError, match=r"text\.encoder=stand-in: cannot be written as a text"):
        export(ExportConfig(checkpoint=str(run), to="torch", text_tower=True, out=str(out)))
    assert not out.exists()
    names = tiny_clip(tmp_path, synonyms="mean")
    with pytest.raises(UserError, match=r"text_tower: the checkpoint's text.synonyms is mean"):
        write_text_tower("torch", build_text_encoder(names), tmp_path, ["a"], np.zeros((1, DIM)))
