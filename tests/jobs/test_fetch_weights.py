"""Weights are fetched once, and used without the hub: from a folder, and from S3 on each node."""

import json
from dataclasses import replace
from pathlib import Path

import open_clip
import pytest
import timm
import torch
from huggingface_hub import constants
from open_clip import pretrained
from safetensors.torch import save_file

from jobs.fetch_weights import FetchConfig, run
from model.config import BackboneConfig, ModelConfig, TextConfig
from model.errors import ModelError
from model.lseg import build_lseg
from model.text import asks_the_hub, build_text_encoder
from pipeline.checkpoints import prefetched
from pipeline.checkpoints.prefetched import LISTING, use_prefetched
from pipeline.errors import UserError
from pipeline.storage.open import open_storage
from tests.support.fake_hub import fake_hub

VIT = {"patch_size": 8, "depth": 4, "embed_dim": 48, "num_heads": 3, "img_size": 64}
NAME = "vit_tiny_patch16_224"
CLIP = {
    "embed_dim": 32,
    "vision_cfg": {"image_size": 32, "layers": 1, "width": 64, "patch_size": 16},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1},
}
MODEL = ModelConfig(
    backbone=BackboneConfig(name=NAME, kwargs=VIT),
    text=TextConfig(encoder="tiny-clip", pretrained="own"),
    features=8,
)


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A hub with the weights of both parts of the model; the process asks it."""
    torch.manual_seed(0)
    settings = tmp_path / "settings"
    settings.mkdir()
    (settings / "tiny-clip.json").write_text(json.dumps(CLIP))
    open_clip.add_model_config(settings)
    monkeypatch.setitem(pretrained._PRETRAINED, "tiny-clip", {"own": {"hf_hub": "own/tiny-clip/"}})
    published = timm.get_pretrained_cfg(NAME)
    assert published
    folder = tmp_path / "hub"
    states = {
        f"{published.hf_hub_id}/model.safetensors": timm.create_model(NAME, **VIT),
        "own/tiny-clip/open_clip_model.safetensors": open_clip.create_model("tiny-clip"),
    }
    for path, network in states.items():
        (folder / path).parent.mkdir(parents=True)
        save_file(network.state_dict(), folder / path)
    for name in ("LSEG_WEIGHTS", "HF_HUB_OFFLINE", "HF_HUB_CACHE"):
        monkeypatch.setenv(name, "")  # Is put back as it was at the end, whatever happens to it.
        monkeypatch.delenv(name)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", constants.HF_HUB_CACHE)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    with fake_hub(folder) as (address, asked):
        monkeypatch.setattr(constants, "ENDPOINT", address)
        template = constants.HUGGINGFACE_CO_URL_TEMPLATE
        monkeypatch.setattr(
            constants, "HUGGINGFACE_CO_URL_TEMPLATE", address + template[template.index("/{repo") :]
        )
        yield asked


def loaded(model: ModelConfig = MODEL) -> tuple[torch.Tensor, torch.Tensor]:
    """What a worker loads: the vector of a word, and a weight of the backbone."""
    encoder = build_text_encoder(model.text)
    lseg = build_lseg(model, encoder.dim)
    weight = dict(lseg.named_parameters())["backbone.vit.blocks.0.attn.qkv.weight"]
    return encoder.encode(["cat"]), weight


def test_a_folder_of_weights_replaces_the_hub(hub, tmp_path, monkeypatch, capsys):
    place = tmp_path / "weights"
    run(FetchConfig(model=MODEL, to=str(place)))
    assert f"LSEG_WEIGHTS={place}" in capsys.readouterr().out
    from_hub = loaded()
    listed = json.loads((place / LISTING).read_text())["files"]
    assert sum(name.endswith(".safetensors") for name in listed) == 2
    monkeypatch.setenv("LSEG_WEIGHTS", str(place))
    hub.clear()
    use_prefetched()
    assert all(map(torch.equal, loaded(), from_hub))
    assert hub == []
    # What the place lacks is no reason to ask the hub, and the message leads to the job.
    other = replace(MODEL, backbone=BackboneConfig(name="vit_small_patch16_224"))
    with pytest.raises(ModelError, match=r"LSEG_WEIGHTS=.*does not hold.*fetch_weights\.py"):
        loaded(other)
    assert hub == []


def test_each_node_copies_the_weights_of_s3_once(hub, s3_bucket, tmp_path, monkeypatch):
    place = f"{s3_bucket}/weights"
    run(FetchConfig(model=MODEL, to=place))
    from_hub = loaded()
    monkeypatch.setenv("LSEG_WEIGHTS", place)
    monkeypatch.setenv("LSEG_WEIGHTS_CACHE_DIR", str(tmp_path / "node"))
    hub.clear()
    use_prefetched()
    assert all(map(torch.equal, loaded(), from_hub))
    assert hub == []
    (copy,) = [path for path in (tmp_path / "node").iterdir() if path.is_dir()]
    read = []
    monkeypatch.setattr(prefetched, "_copy_file", lambda *words: read.append(words))
    use_prefetched()
    assert read == []
    assert constants.HF_HUB_CACHE == str(copy)


def test_weights_of_s3_that_changed_on_the_way_are_refused(hub, s3_bucket, tmp_path, monkeypatch):
    place = f"{s3_bucket}/damaged"
    run(FetchConfig(model=MODEL, to=place))
    storage = open_storage(place)
    (name,) = [each for each in prefetched._listed(storage) if "tiny-clip/snap" in each]
    storage.write(name, b"x" * storage.size(name))
    monkeypatch.setenv("LSEG_WEIGHTS", place)
    monkeypatch.setenv("LSEG_WEIGHTS_CACHE_DIR", str(tmp_path / "node"))
    with pytest.raises(UserError, match=r"is not the file of its listing"):
        use_prefetched()
    assert [path for path in (tmp_path / "node").iterdir() if path.is_dir()] == []
    document = json.loads(storage.read(LISTING))
    document["files"]["models--x/../../evil"] = document["files"].pop(name)
    storage.write(LISTING, json.dumps(document).encode())
    with pytest.raises(UserError, match=r"weights\.json: is no listing of weights"):
        use_prefetched()


def test_a_place_without_weights_is_named(monkeypatch, tmp_path, s3_bucket):
    for place in (str(tmp_path), f"{s3_bucket}/nothing"):
        monkeypatch.setenv("LSEG_WEIGHTS", place)
        with pytest.raises(UserError, match=r"LSEG_WEIGHTS=.*holds no weights\.json") as caught:
            use_prefetched()
        assert "\n" not in str(caught.value)


def test_what_cannot_be_fetched_is_said(hub, monkeypatch, tmp_path):
    offline = ModelConfig(
        backbone=BackboneConfig(name=NAME, pretrained=False), text=TextConfig(encoder="stand-in")
    )
    with pytest.raises(UserError, match="needs nothing of the hub"):
        run(FetchConfig(model=offline, to=str(tmp_path / "a")))
    # A file beside open_clip's own tokenizer; a model with another library's still asks.
    own_file = TextConfig(encoder="ViT-B-32", pretrained=str(tmp_path / "tower.safetensors"))
    with pytest.raises(UserError, match="needs nothing of the hub"):
        run(FetchConfig(model=replace(offline, text=own_file), to=str(tmp_path / "a")))
    assert asks_the_hub(replace(own_file, encoder="ViT-B-16-SigLIP"))
    assert asks_the_hub(MODEL.text)
    with pytest.raises(UserError, match="to='': must be a folder"):
        FetchConfig(model=MODEL)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(UserError, match="HF_HUB_OFFLINE=1: weights come from the hub: unset"):
        run(FetchConfig(model=MODEL, to=str(tmp_path / "a")))


def test_others_may_not_write_where_the_copies_lie(hub, tmp_path, monkeypatch):
    folder = tmp_path / "open"
    folder.mkdir()
    folder.chmod(0o777)
    monkeypatch.setenv("LSEG_WEIGHTS_CACHE_DIR", str(folder))
    with pytest.raises(UserError, match=r"LSEG_WEIGHTS_CACHE_DIR=.*this user alone"):
        prefetched._private_folder()
    assert Path(folder).exists()
