"""Training over shards whose labels are stored in different classes."""

from pathlib import Path

import numpy as np
import pytest

from pipeline.data.datasets.own import OwnDataset
from pipeline.data.prepare.config import PrepareConfig, RootsConfig
from pipeline.data.prepare.run import prepare
from pipeline.data.taxonomy import universal
from pipeline.errors import UserError
from pipeline.training import plan
from pipeline.training.driver.launch import plan_run, train
from tests.jobs.test_prepare_labels import write_shop
from tests.support.mini_shards import MiniShards
from tests.support.tiny_roots import write_cityscapes


# Starts a whole run: half a minute on two cores.
@pytest.mark.slow
@pytest.mark.usefixtures("local_ray")
def test_a_native_dataset_and_one_of_the_users_are_trained_together(tmp_path):
    write_shop(tmp_path / "shop")
    write_cityscapes(tmp_path / "city")
    out = str(tmp_path / "out")
    shop = OwnDataset(root=str(tmp_path / "shop"), val_fraction=0.5)
    prepare(PrepareConfig(own={"shop": shop}, out=out))
    city = RootsConfig(cityscapes=str(tmp_path / "city"))
    prepare(PrepareConfig(roots=city, out=out, taxonomy="native"))
    shards = MiniShards(Path(out), f"sqlite:///{tmp_path / 'mlflow.db'}")
    outcome = train(plan_run(shards.config(tmp_path / "runs", "mixed", steps=4, validate_every=4)))
    names = (Path(outcome.checkpoint) / "labels.txt").read_text().splitlines()
    # In the order of the universal classes, then what the datasets add.
    shown = {"conveyor_belt", "road", "sky", "car", "wall", "parcel"}
    assert names == [name for name in (*universal().classes, "parcel") if name in shown]
    assert outcome.metrics["step"] == 4
    assert np.isfinite(outcome.metrics["train/loss"])
    assert 0 <= outcome.metrics["val/miou"] <= 1


@pytest.mark.parametrize("end", ["\n", "\r", "\x85", "\u2028", "\f", "\x1c"])
def test_a_class_whose_name_is_no_line_is_refused_before_training(end):
    plan._check_names("shards", ["road", "", "traffic light"])
    with pytest.raises(UserError, match=r"data\.shards=shards: the class .* has a line break"):
        plan._check_names("shards", ["road", f"two{end}lines"])
