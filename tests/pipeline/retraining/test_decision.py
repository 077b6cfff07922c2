"""The rule of promotion: tables, and properties over all figures."""

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.retraining.decision import Decision, Scores, decide

LIMITS = {"margin": 0.002, "max_drop": 0.01}


def scores(**datasets: float) -> Scores:
    return Scores(sum(datasets.values()) / len(datasets), datasets)


@pytest.mark.parametrize(
    ("champion", "candidate", "promote", "reason"),
    [
        ((0.40, 0.60), (0.41, 0.61), True, "mean mIoU 0.5100 against the champion's 0.5000"),
        ((0.40, 0.60), (0.40, 0.60), False, "+0.0000, and at least +0.0020"),
        ((0.40, 0.60), (0.38, 0.58), False, "-0.0200, and at least +0.0020"),
        ((0.40, 0.60), (0.402, 0.602), True, "+0.0020, and at least +0.0020"),
        ((0.40, 0.60), (0.4019, 0.6019), False, "+0.0019, and at least +0.0020"),
        ((0.40, 0.60), (0.39, 0.70), True, "a changed least favourably: -0.0100"),
        ((0.40, 0.60), (0.38, 0.80), False, "a: mIoU 0.3800 against the champion's 0.4000"),
    ],
)
def test_the_table(champion, candidate, promote, reason):
    a, b = (scores(a=first, b=second) for first, second in (champion, candidate))
    decision = decide(a, b, **LIMITS)
    assert decision.promote is promote
    assert reason in "; ".join(decision.reasons)
    assert decision.gain == pytest.approx(b.mean - a.mean)


def test_worse_on_one_dataset_names_it_alone_though_the_mean_is_better():
    decision = decide(scores(a=0.4, b=0.5, c=0.5), scores(a=0.5, b=0.48, c=0.5), **LIMITS)
    assert not decision.promote
    (reason,) = decision.reasons
    assert reason.startswith("b: mIoU 0.4800")
    assert "at most -0.0100 is allowed" in reason


def test_all_that_speaks_against_it_is_said():
    decision = decide(scores(a=0.4, b=0.5), scores(a=0.3, b=0.4), **LIMITS)
    assert len(decision.reasons) == 3


def test_without_a_champion_the_candidate_is_one():
    decision = decide(None, scores(a=0.01), **LIMITS)
    assert decision.promote
    assert "no champion" in decision.reasons[0]
    assert decision.gain is None


@pytest.mark.parametrize(
    ("candidate", "reason"),
    [
        (scores(a=0.9), "only one of the two models has a score for b"),
        (scores(a=0.9, b=0.9, c=0.9), "only one of the two models has a score for c"),
    ],
)
def test_what_cannot_be_compared_is_not_promoted(candidate, reason):
    decision = decide(scores(a=0.4, b=0.5), candidate, **LIMITS)
    assert not decision.promote
    assert reason in "; ".join(decision.reasons)


@pytest.mark.parametrize(
    ("broken", "what"),
    [
        (Scores(math.nan, {}), "mean"),
        (Scores(math.nan, {"a": 0.9, "b": 0.9}), "mean"),
        (Scores(math.inf, {"a": 0.9, "b": 0.9}), "mean"),
        (Scores(0.9, {"a": 0.9, "b": math.nan}), "b"),
        (Scores(0.9, {"a": -math.inf, "b": math.nan}), "a, b"),
    ],
)
def test_what_is_no_number_is_neither_promoted_nor_replaced(broken, what):
    good = scores(a=0.4, b=0.5)
    for champion in (None, good, broken):
        decision = decide(champion, broken, **LIMITS)
        assert not decision.promote
        assert decision.reasons == (f"the candidate's mIoU is no number ({what})",)
        assert decision.gain is None
    decision = decide(broken, good, **LIMITS)
    assert not decision.promote
    assert decision.reasons == (f"the champion's mIoU is no number ({what}): promote by hand",)
    assert Decision.from_dict(json.loads(json.dumps(decision.to_dict()))) == decision


def test_without_a_margin_equal_is_not_better():
    same = scores(a=0.4)
    assert not decide(same, same, margin=0.0, max_drop=0.0).promote
    assert decide(same, scores(a=0.4001), margin=0.0, max_drop=0.0).promote


MIOU = st.integers(0, 1000).map(lambda n: n / 1000)
PAIRS = st.dictionaries(st.sampled_from("abcdefg"), st.tuples(MIOU, MIOU), min_size=1)


@given(PAIRS, st.integers(0, 50), st.integers(0, 50))
def test_it_is_promoted_exactly_when_both_rules_hold(pairs, margin, max_drop):
    champion, candidate = (scores(**{n: p[i] for n, p in pairs.items()}) for i in (0, 1))
    decision = decide(champion, candidate, margin=margin / 1000, max_drop=max_drop / 1000)
    # In whole thousandths, where nothing is rounded.
    steps = [round(1000 * new) - round(1000 * old) for old, new in pairs.values()]
    better = sum(steps) > 0 and sum(steps) >= margin * len(steps)
    assert decision.promote is (better and min(steps) >= -max_drop)
    assert decision.reasons
    assert Decision.from_dict(json.loads(json.dumps(decision.to_dict()))) == decision


def test_scores_are_taken_from_the_figures_of_a_report():
    figures = {"miou": 0.5, "images": 4.0, "coco/miou": 0.4, "idd/miou": 0.6}
    figures |= {"idd/pixel_accuracy": 0.9, "idd/miou_seen_classes": 0.7}
    assert Scores.from_figures(figures) == Scores(0.5, {"coco": 0.4, "idd": 0.6})
