from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml

from model.checkpoint import read_checkpoint, resolvers, save_checkpoint
from model.config import BackboneConfig, ModelConfig, config_from_dict
from model.errors import ModelError
from model.lseg import LSeg


@pytest.fixture
def saved(tiny_lseg, tmp_path) -> Path:
    save_checkpoint(tmp_path / "c", tiny_lseg, ["wall", "traffic light"], {"train": {"lr": 0.1}})
    return tmp_path / "c"


def test_round_trip(tiny_lseg, saved):
    again = LSeg.load(saved)
    assert again.labels == ("wall", "traffic light")
    assert again.config == tiny_lseg.config
    assert not again.training
    assert again.state_dict().keys() == tiny_lseg.state_dict().keys()
    for name, value in tiny_lseg.state_dict().items():
        assert torch.equal(again.state_dict()[name], value), name
    image = torch.randint(0, 256, (64, 64, 3), dtype=torch.uint8)
    assert (again.predict(image)[0] == tiny_lseg.predict(image, again.labels)[0]).all()
    assert yaml.safe_load((saved / "config.yaml").read_text())["train"] == {"lr": 0.1}


def test_loading_never_fetches_published_weights(tiny_lseg, tmp_path):
    tiny_lseg.config = replace(
        tiny_lseg.config, backbone=replace(tiny_lseg.config.backbone, pretrained=True)
    )
    save_checkpoint(tmp_path, tiny_lseg)
    lseg = LSeg.load(tmp_path)
    assert lseg.config.backbone.pretrained is False
    assert lseg.labels == ()


def test_uris_go_through_registered_resolvers(saved, monkeypatch):
    with pytest.raises(ModelError, match="nothing here can fetch gs"):
        LSeg.load("gs://bucket/run")
    asked = []
    monkeypatch.setitem(resolvers, "models", lambda uri: asked.append(uri) or saved)
    assert LSeg.load("models:/lseg/3").labels == ("wall", "traffic light")
    assert asked == ["models:/lseg/3"]
    assert LSeg.load(f"file://{saved}").labels == ("wall", "traffic light")


def test_texts_stand_for_the_labels(tiny_lseg, tmp_path):
    save_checkpoint(tmp_path, tiny_lseg, ["traffic_light"], texts=["traffic light"])
    assert read_checkpoint(tmp_path).labels == ("traffic_light",)
    assert LSeg.load(tmp_path).labels == ("traffic light",)
    with pytest.raises(ModelError, match="one for each"):
        save_checkpoint(tmp_path, tiny_lseg, ["a", "b"], texts=["a"])
    with pytest.raises(ModelError, match="one line"):
        save_checkpoint(tmp_path, tiny_lseg, ["a\u2028b"])


def test_no_other_file_is_read_because_a_checkpoint_names_it(saved, tmp_path):
    """timm would read `checkpoint_path`, a pickle, whatever else is set."""
    content = yaml.safe_load((saved / "config.yaml").read_text())
    content["model"]["backbone"]["kwargs"]["checkpoint_path"] = str(tmp_path / "evil.pt")
    (saved / "config.yaml").write_text(yaml.safe_dump(content))
    with pytest.raises(ModelError, match="checkpoint_path: is not allowed"):
        LSeg.load(saved)


def break_weights(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])


def remove_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()


def change_config(folder: Path, **values) -> None:
    content = yaml.safe_load((folder / "config.yaml").read_text())
    content["model"].update(values)
    (folder / "config.yaml").write_text(yaml.safe_dump(content))


@pytest.mark.parametrize(
    ("damage", "error", "message"),
    [
        (break_weights, ModelError, "no complete safetensors"),
        (remove_weights, FileNotFoundError, "model.safetensors"),
        (lambda folder: change_config(folder, features=32), ModelError, "does not fit"),
        (lambda folder: change_config(folder, featurs=32), ModelError, "did you mean 'features'"),
        (lambda folder: (folder / "config.yaml").write_text("a: b"), ModelError, "mapping `model`"),
    ],
)
def test_damage_is_named(saved, damage, error, message):
    damage(saved)
    with pytest.raises(error, match=message):
        LSeg.load(saved)


def test_configuration_from_plain_values():
    values = {"backbone": {"name": "x", "hooks": [0, 1, 2, 3]}, "features": 8}
    config = config_from_dict(ModelConfig, values, "model")
    assert config == ModelConfig(backbone=BackboneConfig(name="x", hooks=(0, 1, 2, 3)), features=8)
    with pytest.raises(ModelError, match=r"model\.backbone\.nam='x'.*did you mean 'name'"):
        config_from_dict(ModelConfig, {"backbone": {"nam": "x"}}, "model")
    with pytest.raises(ModelError, match="must be a mapping"):
        config_from_dict(ModelConfig, {"backbone": "x"}, "model")
    for name, word in (("kind", "depthwise"), ("activation", "lrelu"), ("init", "identity")):
        with pytest.raises(ModelError, match=rf"regularizer\.{name}='foo': must be .*{word}"):
            config_from_dict(ModelConfig, {"regularizer": {name: "foo"}}, "model")
    with pytest.raises(ModelError, match="value of a wrong type"):
        config_from_dict(ModelConfig, {"features": "x"}, "model")
