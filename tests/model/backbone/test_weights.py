"""Weights files of a backbone: of this one, of another, and of none."""

import logging
import pickle
import zipfile

import pytest
import timm
import torch
from safetensors.torch import save_file

from model.backbone import build_backbone
from model.backbone.weights import require_own_file
from model.config import BackboneConfig
from model.errors import ModelError

TINY = {"patch_size": 8, "depth": 4, "embed_dim": 48, "num_heads": 3, "img_size": 64}


def config(file, name="vit_tiny_patch16_224", **kwargs) -> BackboneConfig:
    overlay = {"pretrained_cfg_overlay": {"file": str(file)}}
    kwargs = kwargs or (TINY if name.startswith("vit") else {})
    return BackboneConfig(name=name, kwargs={**kwargs, **overlay})


@pytest.fixture(scope="module")
def states():
    """The weights of a ViT and of a CNN, with their classifiers."""
    vit = timm.create_model("vit_tiny_patch16_224", **TINY)
    return {"vit": vit.state_dict(), "cnn": timm.create_model("resnet10t").state_dict()}


@pytest.mark.parametrize(("kind", "name"), [("vit", "vit_tiny_patch16_224"), ("cnn", "resnet10t")])
def test_a_file_of_this_model_fills_it(states, tmp_path, caplog, kind, name):
    save_file(states[kind], tmp_path / "w.safetensors")
    caplog.set_level(logging.INFO, "model.backbone.weights")
    backbone = build_backbone(config(tmp_path / "w.safetensors", name))
    assert "fill 100.0 % of it" in caplog.text
    loaded = dict(backbone.named_parameters())
    first = "vit.blocks.0.attn.qkv.weight" if kind == "vit" else "net.layer1.0.conv1.weight"
    assert torch.equal(loaded[first], states[kind][first.split(".", 1)[1]])


def test_a_classifier_in_the_file_is_no_warning(tmp_path, caplog):
    name = "tf_efficientnet_lite0"
    save_file(timm.create_model(name).state_dict(), tmp_path / "w.safetensors")
    caplog.set_level(logging.INFO)
    build_backbone(config(tmp_path / "w.safetensors", name))
    assert "fill 100.0 % of it" in caplog.text
    assert "Unexpected" not in caplog.text


@pytest.mark.parametrize(("kind", "name"), [("vit", "vit_tiny_patch16_224"), ("cnn", "resnet10t")])
@pytest.mark.parametrize("change", ["prefix", "other", "shapes", "few"])
def test_a_file_of_other_names_or_shapes_is_refused_with_examples(
    states, tmp_path, kind, name, change
):
    state = {
        "prefix": {f"encoder.{key}": value for key, value in states[kind].items()},
        "other": {"conv.weight": torch.zeros(3)},
        "shapes": {key: value[..., None].clone() for key, value in states[kind].items()},
        "few": dict(list(states[kind].items())[:6]),
    }[change]
    save_file(state, tmp_path / "w.safetensors")
    with pytest.raises(
        ModelError, match=r"overlay\.file=.*(fills \d+\.\d % of|cannot be loaded)"
    ) as caught:
        build_backbone(config(tmp_path / "w.safetensors", name))
    assert "\n" not in str(caught.value)
    if change == "prefix":
        assert "the file 'encoder." in str(caught.value)


def test_what_is_no_weights_file_is_named(tmp_path):
    (tmp_path / "cut.safetensors").write_bytes(b"\0" * 9)
    (tmp_path / "text.pth").write_text("<html>404</html>")
    (tmp_path / "code.pth").write_bytes(pickle.dumps(print, 2))
    torch.save([torch.zeros(2)], tmp_path / "list.pth")
    for name in ("cut.safetensors", "text.pth", "code.pth", "list.pth"):
        with pytest.raises(
            ModelError, match=rf"overlay\.file=.*{name}: cannot be loaded"
        ) as caught:
            build_backbone(config(tmp_path / name))
        assert "\n" not in str(caught.value)


def test_a_file_that_holds_no_numbers_is_named(states, tmp_path):
    state = {**states["vit"], "blocks.1.attn.qkv.bias": torch.full((144,), float("nan"))}
    save_file(state, tmp_path / "w.safetensors")
    with pytest.raises(ModelError, match=r"overlay\.file=.*1 of \d+ tensors hold NaN"):
        build_backbone(config(tmp_path / "w.safetensors"))


class Attack:
    """Unpickles into a call."""

    def __init__(self, path) -> None:
        self.path = path

    def __reduce__(self):
        return (type(self.path).touch, (self.path,))


def test_a_pickled_file_runs_nothing_whatever_the_version_of_timm(states, tmp_path, monkeypatch):
    """Some load pickles with `weights_only` false; here as if this one did."""
    load = torch.load

    def trusting(path, **options):
        by_us = "mmap" in options
        return load(path, **{**options, "weights_only": by_us})

    monkeypatch.setattr(torch, "load", trusting)
    file, trace = tmp_path / "w.pth", tmp_path / "trace"
    torch.save(states["vit"], file)
    build_backbone(config(file))
    torch.save({**states["vit"], "epoch": Attack(trace)}, file)
    with pytest.raises(ModelError, match=r"overlay\.file=.*w\.pth: cannot be loaded"):
        build_backbone(config(file))
    assert not trace.exists()
    with zipfile.ZipFile(file, "w") as target:
        target.writestr("archive/data.pkl", b"\x80\x04})" + b"\x85" * 400_000 + b"Ns.")
    with pytest.raises(ModelError, match="nests tuples deeper"):
        build_backbone(config(file))


def test_a_file_that_is_not_there_is_named_before_anything_is_built(tmp_path):
    for path, what in ((tmp_path / "no.safetensors", "no such file"), (tmp_path, "is a folder")):
        for check in (build_backbone, require_own_file):
            with pytest.raises(ModelError, match=rf"overlay\.file={path}: {what}"):
                check(config(path))
    require_own_file(BackboneConfig(pretrained=False, kwargs=config("/no").kwargs))
