import math

from pipeline.training.config import RunConfig, TrainConfig, TrainMixConfig
from pipeline.training.published import Published
from tests.support.shown_metrics import Shown, shown  # noqa: F401

CONFIG = TrainMixConfig(run=RunConfig(name="mine"), train=TrainConfig(steps=9))


def test_the_figures_of_a_step_are_shown(shown: Shown):  # noqa: F811
    published = Published(CONFIG)
    assert set(shown.of(run="mine").values()) == {0}
    for bad, seconds in ((0, 1.5), (3, 2.0), (3, 0.25)):
        published(
            {
                "train/loss": 2.5 - bad,
                "train/lr": 0.01,
                "train/bad_samples": bad,
                "train/skipped_steps": 1,
                "train/checkpoint_s": seconds,
                "train/host_syncs": 2,
            }
        )
    assert shown.of(run="mine") == {
        "lseg_training_loss": -0.5,
        "lseg_training_learning_rate": 0.01,
        "lseg_training_bad_samples_total": 3,
        "lseg_training_skipped_steps_total": 1,
        "lseg_training_checkpoint_wait_seconds_total": 3.75,
        "lseg_training_validation_seconds_total": 0,
    }


def test_each_dataset_has_its_miou_and_the_run_the_validations_since_its_best(shown: Shown):  # noqa: F811
    published, since = Published(CONFIG), []
    for value in (0.1, 0.3, 0.2, math.nan, 0.3, 0.31):
        published({"val/miou": value, "val/ade20k/miou": value / 2, "val/ade20k/pixel_accuracy": 1})
        since.append(shown.of(run="mine")["lseg_training_validations_since_best"])
    assert since == [0, 0, 1, 2, 3, 0]
    (miou,) = shown.of(run="mine", dataset="ade20k").items()
    assert miou == ("lseg_training_validation_miou", 0.155)
