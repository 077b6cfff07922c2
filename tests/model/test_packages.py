"""Weights of packages: found without an import, checked by content, refused by name."""

import hashlib
import zipfile

import pytest

from model.backbone import require_own_file
from model.checkpoint import followed
from model.config import BackboneConfig, TextConfig
from model.errors import ModelError
from model.packages import BACKBONE_PACKAGES, TEXT_PACKAGES, WeightsPackage, read_member


def test_a_name_that_is_in_no_table_is_refused_with_the_nearest():
    with pytest.raises(ModelError, match="did you mean package:all-minilm-l6-v2"):
        TextConfig(encoder="package:all-minilm-l6")
    with pytest.raises(ModelError, match=r"backbone\.weights=package:nothing: is none of"):
        BackboneConfig(name="tf_efficientnet_lite0", weights="package:nothing")


def test_weights_of_another_backbone_are_refused():
    with pytest.raises(ModelError, match=r"set backbone\.name=tf_efficientnet_lite0 \(now resnet"):
        BackboneConfig(name="resnet18", weights="package:efficientnet-lite0")


def test_a_package_that_is_not_installed_names_the_extra():
    entry = WeightsPackage("no-such-package-of-ours", "a/b.bin", "0" * 64)
    with pytest.raises(ModelError, match=r"which is not installed: .*'\.\[photos\]'"):
        entry.file("text.encoder=package:x")
    assert entry.version == ""


def test_bytes_that_the_name_does_not_stand_for_are_refused():
    # The metadata of a package that is there for certain stand in for a file of weights.
    path = "numpy/__init__.py"
    with pytest.raises(ModelError, match="the weights are others than this name stands for"):
        WeightsPackage("numpy", path, "0" * 64).checked("here")
    found = WeightsPackage("numpy", path, "").file("here")
    digest = hashlib.sha256(found.read_bytes()).hexdigest()
    assert WeightsPackage("numpy", path, digest).checked("here") == found
    with pytest.raises(ModelError, match="which has no file numpy/nothing"):
        WeightsPackage("numpy", "numpy/nothing", "").file("here")


def test_a_damaged_archive_is_one_message(tmp_path):
    (tmp_path / "a.zip").write_bytes(b"PK no zip")
    with zipfile.ZipFile(tmp_path / "b.zip", "w") as file:
        file.writestr("other", b"")
    for name in ("a.zip", "b.zip", "c.zip"):
        with pytest.raises(ModelError, match="is damaged"):
            read_member(tmp_path / name, "model.safetensors", "text.encoder=package:x")


def test_a_checkpoint_may_name_a_package_of_the_table_and_no_table(tmp_path, monkeypatch):
    monkeypatch.delenv("LSEG_TEXT_ENCODER", raising=False)
    for name in TEXT_PACKAGES:
        named = TextConfig(encoder=f"package:{name}", pretrained="/whatever/is/not/read")
        assert followed(named, tmp_path) == named
    with pytest.raises(ModelError, match="is not followed"):
        followed(TextConfig(encoder="table:/etc/passwd"), tmp_path)
    mine = TextConfig(encoder="table:/mine.txt")
    assert followed(TextConfig(encoder="table:/theirs"), tmp_path, mine).encoder == mine.encoder


def test_weights_that_would_not_be_used_are_refused():
    with pytest.raises(ModelError, match=r"has no effect with backbone\.pretrained=false"):
        require_own_file(BackboneConfig(name="resnet18", weights="w.pth", pretrained=False))
    both = BackboneConfig(
        name="resnet18", weights="w.pth", kwargs={"pretrained_cfg_overlay": {"file": "v.pth"}}
    )
    with pytest.raises(ModelError, match="names weights too"):
        require_own_file(both)


def test_every_backbone_of_the_table_is_named():
    assert all(entry.backbone for entry in BACKBONE_PACKAGES.values())
