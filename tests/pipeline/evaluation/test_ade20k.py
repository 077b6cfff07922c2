"""The published ADE20K protocol against a plain transcription of its rules."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.metrics import accuracy_score, jaccard_score
from torch.nn import functional

from model.lseg import LSeg
from model.text import build_text_encoder
from pipeline.evaluation.config import EvaluateConfig, Geometry
from pipeline.evaluation.figures import figures_of
from pipeline.evaluation.protocols import make_plan, published_ade20k_labels
from pipeline.evaluation.scoring import Scorer
from pipeline.evaluation.views import View

WINDOW, BASE, STRIDE = 48, 52, 32
SIZES = [(40, 61), (90, 33), (52, 52), (17, 120)]


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    """Four images in the challenge's layout, odd and extreme in shape."""
    folder = tmp_path_factory.mktemp("ade") / "ADEChallengeData2016"
    rng = np.random.default_rng(2)
    for kind in ("images", "annotations"):
        for split in ("training", "validation"):
            (folder / kind / split).mkdir(parents=True)
    for number, (height, width) in enumerate(SIZES):
        blocks = rng.integers(0, 256, (height // 8 + 1, width // 8 + 1, 3), np.uint8)
        image = Image.fromarray(blocks).resize((width, height), Image.Resampling.BILINEAR)
        image.save(folder / f"images/validation/ADE_val_{number:08d}.jpg")
        ids = rng.integers(0, 151, (height // 8 + 1, width // 8 + 1)).astype(np.uint8)
        label = np.kron(ids, np.ones((8, 8), np.uint8))[:height, :width]
        Image.fromarray(label).save(folder / f"annotations/validation/ADE_val_{number:08d}.png")
    return folder


def window_logits(lseg, window: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
    def forward(image):
        return functional.interpolate(
            lseg(image, text), image.shape[2:], mode="bilinear", align_corners=True
        )

    return forward(window) + forward(window.flip(-1)).flip(-1)


def black(lseg, image: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """Pads at the right and bottom with what black is after normalisation."""
    canvas = (-lseg.mean_C / lseg.std_C)[None, :, None, None].expand(1, 3, height, width).clone()
    canvas[:, :, : image.shape[2], : image.shape[3]] = image
    return canvas


def plain_logits(lseg, image: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
    """All scales, windows and mirror images, one forward pass each."""
    height, width = image.shape[2:]
    total = torch.zeros(1, len(text), height, width)
    for scale in (0.5, 0.75, 1.0, 1.25, 1.5, 1.75):
        long = math.ceil(BASE * scale)
        if height > width:
            h, w = long, int(1.0 * width * long / height + 0.5)
        else:
            h, w = int(1.0 * height * long / width + 0.5), long
        small = functional.interpolate(image, (h, w), mode="bilinear", align_corners=True)
        if long <= WINDOW:
            scores = window_logits(lseg, black(lseg, small, WINDOW, WINDOW), text)[:, :, :h, :w]
        else:
            ph, pw = max(h, WINDOW), max(w, WINDOW)
            padded = black(lseg, small, ph, pw)
            scores = torch.zeros(1, len(text), ph, pw)
            count = torch.zeros(ph, pw)
            for i in range(math.ceil((ph - WINDOW) / STRIDE) + 1):
                for j in range(math.ceil((pw - WINDOW) / STRIDE) + 1):
                    top, left = i * STRIDE, j * STRIDE
                    bottom, right = min(top + WINDOW, ph), min(left + WINDOW, pw)
                    crop = black(lseg, padded[:, :, top:bottom, left:right], WINDOW, WINDOW)
                    found = window_logits(lseg, crop, text)
                    scores[:, :, top:bottom, left:right] += found[
                        :, :, : bottom - top, : right - left
                    ]
                    count[top:bottom, left:right] += 1
            scores = (scores / count)[:, :, :h, :w]
        total += functional.interpolate(
            scores, (height, width), mode="bilinear", align_corners=True
        )
    return total


def test_the_published_labels():
    labels = published_ade20k_labels()
    assert len(labels) == 150
    assert [i for i, label in enumerate(labels) if label == "screen"] == [58, 130]
    assert (labels[0], labels[64], labels[109], labels[149]) == (
        "wall",
        "coffee",
        "swimming",
        "flag",
    )


def test_figures_are_those_of_the_plain_rules(tiny_checkpoint, root):
    config = EvaluateConfig(
        checkpoint=str(tiny_checkpoint),
        protocol="ade20k-150",
        roots={"ade20k": str(root)},
        geometry=Geometry(mode="published", base_px=BASE, window_px=WINDOW),
    )
    plan = make_plan(config, ())
    assert any("not the published one" in note for note in plan.notes)
    scorer = Scorer(str(tiny_checkpoint), plan.parts, torch.device("cpu"), 2)
    figures = figures_of(plan, {"ade20k": scorer.score(0, range(len(SIZES)))})

    lseg = LSeg.load(tiny_checkpoint)
    text = build_text_encoder(lseg.config.text).encode(published_ade20k_labels())
    truths, answers = [], []
    for number in range(len(SIZES)):
        image = Image.open(root / f"images/validation/ADE_val_{number:08d}.jpg").convert("RGB")
        label = np.array(Image.open(root / f"annotations/validation/ADE_val_{number:08d}.png"))
        with torch.no_grad():
            batch = lseg.normalize(torch.from_numpy(np.array(image))[None])
            answer = plain_logits(lseg, batch, text).argmax(1)[0].numpy()
        truths.append(label[label > 0] - 1)
        answers.append(answer[label > 0])
    truth, answer = np.concatenate(truths), np.concatenate(answers)
    iou = jaccard_score(truth, answer, labels=range(150), average="macro", zero_division=0)
    assert len(np.unique(answer)) > 5
    assert figures.summary["pixel_accuracy"] == pytest.approx(
        accuracy_score(truth, answer), abs=5e-4
    )
    # The mean is over all 150, absent ones counting 0.
    assert figures.summary["miou"] == pytest.approx(iou, abs=2e-4)
    # The second "screen" can never win.
    assert figures.classes[130].predicted_px == 0


def test_the_published_geometry_is_the_default(tiny_checkpoint, root):
    config = EvaluateConfig(
        checkpoint=str(tiny_checkpoint), protocol="ade20k-150", roots={"ade20k": str(root)}
    )
    plan = make_plan(config, ())
    assert plan.parts[0].geometry == View(mode="published", base_px=520, window_px=480)
    assert plan.mean_over == "all"
    assert plan.notes == ("4 images of split val; published: 2000 of val",)
    cheap = make_plan(replace(config, geometry=Geometry(mode="single")), ())
    assert "geometry single" in cheap.notes[0]
