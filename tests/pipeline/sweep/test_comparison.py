"""Trials are judged by their curves; the table ranks; the verdict says what the numbers allow."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.storage.open import open_storage
from pipeline.sweep.comparison import Judged, compare
from pipeline.sweep.diagnosis import BIAS, CHANCE, GAIN, LOSS, diagnose
from pipeline.sweep.plots import COLOURS, draw_all
from pipeline.sweep.results import Result, read, read_all, write

METRIC = "val/miou"
LN_K = math.log(100)


def curves(loss: float, gain: float, bias: float = 0.1, first_gain: float | None = None):
    steps = range(10, 110, 10)
    falling = [(step, LN_K + (loss - LN_K) * step / 100) for step in steps]
    begin = gain if first_gain is None else first_gain
    return {
        LOSS: falling,
        CHANCE: [(step, LN_K) for step in steps],
        GAIN: [(0, begin), (100, gain)],
        BIAS: [(0, bias), (100, bias)],
    }


def trial(depth: int, seed: int, value: float | None, status="finished", error="", **given):
    metrics = {} if value is None else {METRIC: value}
    name = f"d{depth}-s{seed}"
    result = Result(name, {"depth": depth}, seed, status, metrics, error=error)
    histories = curves(**given) if given else {}
    return Judged(result, diagnose(result, histories), histories)


@pytest.mark.parametrize(
    ("given", "status", "outcome", "words"),
    [
        ({"loss": 1.0, "gain": 2.0}, "finished", "trained", "of chance"),
        ({"loss": LN_K, "gain": 1e-6, "bias": -0.2}, "finished", "collapsed", "began negative"),
        ({"loss": LN_K, "gain": 1e-6, "first_gain": 0.5}, "finished", "collapsed", "overshot"),
        ({"loss": LN_K, "gain": 0.3}, "finished", "slow", "no collapse"),
        ({"loss": LN_K, "gain": 0.3}, "stopped", "stopped early", "behind the others"),
        ({"loss": 1.0, "gain": 2.0}, "stopped", "stopped early", "behind the others"),
        ({"loss": LN_K, "gain": 1e-6}, "stopped", "collapsed", "stopped early, behind the others"),
        ({}, "stopped", "stopped early", "not judged"),
        ({}, "finished", "slow", "not judged"),
    ],
)
def test_outcomes(given, status, outcome, words):
    judged = trial(4, 0, 0.1, status=status, **given)
    assert judged.diagnosis.outcome == outcome
    assert words in judged.diagnosis.words


def test_the_chance_loss_is_the_one_that_training_logged():
    # Of 100 labels, of which each is judged alone: 0.056, not ln 100.
    chance = [(10, 0.056), (20, 0.056)]
    histories = {**curves(1.0, 2.0), LOSS: [(10, 0.0504), (20, 0.0504)], CHANCE: chance}
    result = Result("cost", {}, 0, "finished", {METRIC: 0.1})
    words = diagnose(result, histories).words
    assert words == "loss at 0.90 of chance (0.056), not trained yet; no collapse"


def test_rows_are_ranked_and_a_failed_trial_does_not_hide_the_others():
    judged = [
        trial(1, 0, 0.50, loss=1.0, gain=1.0),
        trial(1, 1, 0.54, loss=1.0, gain=1.0),
        trial(4, 0, 0.01, loss=LN_K, gain=1e-7, bias=-0.3),
        trial(4, 1, 0.60, loss=0.9, gain=1.0),
        trial(2, 0, None, status="failed", error="OutOfMemory: 80 GiB"),
    ]
    found = compare("sweep", METRIC, judged)
    assert [row.params["depth"] for row in found.rows] == [1, 4, 2]
    assert found.rows[0].mean == pytest.approx(0.52)
    assert found.rows[0].spread == pytest.approx(0.0283, abs=1e-4)
    assert found.rows[0].names == ("d1-s0", "d1-s1")
    assert found.rows[1].outcomes == {"collapsed": 1, "trained": 1}
    assert (found.rows[0].missing, found.rows[2].count) == ((), "0 of 2")
    assert "Collapsed, 1 of 2: depth 4" in found.verdict
    assert "OutOfMemory: 80 GiB" in found.verdict
    assert "is less than half its 95 % interval" in found.verdict
    assert len(found.csv().splitlines()) == 6
    values = json.loads(found.json())  # Strictly: no NaN.
    assert values["rows"][2]["mean"] is None
    assert "| 4 | 2 | 0.305 ± 0.417 | 1 collapsed, 1 trained |" in found.markdown()


NEAR = [(1, 0, 0.488), (1, 1, 0.496), (4, 0, 0.496), (4, 1, 0.506)]
"""Gaps of 0.008 and 0.010: two pairs prove nothing so small."""


def test_a_clear_difference_is_called_one_and_a_single_seed_none():
    far = [trial(d, s, 0.1 * d + 0.001 * s, loss=1.0, gain=1.0) for d in (1, 4) for s in (0, 1)]
    assert "is more than half its 95 % interval" in compare("s", METRIC, far).verdict
    near = [trial(d, s, v, loss=1.0, gain=1.0) for d, s, v in NEAR]
    assert "is less than half its 95 % interval" in compare("s", METRIC, near).verdict
    assert "add seeds" in compare("s", METRIC, far[::2]).verdict
    assert [row.spread for row in compare("s", METRIC, far[::2]).rows] == [
        pytest.approx(math.nan, nan_ok=True)
    ] * 2
    assert "±" not in compare("s", METRIC, far[::2]).markdown()
    assert "No trial finished with a val/miou" in compare("s", METRIC, [trial(1, 0, None)]).verdict


def test_trials_that_did_not_finish_do_not_count():
    """Though they have a figure: that of their last validation, after fewer steps."""
    judged = [trial(1, 0, 0.5, loss=1.0, gain=1.0), trial(1, 1, 0.6, loss=1.0, gain=1.0)]
    judged += [trial(2, 0, 0.9, loss=1.0, gain=1.0), trial(2, 1, 0.1, status="stopped")]
    judged += [trial(4, 0, 0.9, status="failed", error="gone"), trial(4, 1, None, status="failed")]
    found = compare("s", METRIC, judged)
    rows = [(row.params["depth"], row.count, row.values) for row in found.rows]
    assert rows == [(1, "2", [0.5, 0.6]), (2, "1 of 2", [0.9]), (4, "0 of 2", [])]
    assert found.verdict.splitlines()[:2] == [
        "Best val/miou: 0.550 ± 0.071 with depth 1.",
        "Incomplete, so ranked after the complete: depth 2: 1 of 2 repetitions finished "
        "(1 trained, 1 stopped early).",
    ]
    assert "| 2 | 1 of 2 | 0.900 | 1 trained, 1 stopped early |" in found.markdown()
    assert "| 4 | 0 of 2 | - | 2 failed |" in found.markdown()


def test_a_fold_that_only_some_settings_have_makes_the_others_incomplete():
    def fold(lr: float, number: int, value: float) -> Judged:
        result = Result(f"{lr}{number}", {"lr": lr, "fold": number}, 0, "finished", {METRIC: value})
        return Judged(result, diagnose(result, {}), {})

    judged = [fold(0.1, 0, 0.5), fold(0.1, 1, 0.3), fold(0.2, 0, 0.6)]
    found = compare("s", METRIC, judged, ["fold"])
    assert [row.params["lr"] for row in found.rows] == [0.1, 0.2]
    assert "lr 0.2: 1 of 2 repetitions" in found.verdict
    without = compare("s", METRIC, judged[1:], ["fold"]).verdict
    assert "Best val/miou of those with some repetitions: 0.600 with lr 0.2" in without
    assert "says nothing about the spread" in without


def test_a_tie_names_all_and_has_no_interval():
    tied = [trial(d, s, 0.5, loss=1.0, gain=1.0) for d in (1, 2, 4) for s in (0, 1)]
    tied += [trial(8, s, 0.4, loss=1.0, gain=1.0) for s in (0, 1)]
    verdict = compare("s", METRIC, tied).verdict
    assert verdict == "Best val/miou: 0.500, a tie of 3: depth 1; depth 2; depth 4."


def test_folds_are_averaged_over_and_compared_pair_by_pair():
    def fold(lr: float, number: int, value: float) -> Judged:
        name = f"{lr}-{number}"
        result = Result(name, {"lr": lr, "fold": number}, 0, "finished", {METRIC: value})
        return Judged(result, diagnose(result, {}), {})

    hard = (0.5, 0.2, 0.4, 0.1)
    judged = [fold(0.1, k, v) for k, v in enumerate(hard)]
    judged += [fold(0.2, k, v + 0.02 + 0.002 * k) for k, v in enumerate(hard)]
    found = compare("s", METRIC, judged, ["fold"])
    assert [row.params for row in found.rows] == [{"lr": 0.2}, {"lr": 0.1}]
    # The spread over folds is ten times the gap, which every fold shows.
    assert found.rows[0].spread > 0.1
    assert "difference, 0.023, is more than half its 95 % interval" in found.verdict
    assert found.csv().splitlines()[0].startswith("trial,lr,fold,seed")


def test_pictures_of_settings_and_curves(tmp_path):
    judged = [trial(d, s, 0.1 * d, loss=0.5 * d, gain=1.0) for d in (1, 2, 4) for s in (0, 1)]
    names = {path.name for path in draw_all(compare("s", METRIC, judged), tmp_path)}
    assert names == {"val_miou_by_depth.png", "curves_train_loss.png"}
    # One line for the one group of settings; a curve of its own colour for each depth.
    for name, colours in (("val_miou_by_depth.png", 1), ("curves_train_loss.png", 3)):
        *of_curves, _black = COLOURS  # In which the axes are labelled too.
        shown = [drawn(tmp_path / name, colour) > 100 for colour in of_curves]
        assert shown == [number < colours for number in range(len(of_curves))]


def drawn(path: Path, colour: str) -> int:
    """Pixels of exactly this colour."""
    wanted = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
    return int((np.asarray(Image.open(path).convert("RGB")) == wanted).all(-1).sum())


def test_results_are_kept_and_a_torn_one_counts_as_none(tmp_path):
    storage = open_storage(str(tmp_path))
    result = Result("a", {"x": 1}, 0, "finished", {METRIC: 0.5}, "/c", 3.0)
    write(storage, result)
    assert read(storage, "a") == result
    (tmp_path / "results" / "b.json").write_text('{"name": "b"')
    assert read(storage, "b") is None
    assert read_all(storage) == {"a": result}
    assert result.value(METRIC) == 0.5
    assert math.isnan(result.value("other"))


@pytest.mark.parametrize(
    "field", ['"metrics": null', '"metrics": {"miou": {}}', '"seconds": "1"', '"params": [1]']
)
def test_a_damaged_result_counts_as_none(tmp_path, field):
    storage = open_storage(str(tmp_path))
    write(storage, Result("a", {}, 1, "finished", {"miou": 0.5}))
    text = (tmp_path / "results" / "a.json").read_text()
    (tmp_path / "results" / "a.json").write_text(text.rstrip().rstrip("}") + f", {field}}}")
    assert read(storage, "a") is None
    assert read_all(storage) == {}
