import json
import pickle
import re
import shutil
from pathlib import Path

import huggingface_hub.hub_mixin
import numpy as np
import pytest
import yaml
from huggingface_hub import constants

from model import hub as hub_module
from model.checkpoint_files import checkpoint_fingerprint
from model.config import TextConfig
from model.errors import ModelError, Unreachable
from model.hub import fetch, fetch_uri
from model.lseg import LSeg
from tests.support.fake_hub import COMMIT, fake_hub

RUN = Path(__file__).resolve().parents[1] / "golden" / "formats" / "run" / "best_00000003"
IMAGE = np.random.default_rng(0).integers(0, 256, (40, 50, 3), np.uint8)


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A fake hub that holds `me/tiny`, and the folder to put more into."""
    shutil.copytree(RUN, tmp_path / "served" / "me" / "tiny")
    with fake_hub(tmp_path / "served") as (address, asked):
        monkeypatch.setattr(constants, "ENDPOINT", address)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", address + TEMPLATE)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        yield tmp_path / "served" / "me" / "tiny", asked


TEMPLATE = "/{repo_id}/resolve/{revision}/{filename}"


def test_a_saved_network_answers_as_before(tmp_path):
    lseg = LSeg.from_pretrained(RUN)
    lseg.save_pretrained(tmp_path / "saved")
    again = LSeg.from_pretrained(str(tmp_path / "saved"))
    np.testing.assert_array_equal(lseg.predict(IMAGE)[0], again.predict(IMAGE)[0])
    assert again.labels == lseg.labels


def test_a_network_without_a_folder_can_be_saved(tiny_lseg, tmp_path):
    tiny_lseg.save_pretrained(tmp_path / "saved")
    assert LSeg.from_pretrained(tmp_path / "saved").config.features == tiny_lseg.config.features


def test_nothing_of_the_machine_is_published(tmp_path):
    LSeg.from_pretrained(RUN).save_pretrained(tmp_path / "saved")
    everything = b"".join(path.read_bytes() for path in (tmp_path / "saved").iterdir())
    for secret in (b"/tmp/", b"sqlite", b"mlflow_run_id", b"ray_job_id"):
        assert secret in b"".join(path.read_bytes() for path in RUN.iterdir())
        assert secret not in everything


SECRET = "/home/alice/secret"


def with_text(folder: Path, **text: str) -> Path:
    """A copy of the run's checkpoint whose settings name another text encoder."""
    shutil.copytree(RUN, folder)
    settings = yaml.safe_load((folder / "config.yaml").read_text())
    settings["model"]["text"] |= text
    (folder / "config.yaml").write_text(yaml.safe_dump(settings))
    (folder / "files.json").unlink(missing_ok=True)
    return folder


@pytest.mark.parametrize(
    ("text", "variable"),
    [
        ({"encoder": f"sentence-transformers/{SECRET}"}, "ENCODER=sentence-transformers/PATH"),
        ({"encoder": f"table:{SECRET}/words.txt"}, "ENCODER=table:PATH"),
        ({"encoder": f"local-dir:{SECRET}"}, "ENCODER=local-dir:PATH"),
        ({"encoder": SECRET}, "ENCODER=its name or place"),
        ({"encoder": "ViT-B-32", "pretrained": f"{SECRET}.pt"}, "PRETRAINED=PATH"),
    ],
)
def test_no_place_of_a_text_encoder_is_published(tmp_path, text, variable):
    own = TextConfig(encoder="stand-in", pretrained=f"{SECRET}/own.pt")
    lseg = LSeg.load(with_text(tmp_path / "run", **text), text=own)
    lseg.save_pretrained(tmp_path / "saved")
    (tmp_path / "saved" / "README.md").write_text(str(lseg.generate_model_card()))
    everything = b"".join(path.read_bytes() for path in (tmp_path / "saved").iterdir())
    assert b"secret" not in everything
    assert everything.count(b"(not published)") >= 2
    assert "is not part of these files: name the same one with LSEG_TEXT_ENCODER" in str(
        lseg.generate_model_card()
    )
    with pytest.raises(
        ModelError,
        match=re.escape(
            f"is not published: name the same one on this machine: LSEG_TEXT_{variable}"
        ),
    ):
        LSeg.from_pretrained(tmp_path / "saved")
    again = LSeg.from_pretrained(tmp_path / "saved", text=own)
    assert again.labels == lseg.labels


def test_the_page_says_whether_the_text_encoder_is_part_of_the_files(tmp_path):
    assert "`stand-in`, frozen, not part of these files" in str(
        LSeg.from_pretrained(RUN).generate_model_card()
    )
    folder = with_text(tmp_path / "run", encoder="ViT-B-32", pretrained="text_encoder.safetensors")
    shutil.copyfile(RUN / "model.safetensors", folder / "text_encoder.safetensors")
    lseg = LSeg.load(folder)
    lseg.save_pretrained(tmp_path / "saved")
    assert (tmp_path / "saved" / "text_encoder.safetensors").is_file()
    page = str(lseg.generate_model_card())
    assert "its weights are part of these files (`text_encoder.safetensors`)" in page
    assert "not part of these files" not in page


def test_the_network_comes_from_the_hub_and_then_from_its_cache(hub, monkeypatch):
    _, asked = hub
    lseg = LSeg.from_pretrained("me/tiny")
    np.testing.assert_array_equal(lseg.predict(IMAGE)[0], LSeg.load(RUN).predict(IMAGE)[0])
    assert any(f"/resolve/{COMMIT}/model.safetensors" in path for path in asked)
    asked.clear()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert LSeg.from_pretrained("me/tiny").labels == lseg.labels
    assert LSeg.load("hf://me/tiny").labels == lseg.labels
    assert asked == []


def test_no_pickle_is_fetched(hub):
    folder, asked = hub
    (folder / "trainer.pt").write_bytes(pickle.dumps({"a": 1}))
    fetched = fetch_uri("hf://me/tiny@main")
    assert not (fetched / "trainer.pt").exists()
    assert not any("trainer" in path for path in asked)


def test_the_rules_for_strangers_hold(hub):
    folder, _ = hub
    settings = (folder / "config.yaml").read_text()
    (folder / "config.yaml").write_text(
        settings.replace("encoder: stand-in", "encoder: hf-hub:x/y")
    )
    with pytest.raises(ModelError, match="is not followed"):
        LSeg.from_pretrained("me/tiny")


@pytest.mark.usefixtures("hub")
def test_a_file_beyond_the_bound_is_not_fetched(monkeypatch):
    monkeypatch.setattr("model.hub.MAX_GIB", 1e-6)
    with pytest.raises(ModelError, match=r"model.safetensors has \d+ bytes: must have at most"):
        fetch("me/tiny")


def test_a_repository_without_a_checkpoint_is_told(hub):
    folder, _ = hub
    (folder / "model.safetensors").unlink()
    with pytest.raises(ModelError, match=r"me/tiny: has no model.safetensors"):
        fetch("me/tiny")


@pytest.mark.parametrize("name", ["no such folder", "../x", "a/b/c", ""])
def test_a_name_that_is_none_is_refused(name):
    with pytest.raises(ModelError, match="is no folder, and no name on the Hub"):
        fetch(name)


@pytest.fixture
def unplug(hub, monkeypatch):
    """Makes the hub unreachable: nothing listens at the address."""

    def away():
        address = "http://127.0.0.1:9"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", address + TEMPLATE)
        monkeypatch.setattr(constants, "ENDPOINT", address)

    return away


def test_an_unreachable_hub_is_told(unplug):
    unplug()
    with pytest.raises(
        Unreachable, match=r"config.yaml is not in the Hub's cache here, and the Hub does not answ"
    ):
        fetch("me/tiny")
    with pytest.raises(Unreachable, match=r"is not in the Hub's cache here, and only the cache"):
        fetch("me/tiny", local_files_only=True)


@pytest.mark.parametrize("revision", [None, "main", COMMIT])
def test_a_copy_in_the_cache_serves_while_the_hub_is_unreachable(unplug, caplog, revision):
    first = fetch("me/tiny", revision)
    unplug()
    assert fetch("me/tiny", revision) == first
    assert LSeg.from_pretrained("me/tiny", revision=revision).labels == LSeg.load(RUN).labels
    # Of a commit nothing had to be asked.
    assert ("the Hub does not answer (ConnectError)" in caplog.text) == (revision != COMMIT)


def test_a_cached_commit_is_loaded_without_a_question(hub):
    _, asked = hub
    fetch("me/tiny")
    asked.clear()
    fetch("me/tiny", COMMIT)
    assert asked == []
    fetch("me/tiny", COMMIT, force_download=True)
    assert any("model.safetensors" in path for path in asked)


def test_a_copy_is_no_substitute_where_it_is_to_be_fetched_anew(unplug):
    fetch("me/tiny")
    unplug()
    with pytest.raises(Unreachable, match=r"config.yaml cannot be fetched, and the Hub does not"):
        fetch("me/tiny", force_download=True)


@pytest.mark.parametrize("lost", ["labels.txt", "model.safetensors"])
def test_a_hub_that_goes_away_between_two_files_leaves_no_half_checkpoint(hub, monkeypatch, lost):
    """Whether labels.txt exists is not known then: a network without its labels is another."""
    whole = hub_module.get_hf_file_metadata

    def lose(url, **how):
        if lost in url:
            raise ConnectionError
        return whole(url, **how)

    monkeypatch.setattr(hub_module, "get_hf_file_metadata", lose)
    with pytest.raises(Unreachable, match=f"{lost} is not in the Hub's cache here"):
        fetch("me/tiny")
    with pytest.raises(Unreachable, match=r"model.safetensors is not in the Hub's cache here"):
        fetch("me/tiny", local_files_only=True)


def test_files_of_the_cache_are_bounded_too(unplug, monkeypatch):
    fetch("me/tiny")
    unplug()
    monkeypatch.setattr("model.hub.MAX_GIB", 1e-6)
    for revision in ("main", COMMIT):
        with pytest.raises(ModelError, match=r"model.safetensors has \d+ bytes: must have at most"):
            fetch("me/tiny", revision)


def test_what_is_pushed_has_a_page_with_its_figures(tmp_path, monkeypatch):
    """The Hub itself is replaced: its interface gets a folder, whose content is kept."""

    class Api:
        def __init__(self, token=None):
            pass

        def create_repo(self, repo_id, private, exist_ok):
            return type("Repo", (), {"repo_id": repo_id})

        def upload_folder(self, repo_id, folder_path, **_):
            shutil.copytree(folder_path, tmp_path / "pushed")
            return f"https://hub/{repo_id}"

    monkeypatch.setattr(huggingface_hub.hub_mixin, "HfApi", Api)
    report = tmp_path / "report.json"
    figures = {"protocol": "fss", "split": "val", "other": "none", "zero_shot": "yes | <b>"}
    figures["checkpoint_fingerprint"] = checkpoint_fingerprint(RUN)
    report.write_text(json.dumps(figures | {"figures": {"miou": 0.5}}))
    lseg = LSeg.from_pretrained(RUN)
    address = lseg.push_to_hub("me/new", model_card_kwargs={"reports": [report]})
    assert address == "https://hub/me/new"
    page = (tmp_path / "pushed" / "README.md").read_text()
    assert "| fss | val | none | yes / (b) | 50.0 |" in page
    assert 'LSeg.from_pretrained("me/new")' in page
    assert "| ade20k | `53ff2092ad2b7db7` |" in page
    assert "**not** zero-shot" in page
    assert "f9ab2ff34872ddd1e82e46169f7c6e3d3804e054" in page
    assert LSeg.load(tmp_path / "pushed").labels == lseg.labels


@pytest.mark.parametrize("content", ["", "[]", "{}", "[" * 100_000])
def test_a_report_that_is_none_is_refused(tmp_path, content):
    (tmp_path / "report.json").write_text(content)
    with pytest.raises(ModelError, match=r"report.json"):
        LSeg.from_pretrained(RUN).generate_model_card(reports=[tmp_path / "report.json"])


@pytest.mark.parametrize(
    ("of", "said"),
    [
        ({"checkpoint_fingerprint": "0123456789abcdef"}, "of checkpoint '0123456789abcdef', and"),
        ({}, "of a checkpoint that it does not name, and"),
    ],
)
def test_a_report_of_another_checkpoint_is_refused(tiny_lseg, tmp_path, of, said):
    report = tmp_path / "report.json"
    report.write_text(json.dumps({"protocol": "fss", "figures": {"miou": 0.5}} | of))
    own = f"{said} this one is {checkpoint_fingerprint(RUN)}: evaluate the folder"
    with pytest.raises(ModelError, match=own):
        LSeg.from_pretrained(RUN).generate_model_card(reports=[report])
    with pytest.raises(ModelError, match=f"{said} this network comes from no folder"):
        tiny_lseg.generate_model_card(reports=[report])
