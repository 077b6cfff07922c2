"""Published checkpoints: round trip, what the keys tell, and files not to be trusted."""

import argparse
import os
import resource
import runpy
import subprocess
import sys
import zipfile
from collections import OrderedDict
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml

from jobs.export_official import ExportConfig
from jobs.export_official import run as run_export
from jobs.import_official import ImportConfig
from jobs.import_official import run as run_import
from model.checkpoint_files import CONFIG, TEXT_WEIGHTS
from model.config import RegularizerConfig
from model.errors import ModelError
from model.lightning_file import TorchFile, is_tensor, plain_mapping
from model.lseg import LSeg, build_lseg
from model.official import export_official, import_official
from model.official_keys import infer_config, official_name
from pipeline.errors import UserError
from tests.golden.run_case import published_shapes
from tests.support.cpu_cost import costs_at_most

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def exported(tiny_lseg, tmp_path):
    path = tmp_path / "tiny.ckpt"
    export_official(tiny_lseg, path)
    return path


def test_round_trip_changes_nothing(tiny_lseg, exported, tmp_path):
    imported = import_official(exported)
    assert imported.lseg.config == tiny_lseg.config
    image, text = torch.randn(1, 3, 64, 64), torch.randn(3, 512)
    for name, value in tiny_lseg.state_dict().items():
        assert torch.equal(imported.lseg.state_dict()[name], value), name
    assert torch.equal(imported.lseg(image, text), tiny_lseg(image, text))
    export_official(imported.lseg, tmp_path / "again.ckpt")
    first, again = (
        torch.load(path, weights_only=True)["state_dict"]
        for path in (exported, tmp_path / "again.ckpt")
    )
    assert first.keys() == again.keys()
    assert all(torch.equal(first[name], again[name]) for name in first)


def test_exports_hold_every_entry_of_the_published_network(exported):
    names = torch.load(exported, weights_only=True)["state_dict"].keys()
    assert "net.pretrained.model.norm.weight" in names
    assert "net.pretrained.model.head.bias" in names
    assert "net.scratch.refinenet4.resConfUnit1.bn2.running_var" in names
    assert "net.scratch.head_block.depthwise.depthwise.bias" in names


def test_what_the_published_form_cannot_hold_is_refused(tiny_config, tmp_path):
    regularizer = RegularizerConfig(kind="depthwise", depth=2, shared=False)
    lseg = build_lseg(replace(tiny_config, regularizer=regularizer), 512)
    with pytest.raises(ModelError, match="one shared regulariser"):
        export_official(lseg, tmp_path / "x.ckpt")
    backbone = replace(tiny_config.backbone, hooks=(0, 1, 1, 3))
    lseg = build_lseg(replace(tiny_config, backbone=backbone), 512)
    with pytest.raises(ModelError, match="each quarter"):
        export_official(lseg, tmp_path / "x.ckpt")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("backbone", "timm_name", "embed_dim", "encoder"),
    [
        ("vitb32", "vit_base_patch32_384", 512, "ViT-B-32-quickgelu"),
        ("vitl16", "vit_large_patch16_384", 768, "RN50x16-quickgelu"),
        ("resnet101", "resnet101.tv_in1k", 512, "ViT-B-32-quickgelu"),
    ],
)
def test_keys_tell_the_architecture(backbone, timm_name, embed_dim, encoder):
    shapes = {k: tuple(v) for k, v in published_shapes(backbone, False, embed_dim).items()}
    config, notes = infer_config(shapes, {}, None, "file")
    assert config.backbone.name == timm_name
    assert config.text.encoder == encoder
    assert config.features == 256
    assert config.regularizer == RegularizerConfig()
    assert "two label" in notes[0]
    with torch.device("meta"):
        network = build_lseg(config, embed_dim)
    assert {official_name(name) for name in network.state_dict()} <= shapes.keys()


@pytest.mark.parametrize(
    ("hyper", "kind", "depth"),
    [
        ({"arch_option": 1, "block_depth": 2, "activation": "tanh"}, "bottleneck", 2),
        ({"arch_option": 2, "block_depth": 0, "activation": "lrelu"}, "depthwise", 1),
    ],
)
def test_hyper_parameters_tell_the_regulariser(hyper, kind, depth):
    shapes = {k: tuple(v) for k, v in published_shapes("vitb32", True).items()}
    config, _ = infer_config(shapes, hyper, None, "file")
    assert (config.regularizer.kind, config.regularizer.depth) == (kind, depth)
    assert config.regularizer.activation == hyper["activation"]
    assert config.regularizer.init == "reference"
    with pytest.raises(ModelError, match="does not say which one"):
        infer_config(shapes, {}, None, "file")
    given = RegularizerConfig(kind="depthwise", depth=3, activation="relu")
    assert infer_config(shapes, {}, given, "file")[0].regularizer.depth == 3


@pytest.mark.parametrize("positions", [None, (), (145,)])
def test_a_vit_without_its_position_embedding_is_refused(positions):
    shapes = {k: tuple(v) for k, v in published_shapes("vitb32", False).items()}
    shapes["pretrained.model.pos_embed"] = positions
    if positions is None:
        del shapes["pretrained.model.pos_embed"]
    with pytest.raises(ModelError, match="pos_embed is missing or has shape"):
        infer_config(shapes, {}, None, "file")


def test_hyper_parameters_of_a_wrong_type_say_nothing():
    shapes = {k: tuple(v) for k, v in published_shapes("vitb32", True).items()}
    hyper = {"arch_option": [1], "block_depth": 2, "activation": "tanh"}
    with pytest.raises(ModelError, match="does not say which one"):
        infer_config(shapes, hyper, None, "file")


def resave(path: Path, change) -> None:
    content = torch.load(path, weights_only=True)
    change(content)
    torch.save(content, path)


def drop_and_add(content) -> None:
    content["state_dict"].pop("net.scratch.head1.bias")
    content["state_dict"]["net.scratch.extra"] = torch.zeros(2)
    content["state_dict"]["net.pretrained.model.cls_token"] = torch.zeros(1, 1, 7)


def test_what_does_not_fit_is_listed(exported):
    resave(exported, drop_and_add)
    with pytest.raises(ModelError) as caught:
        import_official(exported)
    message = str(caught.value)
    assert "1 missing:\n    scratch.head1.bias" in message
    assert "1 unexpected:\n    scratch.extra" in message
    assert "pretrained.model.cls_token (1, 1, 7) instead of (1, 1, 48)" in message


def test_a_wrong_backbone_is_refused(exported):
    resave(exported, lambda content: content["hyper_parameters"].clear())
    with pytest.raises(ModelError, match=r"\(width, patch, blocks\) = \(48, 8, 4\)"):
        import_official(exported)


def test_any_hyper_parameters_are_read_and_half_precision_is_widened(exported):
    def change(content):
        config = content["hyper_parameters"]["lseg_config"]
        content["hyper_parameters"] = argparse.Namespace(
            lseg_config=config,
            path=Path("/data"),
            kwargs={"x": 1},
            level=argparse.ArgumentTypeError,
        )
        content["state_dict"] = OrderedDict(
            (name, torch.nn.Parameter(value.half()) if value.ndim == 4 else value)
            for name, value in content["state_dict"].items()
        )
        content["callbacks"] = {argparse.ArgumentParser: {"best": torch.tensor(3.0)}}

    resave(exported, change)
    imported = import_official(exported)
    assert {value.dtype for value in imported.lseg.state_dict().values()} == {
        torch.float32,
        torch.int64,
    }


def test_a_configuration_in_the_file_names_no_other_file(exported, tmp_path):
    def change(content):
        kwargs = content["hyper_parameters"]["lseg_config"]["backbone"]["kwargs"]
        kwargs["checkpoint_path"] = str(exported)

    resave(exported, change)
    with pytest.raises(ModelError, match="checkpoint_path: is not allowed"):
        import_official(exported)


def test_clip_is_dropped_but_its_text_tower_kept_apart(tiny_lseg, tmp_path):
    clip = {"visual.conv1.weight": torch.zeros(2, 3, 4, 4), "ln_final.bias": torch.ones(4).half()}
    export_official(tiny_lseg, tmp_path / "x.ckpt", clip)
    imported = import_official(tmp_path / "x.ckpt")
    assert imported.text_weights.keys() == {"ln_final.bias"}
    assert imported.text_weights["ln_final.bias"].dtype == torch.float32
    assert any("visual tower, 1 entries" in note for note in imported.notes)


class Attack:
    """Unpickles into a call, as a malicious checkpoint would."""

    def __init__(self, function, *args):
        self.call = (function, args)

    def __reduce__(self):
        return self.call


def fire(path):
    Path(path).write_text("ran")


@pytest.mark.parametrize("function", [os.system, exec, eval, subprocess.getoutput])
def test_a_malicious_file_is_refused_and_runs_nothing(exported, tmp_path, function):
    trace = tmp_path / "trace"
    code = f"open({str(trace)!r}, 'w')" if function in (exec, eval) else f"touch {trace}"
    resave(exported, lambda content: content.update(epoch=Attack(function, code)))
    with pytest.raises(ModelError, match="do not trust this file"):
        import_official(exported)
    assert not trace.exists()
    # The file is what it claims to be: read the usual way, it fires.
    torch.load(exported, weights_only=False)
    assert trace.exists()


def test_an_unsuspicious_call_is_never_made_either(exported, tmp_path):
    trace = tmp_path / "trace"
    resave(exported, lambda content: content.update(epoch=Attack(fire, str(trace))))
    import_official(exported)
    assert not trace.exists()


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip_a_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def write_text(path: Path) -> None:
    path.write_text("<html>404</html>")


def compress(path: Path) -> None:
    with zipfile.ZipFile(path) as source:
        parts = {name: source.read(name) for name in source.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as target:
        for name, data in parts.items():
            target.writestr(name, data)


def reach_outside(path: Path) -> None:
    with zipfile.ZipFile(path) as source:
        parts = {name: source.read(name) for name in source.namelist()}
    with zipfile.ZipFile(path, "w") as target:
        for name, data in parts.items():
            target.writestr(name, data[:4] if "/data/" in name else data)


def empty_storages(path: Path) -> None:
    with zipfile.ZipFile(path) as source:
        parts = {name: source.read(name) for name in source.namelist()}
    with zipfile.ZipFile(path, "w") as target:
        for name, data in parts.items():
            target.writestr(name, b"" if "/data/" in name else data)


def swell(path: Path) -> None:
    """A tensor of a stride of 0: few numbers, any shape."""
    content = torch.load(path, weights_only=True)
    name = "net.scratch.head1.weight"
    shape = content["state_dict"][name].shape
    content["state_dict"][name] = torch.zeros(1, 1, 1, 1).expand(shape)
    torch.save(content, path)


@pytest.mark.parametrize(
    "damage",
    [truncate, flip_a_bit, write_text, compress, reach_outside, empty_storages, swell],
)
def test_damaged_files_are_refused(exported, damage):
    damage(exported)
    with pytest.raises(ModelError, match=r"no complete torch\.save file"):
        import_official(exported)


def with_pickle(path: Path, data: bytes) -> None:
    with zipfile.ZipFile(path, "w") as target:
        target.writestr("archive/data.pkl", data)


HOSTILE = {
    "memo": b"\x80\x02Nr\x00\x00\x00\x08.",
    "names": b"\x80\x02" + b"cx\ny\n0" * 200_000 + b"N.",
    "steps": b"\x80\x02" + b"N0" * 600_000 + b"N.",
    "doubled": b"\x80\x02N" + b"2\x86" * 60 + b".",
    "long": b"\x80\x04\x96" + b"\xff" * 7 + b"\x0f.",
    "persistent": b"\x80\x02)" + b"".join(b"q%ch%c\x86" % (n, n) for n in range(60)) + b"Q.",
    "key": b"\x80\x02})" + b"".join(b"q%ch%c\x86" % (n, n) for n in range(60)) + b"Ns.",
    "hidden": b"\x80\x02})" + b"".join(b"q%cN0h%c\x86" % (n, n) for n in range(60)) + b"Ns.",
    "memoized": b"\x80\x04})" + b"".join(b"\x94h%c\x86" % n for n in range(60)) + b"Ns.",
    # What C code follows by recursion until its stack is full: the hash of a key.
    "nested": b"\x80\x04})" + b"\x85" * 400_000 + b"Ns.",
    "nested set": b"\x80\x04\x8f()" + b"\x85" * 400_000 + b"\x90.",
    # Numbers of one hash, and tuples, of which an attacker can find such ones too.
    "collisions": b"\x80\x02}("
    + b"".join(
        b"\x8a\x0a" + (n * (2**61 - 1)).to_bytes(10, "little") + b"N" for n in range(1, 40_000)
    )
    + b"u.",
    "keys": b"\x80\x02}(" + b"".join(b"M%c%c\x85N" % divmod(n, 256) for n in range(2000)) + b"u.",
    "called": b"\x80\x02ccollections\nOrderedDict\n((lK\x01K\x02\x86atR.",
}


@pytest.mark.parametrize("kind", sorted(HOSTILE))
def test_a_few_bytes_take_neither_memory_nor_time(tmp_path, kind):
    with_pickle(tmp_path / "x.ckpt", HOSTILE[kind])
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    refused = pytest.raises(ModelError, match=r"no complete torch\.save file")
    with costs_at_most(500), refused as caught:
        import_official(tmp_path / "x.ckpt")
    assert "\n" not in str(caught.value)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300_000  # KiB


def test_other_networks_are_refused(tmp_path):
    torch.save({"state_dict": {"conv.weight": torch.zeros(2, 2)}}, tmp_path / "x.ckpt")
    with pytest.raises(ModelError, match="must be an LSeg checkpoint"):
        import_official(tmp_path / "x.ckpt")
    with pytest.raises(FileNotFoundError):
        import_official(tmp_path / "y.ckpt")


def test_tensors_of_any_layout_are_rebuilt(tmp_path):
    base = torch.arange(24.0).view(4, 6)
    tensors = {
        "transposed": base.T,
        "slice": base[1:3, 2:5],
        "scalar": torch.tensor(7, dtype=torch.int64),
        "empty": torch.empty(0, 3),
        "bool": torch.tensor([True, False]),
        "bfloat16": torch.arange(4).bfloat16(),
    }
    torch.save(tensors, tmp_path / "x.pt")
    file = TorchFile(tmp_path / "x.pt")
    content = plain_mapping(file.content)
    assert content.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert is_tensor(content[name])
        assert torch.equal(file.tensor(content[name]), tensor), name
        assert file.tensor(content[name]).dtype == tensor.dtype


def test_the_jobs_import_export_and_refuse(exported, tmp_path, monkeypatch, capsys):
    def job(name, *words):
        """Runs the job's file as a process would, in this one; its exit code."""
        monkeypatch.setattr(sys, "argv", [name, *map(str, words)])
        monkeypatch.setattr(sys, "path", [*sys.path])
        with pytest.raises(SystemExit) as ended:
            runpy.run_path(str(ROOT / "jobs" / name), run_name="__main__")
        return ended.value.code

    assert job("import_official.py", exported, "--out", tmp_path / "ours") == 0
    assert "left out: the ViT's final norm" in capsys.readouterr().out
    words = ("--out", tmp_path / "b.ckpt", "--clip=omit")
    assert job("export_official.py", tmp_path / "ours", *words) == 0
    first, again = (
        torch.load(path, weights_only=True)["state_dict"]
        for path in (exported, tmp_path / "b.ckpt")
    )
    assert all(torch.equal(first[name], again[name]) for name in first)
    truncate(exported)
    assert job("import_official.py", exported, "--out", tmp_path / "other") == 2
    assert "no complete torch.save file" in capsys.readouterr().err
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize("kind", ["latin", "folder", "missing"])
def test_labels_that_cannot_be_read_are_one_line(exported, tmp_path, capsys, kind):
    path = tmp_path / "labels"
    if kind == "folder":
        path.mkdir()
    elif kind == "latin":
        path.write_bytes("Straße".encode("latin-1"))
    with pytest.raises(UserError, match=f"labels={path}: ") as caught:
        run_import(
            ImportConfig(checkpoint=str(exported), out=str(tmp_path / "o"), labels=str(path))
        )
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "o").exists()


def test_a_text_tower_that_came_with_the_network_is_not_left_out(exported, tmp_path):
    out = tmp_path / "o"
    run_import(ImportConfig(checkpoint=str(exported), out=str(out)))
    content = yaml.safe_load((out / CONFIG).read_text())
    content["model"]["text"] |= {"encoder": "ViT-B-32", "pretrained": TEXT_WEIGHTS}
    (out / CONFIG).write_text(yaml.safe_dump(content))
    (out / TEXT_WEIGHTS).write_bytes(b"")
    with pytest.raises(UserError, match="clip=omit: this checkpoint has a text encoder of its own"):
        run_export(ExportConfig(checkpoint=str(out), out=str(tmp_path / "x.ckpt"), clip="omit"))
    assert not (tmp_path / "x.ckpt").exists()


def test_labels_may_begin_with_a_byte_order_mark(exported, tmp_path):
    (tmp_path / "l.txt").write_bytes("\ufeffStraße\r\n\r\nsky\n".encode())
    out, labels = str(tmp_path / "o"), str(tmp_path / "l.txt")
    run_import(ImportConfig(checkpoint=str(exported), out=out, labels=labels))
    assert LSeg.load(out).labels == ("Straße", "sky")
    with pytest.raises(UserError, match="set --clip omit"):
        run_export(ExportConfig(checkpoint=out, out=str(tmp_path / "x.ckpt")))
