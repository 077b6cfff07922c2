import json
import subprocess
import sys
import venv
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from model.checkpoint import save_checkpoint
from model.config import (
    BackboneConfig,
    HeadConfig,
    ModelConfig,
    RegularizerConfig,
    TextConfig,
)
from model.lseg import LSeg, build_lseg
from pipeline.errors import UserError
from pipeline.inference.export.check import (
    SIZES,
    compare,
    generated_images,
    one_by_one,
    require_batches,
    require_equal,
    resized,
)
from pipeline.inference.export.config import ExportConfig
from pipeline.inference.export.graph import reference_logits
from pipeline.inference.export.onnx_file import open_onnx, store_halves
from pipeline.inference.export.run import export
from pipeline.inference.export.stored import open_program

ROOT = Path(__file__).resolve().parents[4]
RUN = ROOT / "tests" / "golden" / "formats" / "run" / "best_00000003"
VIT = {"patch_size": 8, "depth": 4, "embed_dim": 16, "num_heads": 2, "img_size": 48}
LABELS = "road, sky, wet grass"


def network(**values) -> LSeg:
    torch.manual_seed(0)
    defaults = {"backbone": vit(), "text": TextConfig(encoder="stand-in")}
    defaults |= {} if "head" in values else {"features": 4}
    return build_lseg(ModelConfig(**(defaults | values)), 512).eval()


def vit(**kwargs) -> BackboneConfig:
    name = "vit_tiny_patch16_224"
    return BackboneConfig(name=name, pretrained=False, kwargs=VIT | kwargs)


def cost() -> LSeg:
    name = "vit_base_patch16_clip_quickgelu_224"
    backbone = BackboneConfig(name=name, pretrained=False, kwargs=VIT | {"num_classes": 512})
    # Two templates, each a channel: a label's row holds two vectors.
    text = TextConfig(encoder="stand-in", templates="a {}\nthe {} there", channels=True)
    lseg = network(backbone=backbone, head=HeadConfig(kind="cost", padded=8), text=text)
    for parameter_name, parameter in lseg.named_parameters():
        if "padding" in parameter_name:  # Zero at the start, which would hide what they do.
            torch.nn.init.normal_(parameter)
    return lseg


def test_weights_go_into_a_folder_that_opens_without_this_checkout_s_past(tmp_path):
    outcome = export(ExportConfig(checkpoint=str(RUN), to="safetensors", out=str(tmp_path / "o")))
    assert outcome.difference == 0
    lseg = LSeg.from_pretrained(tmp_path / "o")
    assert lseg.labels == LSeg.load(RUN).labels
    assert b"/tmp/lseg-formats" not in (tmp_path / "o" / "config.yaml").read_bytes()
    told = json.loads((tmp_path / "o" / "export.json").read_text())
    assert (told["long_side_px"], told["crop_px"]) == (64, 48)
    text = np.load(tmp_path / "o" / "text.npy", allow_pickle=False)
    assert text.shape == (28, 512)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"precision": "fp16", "to": "safetensors"}, "precision=fp16: is for to=onnx alone"),
        ({"labels": "a", "labels_file": "b"}, "labels_file: labels is set too"),
    ],
)
def test_settings_that_exclude_each_other_are_refused(words, message):
    with pytest.raises(UserError, match=message):
        ExportConfig(checkpoint="x", **words)


def test_a_folder_with_something_in_it_is_refused(tmp_path):
    (tmp_path / "there").write_text("")
    with pytest.raises(UserError, match="is not empty: name a new folder"):
        export(ExportConfig(checkpoint=str(RUN), out=str(tmp_path)))
    with pytest.raises(UserError, match="must be a folder that this user can write to"):
        export(ExportConfig(checkpoint=str(RUN), out=str(tmp_path / "there")))


def test_an_export_that_differs_is_refused_with_its_size():
    lseg, text = network(), torch.eye(512)[:3].numpy()
    images = resized(generated_images())
    assert [image.shape[:2] for image in images] == list(SIZES)

    def off(image, text_KC):
        return reference_logits(lseg, image, text_KC) + (0.5 if image.shape[0] == 301 else 0)

    with pytest.raises(UserError, match=r"to=onnx: on an image of 203x301 pixels a logit is 0.5"):
        require_equal("to=onnx", lseg, off, images, text)
    with pytest.raises(UserError, match="a logit is inf from"):
        require_equal("x", lseg, lambda i, t: np.full_like(off(i, t), np.nan), images, text)
    same = compare(lseg, lambda i, t: reference_logits(lseg, i, t), images, text)
    assert (same.largest_difference, same.same_pixels, same.miou) == (0, 1, 1)
    other = compare(lseg, lambda i, t: -reference_logits(lseg, i, t), images, text)
    assert other.same_pixels < 0.9
    assert other.miou < 0.9


def test_an_export_whose_answers_depend_on_the_batch_is_refused():
    def apart(images, text):
        return np.broadcast_to(images[:, None, ::2, ::2, 0] / 255, (len(images), 2, 96, 128)) * 1.0

    def mixed(images, text):
        return apart(images, text) + 0.01 * len(images)

    def first_alone(images, text):
        return apart(images, text)[:1]

    image = np.random.default_rng(0).integers(0, 256, (192, 256, 3), np.uint8)
    text = np.zeros((2, 4), np.float32)
    assert require_batches("to=onnx", apart, [image], text) == 0
    for wrong in (mixed, first_alone):
        with pytest.raises(UserError, match="to=onnx: in a batch of three images a logit is"):
            require_batches("to=onnx", wrong, [image], text)


def test_no_place_of_a_text_encoder_is_exported(tmp_path, monkeypatch):
    table = tmp_path / "secret" / "words.txt"
    table.parent.mkdir()
    rows = (
        f"{word} {' '.join('1' if i == n else '0' for i in range(512))}"
        for n, word in enumerate(("road", "sky"))
    )
    table.write_text("\n".join(rows) + "\n")
    given = network(text=TextConfig(encoder=f"table:{table}"))
    save_checkpoint(tmp_path / "c", given, ["road", "sky"])
    monkeypatch.setenv("LSEG_TEXT_ENCODER", f"table:{table}")
    out = tmp_path / "o"
    config = ExportConfig(checkpoint=str(tmp_path / "c"), to="safetensors", out=str(out))
    assert export(config).difference == 0
    assert b"secret" not in b"".join(path.read_bytes() for path in out.iterdir())


def test_halves_are_stored_and_computed_in_full(tmp_path):
    weight = np.random.default_rng(0).standard_normal((64, 64)).astype(np.float32)
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "product",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 64])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 64])],
        [numpy_helper.from_array(weight, "w")],
    )
    opset = [helper.make_opsetid("", 18)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=10), tmp_path / "full")
    store_halves(tmp_path / "full", tmp_path / "half")
    assert (tmp_path / "half").stat().st_size < 0.6 * (tmp_path / "full").stat().st_size
    x = np.ones((1, 64), np.float32)
    (found,) = open_onnx(tmp_path / "half").run(None, {"x": x})
    np.testing.assert_allclose(found, x @ weight.astype(np.float16).astype(np.float32), rtol=1e-5)
    graph.initializer[0].CopyFrom(numpy_helper.from_array(1e6 * weight, "w"))
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=10), tmp_path / "full")
    with pytest.raises(UserError, match="w is too large"):
        store_halves(tmp_path / "full", tmp_path / "half")


@pytest.mark.slow
@pytest.mark.parametrize(
    "made",
    [
        network,
        # At random, since the identity would mix no neighbours, whether or not they are padding.
        lambda: network(
            regularizer=RegularizerConfig(kind="bottleneck", depth=2, init="reference-positive")
        ),
        lambda: network(backbone=BackboneConfig(name="resnet10t", pretrained=False)),
        # Its padding depends on the size of each map, and the export of it once took forever.
        lambda: network(backbone=BackboneConfig(name="tf_efficientnet_lite0", pretrained=False)),
        cost,
    ],
    ids=["vit", "regulariser", "cnn", "tensorflow", "cost"],
)
def test_onnxruntime_answers_as_the_network(tmp_path, made):
    lseg = made()
    augment = {"data": {"augment": {"base_px": 96, "crop_px": 48}}}
    save_checkpoint(tmp_path / "c", lseg, ["road", "sky"], augment)
    out = tmp_path / "o"
    export(ExportConfig(checkpoint=str(tmp_path / "c"), labels=LABELS, out=str(out)))
    run = one_by_one(open_program(out / "segment.onnx"))
    # Labels, and a size, that the export did not see; also more labels than the cost head pads to.
    image = np.random.default_rng(1).integers(0, 256, (77, 130, 3), np.uint8)
    for count in (5, 12):
        text = lseg.embed_text([f"word {number}" for number in range(count)]).numpy()
        np.testing.assert_allclose(
            run(image, text), reference_logits(lseg, image, text), rtol=0, atol=1e-3
        )


@pytest.mark.parametrize(
    ("head", "num_labels"),
    [("dot", 5), ("cost", 5), pytest.param("cost", 12, marks=pytest.mark.long)],
)
def test_pytorch_runs_the_program_without_this_project(tmp_path, head, num_labels):
    checkpoint = RUN
    if head == "cost":
        checkpoint = tmp_path / "c"
        save_checkpoint(checkpoint, cost(), ["road"], {"data": {"augment": {"base_px": 96}}})
    export(ExportConfig(checkpoint=str(checkpoint), to="torch", out=str(tmp_path / "o")))
    lseg = LSeg.load(checkpoint)
    text = lseg.embed_text([f"word {number}" for number in range(num_labels)]).numpy()
    image = np.random.default_rng(1).integers(0, 256, (77, 130, 3), np.uint8)
    np.save(tmp_path / "text.npy", text)
    np.save(tmp_path / "image.npy", image)
    # Sizes, labels and a batch that the export did not see.
    program = """
import numpy, sys, torch
network = torch.export.load("o/segment.pt2").module()
image = torch.from_numpy(numpy.load("image.npy"))
logits = network(torch.stack([image, image]), torch.from_numpy(numpy.load("text.npy")))
numpy.save("logits.npy", logits.detach().numpy())
assert not {"model", "pipeline", "timm", "open_clip"} & set(sys.modules)
"""
    # In the test's folder and isolated, so that nothing of the checkout is on its path.
    subprocess.run([sys.executable, "-I", "-c", program], cwd=tmp_path, check=True, timeout=120)
    found = np.load(tmp_path / "logits.npy")
    assert found.shape == (2, num_labels, 39, 65)
    np.testing.assert_allclose(found[1], reference_logits(lseg, image, text), rtol=0, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("precision", [pytest.param("fp16", marks=pytest.mark.long), "int8"])
def test_smaller_weights_say_what_they_cost(tmp_path, precision):
    sizes = {}
    for kind in ("fp32", precision):
        out = tmp_path / kind
        outcome = export(ExportConfig(checkpoint=str(RUN), precision=kind, out=str(out)))
        sizes[kind] = (out / "segment.onnx").stat().st_size
    assert sizes[precision] < sizes["fp32"]
    assert outcome.agreement is not None
    assert 0 < outcome.agreement.miou <= 1
    told = json.loads((tmp_path / precision / "export.json").read_text())
    assert told["agreement"]["miou"] == outcome.agreement.miou


@pytest.mark.slow
def test_the_example_runs_without_torch(tmp_path):
    """A new environment with three packages segments as the network does."""
    export(ExportConfig(checkpoint=str(RUN), out=str(tmp_path / "o")))
    venv.create(tmp_path / "env", with_pip=True)
    python = tmp_path / "env" / "bin" / "python"
    packages = ["numpy", "onnxruntime", "pillow"]
    constraints = str(ROOT / "constraints.txt")
    install = [python, "-m", "pip", "install", "-q", "-c", constraints, *packages]
    subprocess.run(install, check=True, timeout=240)
    has_torch = [python, "-c", "import torch"]
    assert subprocess.run(has_torch, capture_output=True, check=False).returncode != 0
    pixels = np.random.default_rng(0).integers(0, 256, (48, 64, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "photo.png")
    example = ROOT / "docs" / "examples" / "segment_onnx.py"
    words = [python, "-I", example, tmp_path / "o", tmp_path / "photo.png", tmp_path / "mask.png"]
    said = subprocess.run(words, check=True, capture_output=True, text=True, timeout=60)
    assert "%" in said.stdout
    lseg = LSeg.load(RUN)
    text = lseg.embed_text(lseg.labels).numpy()
    wanted = reference_logits(lseg, pixels, text).argmax(0).repeat(2, 0).repeat(2, 1)
    found = np.asarray(Image.open(tmp_path / "mask.png"))
    assert (found == wanted).mean() > 0.999
