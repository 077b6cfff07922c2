"""Our network against numbers of the published one, and against its naive re-statement."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from model.config import TextConfig
from model.text import OpenClipEncoder
from tests.golden import plain_lseg
from tests.golden.fill_rule import fill
from tests.golden.run_case import intermediates, published_lseg, published_shapes, score

DATA = Path(__file__).parent / "data"
ENTRIES = {"vitb32": 284, "vitl16": 428, "resnet101": 734}


@pytest.fixture(scope="module")
def inputs():
    return {key: torch.from_numpy(value) for key, value in np.load(DATA / "inputs.npz").items()}


@pytest.mark.parametrize(
    ("case", "regularizer", "tolerance"),
    [("A", ("none", 0, "lrelu"), 1e-4), ("C", ("depthwise", 4, "tanh"), 3e-4)],
)
def test_logits_and_intermediates_are_the_published_ones(inputs, case, regularizer, tolerance):
    golden = np.load(DATA / f"case_{case}.npz")
    lseg = published_lseg("vitb32", *regularizer)
    for size in ("96", "128"):
        found = intermediates(lseg, inputs[f"x{size}"], inputs["text"])
        assert len(found) == 11
        for name, tensor in found.items():
            key = f"{size}.{name}"
            assert list(tensor.shape) == list(golden[f"{key}.shape"])
            flat = tensor.flatten().numpy()
            picked = flat[np.linspace(0, flat.size - 1, 512).round().astype(int)]
            largest = golden[f"{key}.stats"][2]
            np.testing.assert_allclose(
                picked, golden[f"{key}.values"], rtol=0, atol=1e-4 * largest, err_msg=key
            )
        logits = found["logits_sample"].numpy()
        stored = "96.logits" if size == "96" else "128.logits_stride2"
        step = 1 if size == "96" else 2
        np.testing.assert_allclose(
            logits[:, :, ::step, ::step], golden[stored], rtol=0, atol=tolerance
        )


@pytest.mark.parametrize("backbone", ENTRIES)
def test_the_published_number_of_entries(backbone):
    assert len(published_shapes(backbone, has_block=False)) == ENTRIES[backbone]
    assert len(published_shapes(backbone, has_block=True)) == ENTRIES[backbone] + 2


@pytest.mark.parametrize(
    ("backbone", "heads", "regularizer"),
    [
        ("vitb32", 12, ("bottleneck", 2, "lrelu")),
        ("resnet101", 0, ("none", 0, "lrelu")),
        pytest.param("vitl16", 16, ("bottleneck", 0, "tanh"), marks=pytest.mark.slow),
        pytest.param("vitl16", 16, ("depthwise", 3, "relu"), marks=pytest.mark.slow),
    ],
)
def test_other_networks_equal_their_naive_restatement(inputs, backbone, heads, regularizer):
    kind, depth, activation = regularizer
    shapes = published_shapes(backbone, kind != "none")
    state = {name: torch.from_numpy(fill(name, shape)) for name, shape in shapes.items()}
    images = torch.cat([inputs["x96"], inputs["x96"].flip(3)])
    text = inputs["text"][torch.tensor([[0, 1], [0, 2]])]
    with torch.inference_mode():
        expected = plain_lseg.logits(
            state,
            images,
            text,
            heads=heads,
            regularizer=kind,
            depth=depth,
            activation=activation,
        )
    del state
    found = score(published_lseg(backbone, kind, depth, activation), images, text)
    assert found.shape == (2, 2, 96, 96)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)


@pytest.mark.slow  # ResNet101 at its full size, in a process of its own.
def test_the_command_writes_both_sizes(tmp_path):
    script = Path(__file__).parent / "run_case.py"
    out = tmp_path / "out.npz"
    command = [sys.executable, script, "--backbone", "resnet101", "--regularizer", "none"]
    command += ["--zero-shot", "--inputs", DATA / "inputs.npz", "--out", out]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 0, done.stderr
    written = np.load(out)
    assert written["96.logits"].shape == (2, 2, 96, 96)
    assert written["128.logits_stride2"].shape == (1, 2, 64, 80)
    assert not np.array_equal(written["96.logits"][0], written["96.logits"][1, :, :, ::-1])


def test_zero_shot_networks_take_a_regulariser_and_build_none(inputs):
    lseg = published_lseg("resnet101", "bottleneck", 2, "lrelu", zero_shot=True)
    assert lseg.regularizer.depth == 0


def test_the_text_tower_is_openais(tmp_path):
    """Weights by the rule under OpenAI's names, from a file, through tokenizer and encoder."""
    import open_clip
    from safetensors.torch import save_file

    golden = np.load(DATA / "case_G.npz")
    shapes = {
        name: list(value.shape)
        for name, value in open_clip.create_model("ViT-B-32-quickgelu", pretrained=None)
        .state_dict()
        .items()
        if not name.startswith(("visual.", "logit_scale"))
    }
    path = tmp_path / "text.safetensors"
    save_file({name: torch.from_numpy(fill(name, shape)) for name, shape in shapes.items()}, path)
    encoder = OpenClipEncoder(TextConfig(encoder="ViT-B-32-quickgelu", pretrained=str(path)))
    prompts = [str(prompt) for prompt in golden["prompts"]]
    tokens = open_clip.get_tokenizer("ViT-B-32-quickgelu")(prompts)
    np.testing.assert_array_equal(tokens.numpy(), golden["tokens"])
    with torch.inference_mode():
        embeddings = encoder._forward(prompts).numpy()
    np.testing.assert_allclose(
        embeddings, golden["embeddings"], rtol=0, atol=1e-4 * np.abs(golden["embeddings"]).max()
    )
    encoded = encoder.encode(prompts).numpy()
    expected = golden["embeddings"] / np.linalg.norm(golden["embeddings"], axis=1, keepdims=True)
    np.testing.assert_allclose(encoded, expected, atol=1e-5)
