import os
import resource
import shutil
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from model.checkpoint import read_checkpoint, resolvers, save_checkpoint
from model.config import BackboneConfig, ModelConfig, TextConfig, config_from_dict
from model.errors import ModelError
from model.lseg import LSeg
from pipeline.checkpoints.whole import write_digests
from tests.support.cpu_cost import costs_at_most


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


def test_weights_are_readable_by_whom_the_settings_are(tiny_lseg, tmp_path):
    before = os.umask(0o022)
    try:
        save_checkpoint(tmp_path, tiny_lseg, ["road"])
    finally:
        os.umask(before)
    assert {path.stat().st_mode & 0o777 for path in tmp_path.iterdir()} == {0o644}


@pytest.mark.parametrize(
    ("name", "change", "what"),
    [
        ("labels.txt", lambda data: data[:5], "has 5 bytes and had 19"),
        ("labels.txt", lambda data: data.upper(), "is not what was written: its bytes differ"),
        ("labels.txt", None, "is missing"),
        ("texts.txt", lambda data: b"sky\nwall\n", "is no file of this checkpoint"),
        ("config.yaml", lambda data: data + b"more: 1\n", r"has \d+ bytes and had \d+"),
        ("model.safetensors", lambda data: data[:-4] + b"\0\0\0\1", "is not what was written"),
    ],
)
def test_a_file_that_is_not_the_recorded_one_is_named(saved, name, change, what):
    write_digests(saved)
    LSeg.load(saved)
    path = saved / name
    if change is None:
        path.unlink()
    else:
        path.write_bytes(change(path.read_bytes() if path.exists() else b""))
    with pytest.raises(ModelError, match=rf"{name}: {what}.*fetch the checkpoint again, or delete"):
        LSeg.load(saved)
    (saved / "files.json").unlink()  # As the message says: without a record it is taken as it is.
    LSeg.load(saved)


def test_the_files_of_training_may_lack_and_the_record_may_not_be_damaged(saved):
    (saved / "trainer.pt").write_bytes(b"of training alone")
    write_digests(saved)
    (saved / "trainer.pt").unlink()
    assert LSeg.load(saved).labels == ("wall", "traffic light")
    for record in ("[]", "{", '{"labels.txt": 3}', '{"labels.txt": {"size": 1e999}}'):
        (saved / "files.json").write_text(record)
        with pytest.raises(ModelError, match=r"files\.json: is damaged"):
            LSeg.load(saved)


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


def write_labels(folder: Path, labels: bytes, texts: bytes | None = None) -> None:
    (folder / "labels.txt").write_bytes(labels)
    if texts is not None:
        (folder / "texts.txt").write_bytes(texts)


def set_weight(folder: Path, name: str, value: torch.Tensor) -> None:
    weights = load_file(folder / "model.safetensors")
    weights[name] = value
    save_file(weights, folder / "model.safetensors")


def kwargs_of(**values) -> dict:
    return {"backbone": {"name": "vit_tiny_patch16_224", "kwargs": values}}


HEAD = "decoder.head.weight"


UNIT = "decoder.fusion.0.path_unit"


def scale_weights(folder: Path, factor: float) -> None:
    weights = load_file(folder / "model.safetensors")
    scaled = {name: w * factor if w.is_floating_point() else w for name, w in weights.items()}
    save_file(scaled, folder / "model.safetensors")


@pytest.mark.parametrize(
    "damage",
    [
        # What the tensors say.
        lambda f: set_weight(f, "decoder.head.bias", torch.full((512,), float("nan"))),
        lambda f: set_weight(f, "decoder.fusion.0.out.bias", torch.ones(16, dtype=torch.bool)),
        lambda f: set_weight(f, "decoder.fusion.0.out.bias", torch.ones(16, dtype=torch.int64)),
        lambda f: set_weight(f, HEAD, torch.tensor(1.0)),
        # All of it is finite, and what it computes is not.
        lambda f: scale_weights(f, 1e20),
        lambda f: set_weight(f, f"{UNIT}.bn1.running_var", torch.full((16,), -1.0)),
        lambda f: set_weight(f, HEAD, torch.zeros(2**50, 0, 1, 1)),
        lambda f: set_weight(f, HEAD, torch.zeros(0, 16, 1, 1)),
        lambda f: set_weight(f, "x" * 10_000 + "\n", torch.zeros(1)),
        # What the settings say.
        lambda f: change_config(f, features=10**9),
        lambda f: change_config(f, features=float("nan")),
        lambda f: change_config(f, features=10**4000),
        lambda f: change_config(f, features=True),
        lambda f: change_config(f, reassemble=[10**6] * 4),
        lambda f: change_config(f, reassemble="1234"),
        lambda f: change_config(f, activation_checkpointing="no"),
        lambda f: change_config(f, backbone={"name": 7}),
        lambda f: change_config(f, backbone={"name": "local-dir:/tmp"}),
        lambda f: change_config(f, backbone={"name": "hf-hub:evil/x"}),
        lambda f: change_config(f, backbone={"name": "*" * 1000 + "[" * 1000}),
        lambda f: change_config(f, backbone={"name": "vit_tiny_patch16_224", "kwargs": [1]}),
        lambda f: change_config(f, backbone={"name": "vit_tiny_patch16_224", "hooks": ["a"] * 4}),
        lambda f: change_config(f, **kwargs_of(num_heads=2**50)),
        lambda f: change_config(f, **kwargs_of(num_heads=0)),
        lambda f: change_config(f, **kwargs_of(num_heads=[3, 3])),
        lambda f: change_config(f, **kwargs_of(depth=60_000, embed_dim=3, num_heads=1)),
        lambda f: change_config(f, **kwargs_of(embed_dim=60_000, mlp_ratio=1e12)),
        lambda f: change_config(f, **kwargs_of(patch_size=0)),
        lambda f: change_config(f, **kwargs_of(in_chans=5)),
        lambda f: change_config(f, **kwargs_of(block_fn="os.system")),
        lambda f: change_config(f, **kwargs_of(pretrained_cfg_overlay={"std": [0, 0, 0]})),
        lambda f: change_config(f, **kwargs_of(pretrained_cfg_overlay={"mean": "abc"})),
        lambda f: change_config(f, text={"encoder": 7}),
        lambda f: change_config(f, text={"encoder": "local-dir:/no/such"}),
        lambda f: change_config(f, text={"encoder": "x" * 9000 + "(not published)"}),
        lambda f: change_config(f, text={"encoder": "ViT-B-32", "pretrained": "/tmp/evil.pt"}),
        lambda f: change_config(f, text={"encoder": "stand-in", "templates": ["{}"]}),
        lambda f: change_config(f, regularizer={"kind": ["none"]}),
        lambda f: change_config(f, regularizer={"kind": "depthwise", "depth": 10**9}),
        lambda f: change_config(f, **{"k" * 10_000: [["x"] * 100] * 100}),
        lambda f: (f / "config.yaml").write_bytes(b"model: \xff"),
        lambda f: (f / "config.yaml").write_bytes(b"model: 7"),
        lambda f: (f / "config.yaml").write_bytes(b"model: {1: 2}"),
        lambda f: (f / "config.yaml").write_bytes(b"#" * 5_000_000),
        # What the labels say.
        lambda f: write_labels(f, b"\xff\xfe\n"),
        lambda f: write_labels(f, b"wall\ntraffic light\n", b"wall\n"),
        lambda f: write_labels(f, b"wall\n", b"wall\ntraffic light\n"),
        lambda f: write_labels(f, b"", b"wall\n"),
        lambda f: write_labels(f, b"x\n" * 70_000),
        lambda f: write_labels(f, b"x" * 5_000_000),
    ],
    ids=range(50),
)
def test_whatever_a_folder_holds_ends_in_one_line_at_once(saved, damage, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    damage(saved)
    began, before = time.monotonic(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with costs_at_most(1000), pytest.raises(ModelError) as caught:
        LSeg.load(saved)
    assert time.monotonic() - began < 60  # Nothing was asked that does not answer.
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 1200
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 500_000  # KiB


def test_the_text_encoder_of_the_caller_takes_the_place_of_one_that_is_not_followed(saved):
    change_config(saved, text={"encoder": "sentence-transformers//tmp/theirs"})
    with pytest.raises(ModelError, match="not followed"):
        LSeg.load(saved)
    lseg = LSeg.load(saved, text=TextConfig(encoder="stand-in"))
    assert lseg.embed_text(["wall"]).shape == (1, 512)


def test_an_encoder_of_another_length_is_named(saved, tiny_lseg):
    lseg = LSeg.load(saved)
    lseg.embed_dim = 500
    with pytest.raises(ModelError, match=r"makes vectors of 512 numbers.*trained on 500"):
        lseg.embed_text(["wall"])


def test_the_checkpoints_of_a_run_are_named_where_one_is_missing(saved, tmp_path):
    run = tmp_path / "run"
    for name in ("step_00000010", "step_00000200", "best_00000010", "other"):
        shutil.copytree(saved, run / name)
    with pytest.raises(FileNotFoundError, match=r"best_0.*step_00000200 is the newest") as caught:
        LSeg.load(run)
    assert "other" not in str(caught.value)


@pytest.mark.parametrize("end", "\n \r \v \f \x1c \x1d \x1e \x85 \u2028 \u2029".split(" "))
def test_every_character_that_ends_a_line_is_refused_in_a_label(tiny_lseg, tmp_path, end):
    for label in (f"a{end}b", f"a{end}", f"{end}a", end):
        with pytest.raises(ModelError, match="must be one line"):
            save_checkpoint(tmp_path, tiny_lseg, [label])
    save_checkpoint(tmp_path, tiny_lseg, ["", "ü 道路\t🚗"])
    assert read_checkpoint(tmp_path).labels == ("", "ü 道路\t🚗")


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
