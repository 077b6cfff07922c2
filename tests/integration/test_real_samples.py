"""Real files of all seven datasets through the whole system: shards, ten steps, a picture."""

import itertools
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from model.lseg import LSeg
from model.text import build_text_encoder
from pipeline.checkpoints.provenance import read_provenance
from pipeline.data.datasets import open_reader
from pipeline.data.ingest.augment import AugmentConfig
from pipeline.data.ingest.stream import SampleReader, open_corpus
from pipeline.data.prepare.config import PrepareConfig, RootsConfig
from pipeline.data.prepare.run import prepare
from pipeline.data.taxonomy import DATASETS, IGNORE, label_text, lookup_table
from pipeline.evaluation.behaviours.questions import Asker
from pipeline.evaluation.overlay import ComparedImage, draw
from pipeline.training.config import RunConfig
from pipeline.training.driver.launch import plan_run, train
from pipeline.training.questions.labels import label_space
from tests.support.real_samples import copy_root

pytestmark = [pytest.mark.samples, pytest.mark.slow]


@pytest.fixture(scope="module")
def roots(shared_data, tmp_path_factory) -> dict[str, str]:
    """A root of each dataset: the samples, completed where only a part of a layout is there."""
    folder = tmp_path_factory.mktemp("roots")
    samples = {name: "mapillary_small" if name == "mapillary" else name for name in DATASETS}
    return {
        name: str(copy_root(shared_data(f"samples/{sample}"), folder / name))
        for name, sample in samples.items()
    }


@pytest.fixture(scope="module")
def shards(local_ray, roots, tmp_path_factory) -> str:
    out = str(tmp_path_factory.mktemp("shards"))
    config = PrepareConfig(roots=RootsConfig(**roots), out=out, max_bad_fraction=0.6)
    prepare(config)
    return out


def test_masks_equal_the_label_files(roots, shards):
    """Pixel for pixel: the stored ids are those of the label file sent through the table."""
    compared = 0
    for split in ("train", "val"):
        corpus = open_corpus(shards, split)
        stored = SampleReader(corpus)
        for name, manifest in corpus.manifests.items():
            reader = open_reader(name, roots[name])
            sources = {source.key: source for source in reader.listing(split).sources}
            total = np.zeros(256, np.int64)
            keys = [record.key for shard in manifest.shards for record in shard.samples]
            for index, key in enumerate(keys):
                wanted = lookup_table(name, overridden=True)[reader.native_label(sources[key])]
                _, label = stored.read(name, index)
                np.testing.assert_array_equal(label, wanted)
                total += np.bincount(label.ravel(), minlength=256)
                compared += 1
            np.testing.assert_array_equal(
                manifest.class_pixels, total[: len(manifest.class_pixels)]
            )
    assert compared >= 11


def test_ten_steps_and_a_picture(shards, mini_shards, tmp_path):
    config = mini_shards.config(tmp_path, "real", steps=10, batch_size=7, lr=0.005)
    augment = AugmentConfig(crop_px=64, base_px=128, scale=(0.5, 2.0))
    data = replace(config.data, shards=shards, augment=augment, max_bad_share=0.0)
    config = replace(config, data=data, run=RunConfig(name="real", storage=str(tmp_path)))
    outcome = train(plan_run(config))
    assert outcome.metrics["step"] == 10
    assert np.isfinite(outcome.metrics["train/loss"])
    assert 0 <= outcome.metrics["val/miou"] <= 1

    lseg = LSeg.load(outcome.checkpoint)
    names = read_provenance(outcome.checkpoint).labels
    asker = Asker(lseg, build_text_encoder(lseg.config.text))
    space = label_space(names)
    rows = []
    corpora = (open_corpus(shards, split) for split in ("train", "val"))
    for picture in itertools.chain.from_iterable(asker.samples(c, 1, 384) for c in corpora):
        truth = space.lut[picture.label].astype(np.int64)
        assert (truth != IGNORE).mean() > 0.1, picture.dataset
        texts = tuple(label_text(name) for name in names)
        answer = asker.ask(picture, texts)
        rows.append(ComparedImage(picture.dataset, picture.image, truth, answer, texts))
    assert {row.title for row in rows} == set(DATASETS)
    picture = Path(os.environ.get("LSEG_TEST_PICTURES", tmp_path)) / "real_samples.png"
    draw(rows, picture)
    with Image.open(picture) as drawn:
        assert drawn.width > 1000
        assert drawn.height > 200 * len(rows)
