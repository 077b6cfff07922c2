"""Readers of checkpoints, as targets of the fuzzer."""

import json
from contextlib import suppress
from pathlib import Path

import torch

from model.checkpoint import save_checkpoint
from model.checkpoint_files import LABELS, TEXTS, WEIGHTS
from model.errors import ModelError
from model.lseg import LSeg, build_lseg
from model.official import export_official, import_official
from pipeline.checkpoints.provenance import read_provenance
from pipeline.errors import UserError
from tests.support.archive_mutators import members, pickle_codes, zip_directory
from tests.support.fuzz_target import AWARE, Target, one_changed
from tests.support.mini_shards import tiny_model
from tests.support.mutators import BLIND
from tests.support.real_samples import real_files


def write_checkpoint(folder: Path) -> None:
    """A tiny checkpoint with all its text files."""
    torch.manual_seed(0)
    lseg = build_lseg(tiny_model(), 512)
    names = ("road", "sky", "car")
    extra = {
        "run": {"name": "tiny", "storage": "/tmp/runs"},
        "data": {"shards": "/tmp/shards", "augment": {"base_px": 64, "crop_px": 48}},
    }
    save_checkpoint(folder, lseg, names, extra, texts=("a road", "a sky", "a car"))
    tags = {"git_commit": "0" * 40, "manifest.mini": "0" * 16, "step": "7"}
    (folder / "provenance.json").write_text(json.dumps(tags))
    (folder / "metrics.json").write_text(json.dumps({"step": 7, "val/miou": 0.5}))


def checkpoint(folder: Path) -> list[Target]:
    """Checkpoint folders of which one file is damaged: the network, and its past."""
    write_checkpoint(folder / "good")
    targets = []
    for name in ("config.yaml", WEIGHTS, LABELS, TEXTS, "provenance.json", "metrics.json"):
        whole = (folder / "good" / name).read_bytes()
        path = folder / f"changed-{name}"
        write_checkpoint(path)

        def read(path=path, name=name) -> None:
            if name in (WEIGHTS, "config.yaml", LABELS, TEXTS):
                with suppress(ModelError, FileNotFoundError):
                    lseg = LSeg.load(path)
                    for key, value in lseg.state_dict().items():
                        assert value.isfinite().all(), f"{key} is not finite"
            if name != WEIGHTS:
                past = read_provenance(path)
                assert past.step is not None
                assert isinstance(past.group("data", "augment"), dict)

        targets.append(
            Target(
                f"checkpoint {name}",
                [whole, *(real_files("faults/inputs/*.yaml") if name == "config.yaml" else ())],
                one_changed(path / name, read),
                (UserError,),
                AWARE[Path(name).suffix],
                memory_mib=1024,
            )
        )
    return targets


def ckpt(folder: Path) -> list[Target]:
    """Published checkpoints: a zip of numbers and a pickle that is never run."""
    torch.manual_seed(0)
    good, path = folder / "good.ckpt", folder / "changed.ckpt"
    export_official(build_lseg(tiny_model(), 512), good)

    def read() -> None:
        import_official(path)

    inner = members({"/data.pkl": [pickle_codes, *BLIND]})
    return [
        Target(
            "ckpt",
            [good.read_bytes(), *real_files("faults/inputs/*.ckpt")],
            one_changed(path, read),
            (ModelError,),
            [zip_directory, inner, inner],
            memory_mib=512,
        )
    ]
