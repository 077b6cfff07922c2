"""PASCAL-5i, COCO-20i and FSS-1000 against a plain transcription of HSNet's evaluation."""

import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional

from model.lseg import LSeg
from model.text import build_text_encoder
from pipeline.data.datasets.few_shot import open_few_shot
from pipeline.errors import UserError
from pipeline.evaluation.config import EvaluateConfig, Geometry, OtherPolicy
from pipeline.evaluation.figures import figures_of
from pipeline.evaluation.protocols import make_plan
from pipeline.evaluation.scoring import Scorer
from pipeline.evaluation.views import nearest

SIDE = 64
NUM_PICTURES = 6


def noise(rng: np.random.Generator, height: int, width: int) -> Image.Image:
    small = rng.integers(0, 256, (height // 8 + 1, width // 8 + 1, 3), np.uint8)
    return Image.fromarray(small).resize((width, height), Image.Resampling.NEAREST)


@pytest.fixture(scope="module")
def roots(tmp_path_factory) -> dict[str, Path]:
    """Noise images of odd sizes in the three official layouts, with HSNet's lists."""
    folder = tmp_path_factory.mktemp("few-shot")
    rng = np.random.default_rng(4)
    lines, coco_lists = [], {class_id: [] for class_id in range(1, 80, 4)}
    fss = ["accordion", "zebra", "american_alligator"]
    for number in range(NUM_PICTURES):
        height, width = (int(n) for n in rng.integers(30, 90, 2))
        name, class_id = f"2007_00010{number}", 10 + number % 5
        for path in (f"VOC2012/JPEGImages/{name}.jpg", f"COCO2014/val2014/{number:012d}.jpg"):
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            noise(rng, height, width).save(folder / path)
        ids = rng.choice([0, class_id + 1, 5, 255], (height // 7 + 1, width // 7 + 1))
        ids = np.kron(ids, np.ones((7, 7)))[:height, :width].astype(np.uint8)
        target = folder / f"VOC2012/SegmentationClassAug/{name}.png"
        target.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(ids).save(target)
        lines.append(f"{name}__{class_id + 1:02d}")
        # COCO: each image shows every class of the fold, in stripes.
        stripes = np.tile(np.arange(2, 82, 4), width)[:width].astype(np.uint8)
        target = folder / f"COCO2014/annotations/val2014/{number:012d}.png"
        target.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.tile(stripes, (height, 1))).save(target)
        for names in coco_lists.values():
            names.append(f"val2014/{number:012d}.jpg")
        target = folder / f"FSS-1000/{fss[number % 3]}/{number}.jpg"
        target.parent.mkdir(parents=True, exist_ok=True)
        noise(rng, height, width).save(target)
        Image.fromarray((ids == 5).astype(np.uint8) * 255).save(target.with_suffix(".png"))
    (folder / "splits/pascal/val").mkdir(parents=True)
    (folder / "splits/pascal/val/fold2.txt").write_text("\n".join(lines) + "\n")
    (folder / "splits/coco/val").mkdir(parents=True)
    (folder / "splits/coco/val/fold1.pkl").write_bytes(pickle.dumps(coco_lists))
    return {name: folder for name in ("pascal-5i", "coco-20i", "fss-1000")}


def transcription(checkpoint: Path, benchmark: str, root: Path, fold: int, count: int):
    """The published evaluation, written down plainly: mIoU and FB-IoU."""
    lseg = LSeg.load(checkpoint)
    encoder = build_text_encoder(lseg.config.text)
    few_shot = open_few_shot(benchmark, str(root), str(root / "splits"))
    episodes = few_shot.episodes(fold)
    picked = [episodes[i * len(episodes) // count] for i in range(count)]
    inter_buf, union_buf = {}, {}
    for episode in picked:
        image = Image.open(root / episode.image).convert("RGB")
        image = image.resize((SIDE, SIDE), Image.Resampling.BILINEAR)
        mask = torch.tensor(np.array(Image.open(root / episode.mask).convert("L"))).float()
        mask = functional.interpolate(mask[None, None], (SIDE, SIDE), mode="nearest")[0, 0]
        boundary = torch.zeros_like(mask)
        if benchmark == "fss-1000":
            mask = (mask >= 128).float()
        else:
            if benchmark == "pascal-5i":
                boundary = (mask / 255).floor()
            mask = (mask == episode.class_id + 1).float()
        text = encoder.encode(["others", few_shot.class_names()[episode.class_id]])
        with torch.no_grad():
            batch = lseg.normalize(torch.from_numpy(np.asarray(image).copy())[None])
            logits = functional.interpolate(
                lseg(batch, text), (SIDE, SIDE), mode="bilinear", align_corners=True
            )
        pred = logits.argmax(1)[0].float()
        target = mask + boundary * 255
        pred[target == 255] = 255
        hits = pred[pred == target]
        inter = torch.histc(hits, bins=2, min=0, max=1) if hits.numel() else torch.zeros(2)
        union = torch.histc(pred, bins=2, min=0, max=1) + torch.histc(target, 2, 0, 1) - inter
        key = episode.class_id
        inter_buf[key] = inter_buf.get(key, 0) + inter
        union_buf[key] = union_buf.get(key, 0) + union
    ids = sorted({e.class_id for e in episodes})
    zero = torch.zeros(2)
    inter = torch.stack([inter_buf.get(i, zero) for i in ids], dim=1)
    union = torch.stack([union_buf.get(i, zero) for i in ids], dim=1)
    iou = inter / torch.max(union, torch.ones_like(union))
    fb = (inter.sum(1) / union.sum(1)).mean()
    return float(iou[1].mean()), float(fb)


def config_for(checkpoint: Path, benchmark: str, root: Path, **values) -> EvaluateConfig:
    return EvaluateConfig(
        checkpoint=str(checkpoint),
        protocol=benchmark,  # type: ignore[arg-type]
        roots={benchmark: str(root)},
        splits=str(root / "splits"),
        geometry=Geometry(mode="squash", window_px=SIDE),
        **values,
    )


@pytest.mark.parametrize(
    ("benchmark", "fold", "count"), [("pascal-5i", 2, 25), ("coco-20i", 1, 40), ("fss-1000", 0, 4)]
)
def test_figures_are_those_of_the_published_rules(tiny_checkpoint, roots, benchmark, fold, count):
    root = roots[benchmark]
    config = config_for(tiny_checkpoint, benchmark, root, folds=(fold,), max_images=count)
    plan = make_plan(config, ())
    results = []
    for batch in (1, 3):
        scorer = Scorer(str(tiny_checkpoint), plan.parts, torch.device("cpu"), batch)
        positions = range(len(plan.parts[0].source))
        results.append(figures_of(plan, {plan.parts[0].name: scorer.score(0, positions)}))
    miou, fb_iou = transcription(tiny_checkpoint, benchmark, root, fold, count)
    for figures in results:
        assert figures.summary["images"] == count
        assert figures.summary["miou"] == pytest.approx(miou, abs=2e-4)
        assert figures.summary["fb_iou"] == pytest.approx(fb_iou, abs=2e-4)
    assert 0.02 < fb_iou < 0.98
    assert any("published" in note for note in plan.notes)


def test_the_text_of_an_episode_is_others_and_its_class(tiny_checkpoint, roots):
    config = config_for(tiny_checkpoint, "pascal-5i", roots["pascal-5i"], folds=(2,))
    (part,) = make_plan(config, ()).parts
    item = part.source.open()(0)
    assert item.texts == ("others", "diningtable")
    assert part.space.rest == 0
    assert len(part.source) == 1000
    prompts = OtherPolicy(policy="prompts", prompts=("background", "stuff"))
    (part,) = make_plan(replace(config, other=prompts), ()).parts
    assert part.source.open()(1).texts == ("background", "stuff", "dog")
    assert part.space.text_class == (0, 0, 1)
    with pytest.raises(UserError, match="needs prompts for the background"):
        make_plan(replace(config, other=OtherPolicy()), ())


@pytest.mark.parametrize(("source", "target"), [(333, 480), (500, 480), (480, 480), (37, 64)])
def test_nearest_is_torchs(source, target):
    ids = torch.arange(source).float()[None, None]
    expected = functional.interpolate(ids, target, mode="nearest")[0, 0].long().numpy()
    assert np.array_equal(nearest(source, target), expected)
