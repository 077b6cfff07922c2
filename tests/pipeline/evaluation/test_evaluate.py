"""Whole evaluations on a real Ray: any number of workers, killed and restarted, all files."""

import csv
import html
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score, jaccard_score

from jobs.cli import parse
from model.lseg import LSeg
from model.text import build_text_encoder
from pipeline.data.datasets import open_reader
from pipeline.data.ingest.stream import SampleReader, open_corpus
from pipeline.data.pixels.encode import decode_image
from pipeline.data.prepare.relabel import split_classes
from pipeline.data.shards.format import Manifest
from pipeline.data.taxonomy import IGNORE, label_text, lookup_table, native_table, universal
from pipeline.errors import UserError
from pipeline.evaluation import runner as runner_module
from pipeline.evaluation.config import EvaluateConfig, Geometry, OtherPolicy
from pipeline.evaluation.figures import Figures, figures_of
from pipeline.evaluation.items import RootItems
from pipeline.evaluation.launch import evaluate, folder_name
from pipeline.evaluation.plan import ProtocolPlan
from pipeline.evaluation.protocols import make_plan
from pipeline.evaluation.scoring import Counts, Scorer
from pipeline.evaluation.views import network_input
from pipeline.storage.base import Storage
from pipeline.storage.open import open_storage
from tests.support.mini_shards import MiniShards


def with_workers(config: EvaluateConfig, count: int, **values) -> EvaluateConfig:
    workers = replace(config.workers, num_workers=count)
    return replace(config, workers=workers, **values)


def roots_of(mini_shards: MiniShards) -> dict[str, str]:
    raw = mini_shards.folder.parent / "raw"
    return {name: str(raw / name) for name in ("ade20k", "cityscapes", "coco_panoptic")}


def upsampled(logits: torch.Tensor, small: np.ndarray, label: np.ndarray) -> torch.Tensor:
    """Scores at the size of the network's input, then at that of the label, as published."""
    for size in (small.shape[:2], label.shape):
        logits = torch.nn.functional.interpolate(logits, size, mode="bilinear", align_corners=True)
    return logits


def independent_unified(config: EvaluateConfig) -> dict[str, dict[str, float]]:
    """The same figures without any of the evaluation's code but the network's input size."""
    lseg = LSeg.load(config.checkpoint)
    text = build_text_encoder(lseg.config.text).encode(
        [label_text(name) for name in universal().classes]
    )
    corpus = open_corpus(config.shards, "val")
    reader = SampleReader(corpus)
    figures = {}
    for name, size in corpus.sizes.items():
        truths, answers = [], []
        for index in range(size):
            image, label = reader.read(name, index)
            small = network_input(image, config.geometry)
            with torch.no_grad():
                logits = lseg(lseg.normalize(torch.from_numpy(small)[None]), text)
                full = upsampled(logits, small, label)
            answers.append(full.argmax(1)[0].numpy()[label != IGNORE])
            truths.append(label[label != IGNORE])
        truth, answer = np.concatenate(truths), np.concatenate(answers)
        iou = jaccard_score(truth, answer, labels=np.unique(truth), average="macro")
        figures[name] = {"miou": iou, "pixel_accuracy": accuracy_score(truth, answer)}
    return figures


@pytest.mark.slow
def test_unified_figures_are_an_independent_programs_and_any_number_of_workers(
    base_config, unified
):
    figures = unified.report["figures"]
    # Two workers finish what a killed evaluation left, below.
    assert evaluate(with_workers(base_config, 3)).report["figures"] == figures
    for name, expected in independent_unified(base_config).items():
        assert figures[f"{name}/miou"] == pytest.approx(expected["miou"], rel=1e-4, abs=1e-4)
        assert figures[f"{name}/pixel_accuracy"] == pytest.approx(
            expected["pixel_accuracy"], rel=1e-4, abs=1e-4
        )
    assert figures["ade20k/images"] == 2


def test_the_files_and_the_mlflow_run(unified, mini_shards, base_config):
    outcome = unified
    folder = Path(outcome.folder)
    names = {path.name for path in folder.iterdir()}
    assert {"report.json", "per_class.csv", "confusion.png", "page.html"} <= names
    assert {"ade20k-best.png", "ade20k-worst.png"} <= names
    report = json.loads((folder / "report.json").read_text())
    assert report == outcome.report
    assert report["other"] == "none"
    with (folder / "per_class.csv").open() as file:
        rows = list(csv.DictReader(file))
    ious = [float(r["iou"]) for r in rows if r["part"] == "ade20k" and int(r["target_px"])]
    assert np.mean(ious) == pytest.approx(report["figures"]["ade20k/miou"], abs=1e-12)
    assert {r["seen_in_training"] for r in rows if r["class"] == "horse"} == {"no"}
    assert {r["seen_in_training"] for r in rows if r["class"] == "wall"} == {"yes"}
    page = (folder / "page.html").read_text()
    assert "Zero-shot: no." in page
    assert 'name="viewport"' in page
    assert "prefers-color-scheme: dark" in page
    assert "mIoU (%)" in page
    assert page.index("ade20k-best.png") < page.index("By class") < page.index("confusion.png")
    assert f"MLflow run: <code>{html.escape(outcome.ui_hint)}</code>" in page
    assert "seen whole at 64 px" in page
    largest = max((r for r in rows if r["part"] == "ade20k"), key=lambda r: int(r["target_px"]))
    assert f"<td>{largest['class']}</td><td>{100 * float(largest['iou']):.2f}</td>" in page
    assert not (folder / "partial").exists() or not list((folder / "partial").rglob("*.npz"))

    from mlflow import MlflowClient

    client = MlflowClient(mini_shards.tracking_uri)
    experiment = client.get_experiment_by_name("lseg")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id], "attributes.run_name = 'tiny'")
    # The run that made the checkpoint, not another of the same name.
    (run,) = runs
    assert run.data.metrics["train/loss"] == 1.0
    variant = base_config.variant
    key = f"eval/{variant}_miou/ade20k"
    assert run.data.metrics[key] == pytest.approx(report["figures"]["ade20k/miou"])
    assert run.data.tags[f"eval/{variant}/other"] == "none"
    # The run is found by what it was scored on, whose digest is that of the manifest.
    manifest = mini_shards.folder / "ade20k" / "val" / "manifest.json"
    digest = Manifest.from_json(manifest.read_bytes()).fingerprint
    wanted = f"dataset.context = 'evaluation' AND dataset.digest = '{digest}'"
    found = client.search_runs([experiment.experiment_id], wanted)
    assert [each.info.run_id for each in found] == [run.info.run_id]
    (scored,) = [each for each in report["data"] if each["name"] == "ade20k"]
    assert scored == {"name": "ade20k", "digest": digest, "source": str(manifest), "images": 2}
    (point,) = client.get_metric_history(run.info.run_id, key)[-1:]
    assert point.step == 7
    artifacts = [a.path for a in client.list_artifacts(run.info.run_id, f"evaluation/{variant}")]
    assert f"evaluation/{variant}/page.html" in artifacts


class Killed(BaseException):
    """Ends an evaluation as a kill does: nothing catches it."""


class CountingStorage:
    """A storage that remembers the counts written to it, and fails after so many of them."""

    def __init__(self, storage: Storage, stored: list[str], most: int | None) -> None:
        self._storage, self._stored, self._most = storage, stored, most

    def __getattr__(self, name: str) -> Any:
        return getattr(self._storage, name)

    def write(self, path: str, data: bytes) -> None:
        if len(self._stored) == self._most:
            raise Killed
        self._storage.write(path, data)
        self._stored.append(path)


@pytest.mark.slow
def test_a_killed_evaluation_goes_on(base_config, unified, monkeypatch):
    def store_in(stored: list[str], most: int | None = None) -> None:
        def opened(uri: str) -> Any:
            return CountingStorage(open_storage(uri), stored, most)

        monkeypatch.setattr(runner_module, "open_storage", opened)

    first: list[str] = []
    store_in(first, 2)
    with pytest.raises(Killed):
        evaluate(base_config)
    assert len(first) == 2
    second: list[str] = []
    store_in(second)
    # On another number of workers than before.
    again = evaluate(with_workers(base_config, 2))
    assert len(second) == len(set(second) - set(first)) == 6 - 2
    assert again.report["figures"] == unified.report["figures"]


def test_saved_counts_are_not_taken_for_another_question(base_config):
    def fingerprint(config, workers=base_config.workers):
        parts = make_plan(config, ()).parts
        config = replace(config, workers=workers)
        return runner_module.evaluation_fingerprint(config, parts)

    threshold = replace(base_config, other=OtherPolicy(policy="threshold", threshold=0.01))
    fewer = replace(base_config, max_images=1)
    bf16 = replace(base_config, precision="bf16")
    whole = replace(base_config, geometry=Geometry(base_px=0))
    prints = {fingerprint(c) for c in (base_config, threshold, fewer, bf16, whole)}
    assert len(prints) == 5
    assert fingerprint(base_config, replace(base_config.workers, num_workers=7)) in prints
    assert fingerprint(base_config, replace(base_config.workers, threads=2)) not in prints


@pytest.mark.long  # Workers' processes take seconds to start; unified classes are tested always.
@pytest.mark.parametrize("protocol", ["native-mapped", "native-names", "zero-shot"])
def test_other_questions_on_one_and_two_workers(base_config, mini_shards, protocol):
    if protocol == "zero-shot":
        config = replace(base_config, labels="unseen")
    else:
        config = replace(base_config, protocol=protocol, shards="", roots=roots_of(mini_shards))
    one = evaluate(config).report
    two = evaluate(with_workers(config, 2, out=f"{config.out}-2")).report
    assert one["figures"] == two["figures"]
    assert one["figures"]["cityscapes/images"] == 2


def scored(config: EvaluateConfig, trained=()) -> tuple[ProtocolPlan, dict[str, Counts], Figures]:
    """All images of a plan, scored in this process."""
    plan = make_plan(config, trained)
    scorer = Scorer(config.checkpoint, plan.parts, torch.device("cpu"), 1)
    counts = {
        part.name: scorer.score(number, range(len(part.source)))
        for number, part in enumerate(plan.parts)
    }
    return plan, counts, figures_of(plan, counts)


def test_mapped_predictions_merge_classes_that_share_a_universal_one(base_config, mini_shards):
    roots = roots_of(mini_shards)
    config = replace(base_config, protocol="native-mapped", shards="", roots=roots)
    _, _, figures = scored(replace(config, datasets=("ade20k",)))
    # Merged, they are the unified classes again, but that only ADE20K's can be answered; each
    # also has the probability of the classes that MSeg has cut out of it.
    lseg = LSeg.load(config.checkpoint)
    native = {n.native_id: n.universal_name for n in native_table("ade20k") if n.universal_name}
    named = sorted(set(native.values()))
    owner = {name: name for name in named}
    for name, natives in split_classes("ade20k").items():
        found = [native[i] for i in natives if i in native]
        if name not in owner and found:
            owner[name] = found[0]
    asked = universal().classes
    text = build_text_encoder(lseg.config.text).encode([label_text(name) for name in asked])
    ids = np.array([universal().id_of(name) for name in named])
    belongs = torch.tensor([[owner.get(a) == name for a in asked] for name in named]).float()
    reader = open_reader("ade20k", roots["ade20k"])
    truths, answers = [], []
    for source in reader.listing("val").sources:
        pixels = decode_image(reader.root.read(source.image))[:, :, ::-1]
        label = lookup_table("ade20k")[reader.native_label(source)]
        small = network_input(np.ascontiguousarray(pixels), config.geometry)
        with torch.no_grad():
            logits = lseg(lseg.normalize(torch.from_numpy(small)[None]), text)
            full = upsampled(logits, small, label).softmax(1)
            sums = torch.einsum("kt,bthw->bkhw", belongs, full)
        answers.append(ids[sums.argmax(1)[0].numpy()][label != IGNORE])
        truths.append(label[label != IGNORE])
    truth, answer = np.concatenate(truths), np.concatenate(answers)
    iou = jaccard_score(truth, answer, labels=np.unique(truth), average="macro")
    assert figures.summary["miou_merged"] == pytest.approx(iou, rel=1e-4, abs=1e-4)


def test_zero_shot(base_config):
    config = replace(base_config, labels="unseen")
    outcome = evaluate(config)
    one = outcome.report
    assert one["other"] == "prompts: other"
    # Every second validation scene shows a class that TRAINED leaves out.
    assert one["zero_shot"] == "yes"
    with (Path(outcome.folder) / "per_class.csv").open() as file:
        rows = list(csv.DictReader(file))
    names = {row["class"] for row in rows}
    assert {"(other)"} < names <= {"(other)", "horse", "bus"}
    assert [r for r in rows if int(r["target_px"]) and r["class"] != "(other)"]
    by_part = [one["figures"].get(f"{p}/miou") for p in ("ade20k", "cityscapes", "coco_panoptic")]
    means = [value for value in by_part if value is not None]
    assert one["figures"]["miou"] == pytest.approx(np.mean(means))
    with pytest.raises(UserError, match=r"other\.policy=none"):
        make_plan(replace(config, other=OtherPolicy()), ("wall",))


def test_other_takes_pixels_and_is_recorded(base_config):
    def run(policy):
        plan, _, figures = scored(replace(base_config, other=policy))
        return plan, figures.summary

    plan, plain = run(OtherPolicy())
    assert {part.space.policy for part in plan.parts} == {"none"}
    # "wall" is a class already; only "other" is new.
    plan, _ = run(OtherPolicy(policy="prompts", prompts=("wall", "other")))
    assert {part.space.policy for part in plan.parts} == {"prompts: wall, other"}
    assert {len(part.space.texts) for part in plan.parts} == {195}
    plan, strict = run(OtherPolicy(policy="threshold", threshold=0.99))
    assert {part.space.policy for part in plan.parts} == {"threshold 0.99"}
    assert strict["miou"] == strict["pixel_accuracy"] == 0.0 < plain["pixel_accuracy"]


def test_mistakes_are_told(base_config, mini_shards):
    for values, words in (
        ({"checkpoint": "/nowhere"}, "checkpoint=/nowhere"),
        ({"datasets": ("ade20",)}, "did you mean 'ade20k'"),
        ({"shards": ""}, "set shards"),
        ({"protocol": "pascal-5i"}, r"roots\.pascal-5i"),
        ({"protocol": "native-names"}, "holds no native labels"),
        ({"workers": replace(base_config.workers, num_workers=999)}, "has room for"),
    ):
        with pytest.raises(UserError, match=words):
            evaluate(replace(base_config, **values))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--other.policy", "threshold", "--other.threshold", "2"], "other.threshold=2.0: must"),
        (["--geometry.mode", "squish"], "geometry.mode=squish: must be one of whole, single,"),
        (["--geometry.base_px", "abc"], "geometry.base_px=abc: must be a whole number"),
        (["--protcol", "unified"], "protcol: no such key; did you mean 'protocol'?"),
    ],
)
def test_a_wrong_setting_is_one_plain_message(words, message):
    with pytest.raises(UserError) as raised:
        parse(EvaluateConfig, ["--checkpoint", "x", *words])
    assert str(raised.value).startswith(message)


def test_roots_give_the_targets_of_their_shards(mini_shards):
    root = roots_of(mini_shards)["coco_panoptic"]
    sources = open_reader("coco_panoptic", root).listing("val").sources
    read = RootItems("coco_panoptic", root, tuple(sources), native=False).open()
    native = RootItems("coco_panoptic", root, tuple(sources), native=True).open()
    # Without MSeg's decisions over single segments, COCO's "light" cannot be told.
    table = lookup_table("coco_panoptic", overridden=True)
    assert table[130] == IGNORE != lookup_table("coco_panoptic")[130]
    corpus = open_corpus(str(mini_shards.folder), "val")
    for index in range(len(sources)):
        item, (image, label) = read(index), SampleReader(corpus).read("coco_panoptic", index)
        assert np.array_equal(item.stored, label)
        assert np.array_equal(item.stored, table[native(index).stored])
        assert item.image.shape == image.shape


def test_classes_of_ones_own_are_scored_by_their_names(base_config, tmp_path):
    """Shards in classes of a user's own: the universal ones come first, unknown ones behind."""
    manifest = open_corpus(base_config.shards, "val").manifests["ade20k"]
    classes = ("shop shelf", *reversed(universal().classes))
    folder = tmp_path / "own" / "ade20k" / "val"
    shutil.copytree(Path(base_config.shards) / "ade20k" / "val", folder)
    pixels = (0, *reversed(manifest.class_pixels))
    own = replace(manifest, taxonomy="own", taxonomy_fingerprint="own", classes=classes)
    (folder / "manifest.json").write_text(replace(own, class_pixels=pixels).to_json())
    config = replace(base_config, shards=str(tmp_path / "own"))
    (part,) = make_plan(config, ()).parts
    assert part.space.classes == classes
    assert [part.space.lut[i] for i in (0, 1, 194, 195)] == [0, 1, 194, IGNORE]
    mixed = replace(config, roots={"coco_panoptic": "/nowhere"}, datasets=("ade20k",))
    assert make_plan(mixed, ()).parts[0].space == part.space
    (part,) = make_plan(replace(config, labels="checkpoint"), ("wall", "shop shelf")).parts
    assert part.space.classes == ("wall", "shop shelf")
    assert part.space.lut[0] == 1
    assert part.space.lut[1 + classes[1:].index("wall")] == 0
    with pytest.raises(UserError, match="use protocol unified"):
        make_plan(replace(config, protocol="native-names"), ())
    unknown = replace(own, classes=(), class_pixels=manifest.class_pixels)
    (folder / "manifest.json").write_text(unknown.to_json())
    with pytest.raises(UserError, match="taxonomy 'own', which this program does not know"):
        make_plan(config, ())


def test_departures_from_a_protocol_have_names_of_their_own(base_config):
    plain = replace(base_config, geometry=None)
    assert folder_name(plain).endswith("tiny-step_00000007-unified")
    assert base_config.variant != plain.variant  # At another size.
    other = OtherPolicy(policy="threshold")
    changed = replace(plain, labels="unseen", other=other, geometry=Geometry(mode="single"))
    assert changed.variant == "unified-unseen-single-other-threshold"
    ade = replace(plain, protocol="ade20k-150", geometry=Geometry(mode="published"))
    assert ade.variant == "ade20k-150"
    assert replace(ade, geometry=Geometry(mode="whole")).variant == "ade20k-150-whole"


@pytest.mark.long  # Its point is the storage; everything else is tested on folders.
def test_checkpoint_and_report_in_s3(base_config, unified, tiny_checkpoint, s3_bucket):
    storage = open_storage(f"{s3_bucket}/tiny/step_00000007")
    for path in tiny_checkpoint.iterdir():
        storage.upload(path.name, path)
    config = replace(base_config, checkpoint=storage.uri, out=f"{s3_bucket}/reports")
    outcome = evaluate(config)
    report = json.loads(open_storage(outcome.folder).read("report.json"))
    assert report["figures"] == unified.report["figures"]
    assert report["zero_shot"] == "no"
    left = [entry.path for entry in open_storage(outcome.folder).list()]
    assert "page.html" in left
    assert not any(path.startswith("partial") for path in left)
