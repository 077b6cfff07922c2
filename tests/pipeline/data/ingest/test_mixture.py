import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.data.ingest.mixture import PERIOD, Mixture, Row, resolve_weights
from pipeline.errors import UserError

NAMES = ("ade20k", "bdd100k", "cityscapes", "idd", "mapillary")
WEIGHTS = st.one_of(
    st.just(0.0), st.floats(0.001, 1000), st.sampled_from([1.0, 0.1, 0.2, 1 / 3, 0.25, 3.0])
)


@st.composite
def mixtures(draw, max_size: int = 40) -> Mixture:
    """A mixture of one to five datasets."""
    names = draw(st.lists(st.sampled_from(NAMES), min_size=1, unique=True))
    sizes = {name: draw(st.integers(1, max_size)) for name in names}
    weights = {name: draw(WEIGHTS) for name in names}
    weights[names[0]] = weights[names[0]] or 1.0
    return Mixture(sizes, weights, draw(st.integers(1, 24)), draw(st.integers(0, 2**40)))


def drawn(mixture: Mixture, name: str, num_batches: int) -> list[int]:
    """The samples of one dataset in the order of the stream."""
    index = mixture.datasets.index(name)
    rows = mixture.rows(0, num_batches * mixture.batch_size)
    return [row.sample for row in rows if row.dataset == index]


@settings(deadline=None, max_examples=60)
@given(mixture=mixtures(), batch=st.integers(0, 10**9))
def test_each_batch_is_within_one_row_of_the_weights(mixture, batch):
    rows = mixture.batch(batch)
    counts = np.bincount([row.dataset for row in rows], minlength=len(mixture.datasets))
    assert len(rows) == mixture.batch_size
    assert np.array_equal(counts, mixture.batch_counts(batch))
    assert (np.abs(counts - mixture.shares * mixture.batch_size) < 1 + 1e-6).all()


@settings(deadline=None, max_examples=40)
@given(mixture=mixtures(), start=st.integers(0, 2 * PERIOD))
def test_shares_are_right_in_the_long_run(mixture, start):
    quota = mixture.shares * mixture.batch_size
    total = np.zeros(len(mixture.datasets))
    for number in range(start, start + PERIOD):
        total += mixture.batch_counts(number)
    assert np.abs(total - PERIOD * quota).max() <= 1 + 1e-6


@pytest.mark.parametrize("weights", [(1, 1, 1), (5, 2, 1), (0.01, 1, 0.3)])
def test_shares_settle_early(weights):
    sizes = dict.fromkeys(NAMES[:3], 100)
    mixture = Mixture(sizes, dict(zip(NAMES, weights, strict=False)), batch_size=8, seed=1)
    counts = np.array([mixture.batch_counts(number) for number in range(200)]).cumsum(0)
    exact = np.arange(1, 201)[:, None] * mixture.shares * 8
    # The rounding of the first n batches is a van der Corput sequence: its error grows as log n.
    assert np.abs(counts - exact).max() < 2 + math.log2(200)


def test_exact_shares_need_no_rounding():
    mixture = Mixture({"a": 9, "b": 9, "c": 9}, {"a": 0.1, "b": 0.2, "c": 0.7}, 10, seed=3)
    assert {tuple(mixture.batch_counts(number)) for number in range(PERIOD)} == {(1, 2, 7)}


def test_rows_stay_what_they_were():
    # A run that an earlier version began goes on with the rows that it would have had.
    weights = {"a": 1, "b": 2, "c": 3.5}
    mixture = Mixture({"a": 1, "b": 20210, "c": 118287}, weights, 6, seed=7, caps={"c": 1000})
    start = 6 * PERIOD * 5 + 3
    assert mixture.rows(start, start + 6) == [
        Row(122883, 1, 10754, 14782349968333997987),
        Row(122884, 1, 3239, 15912910655060168041),
        Row(122885, 2, 88260, 4507086506248724633),
        Row(122886, 2, 104508, 5673069393815465810),
        Row(122887, 2, 5743, 15721047649475624274),
        Row(122888, 0, 0, 4669878573035954808),
    ]


@settings(deadline=None, max_examples=30)
@given(mixture=mixtures(), firsts=st.lists(st.integers(0, 10**9), max_size=5))
def test_stretches_are_the_rows_one_after_the_other(mixture, firsts):
    stretches = [range(first, first + number) for number, first in enumerate(firsts)]
    alone = [row for each in stretches for row in mixture.rows(each.start, each.stop)]
    assert mixture.rows_of(stretches) == alone


@settings(deadline=None, max_examples=40)
@given(mixture=mixtures(), t=st.integers(0, 10**12))
def test_a_row_is_its_place_in_its_batch(mixture, t):
    batch, position = divmod(t, mixture.batch_size)
    (row,) = mixture.rows(t, t + 1)
    assert row == mixture.batch(batch)[position]
    assert row.t == t
    assert 0 <= row.seed < 2**64


@settings(deadline=None, max_examples=30)
@given(
    sizes=st.lists(st.integers(1, 30), min_size=1, max_size=4),
    batch_size=st.integers(1, 12),
    seed=st.integers(0, 99),
)
def test_each_sample_comes_once_a_pass(sizes, batch_size, seed):
    by_name = dict(zip(NAMES, sizes, strict=False))
    mixture = Mixture(by_name, resolve_weights(by_name, "size"), batch_size, seed)
    # Eight passes by the shares. A dataset of one sample in small batches may lag behind its share
    # by a few rows (low-discrepancy rounding), so three whole passes is what can be asked of each.
    num_batches = math.ceil(8 * sum(sizes) / batch_size) + 2
    for name, size in by_name.items():
        samples = drawn(mixture, name, num_batches)
        assert len(samples) >= 3 * size
        for start in range(0, len(samples) - size + 1, size):
            assert sorted(samples[start : start + size]) == list(range(size))


def test_each_pass_is_shuffled_afresh():
    mixture = Mixture({"a": 50}, {"a": 1.0}, 10, seed=0)
    passes = [tuple(row.sample for b in range(5 * n, 5 * n + 5) for row in mixture.batch(b))
              for n in range(20)]  # fmt: skip
    assert len(set(passes)) == 20
    # No sample keeps its place: over 20 passes the first one is drawn from all.
    assert len({order[0] for order in passes}) >= 8
    assert tuple(range(50)) not in passes


@pytest.mark.parametrize("size", [2, 3, 4, 5, 16, 17])
def test_small_datasets_are_shuffled_without_favourites(size):
    mixture = Mixture({"a": size}, {"a": 1.0}, batch_size=1, seed=5)
    num_passes = 400 * size
    firsts = [range(n * size, n * size + 1) for n in range(num_passes)]
    first = np.bincount([row.sample for row in mixture.rows_of(firsts)], minlength=size)
    # Binomial with mean 400: six standard deviations.
    assert np.abs(first - 400).max() < 120


@settings(deadline=None, max_examples=30)
@given(data=st.data())
def test_the_order_of_the_names_changes_nothing(data):
    sizes = {name: data.draw(st.integers(1, 30)) for name in NAMES}
    weights = {name: data.draw(st.floats(0.1, 9)) for name in NAMES}
    order = data.draw(st.permutations(NAMES))
    one = Mixture(sizes, weights, 7, seed=2)
    other = Mixture({n: sizes[n] for n in order}, {n: weights[n] for n in order[::-1]}, 7, seed=2)
    assert one.datasets == other.datasets
    assert [one.batch(b) for b in range(5)] == [other.batch(b) for b in range(5)]


def test_the_seed_alone_decides():
    def rows(seed):
        mixture = Mixture({"a": 40, "b": 60}, {"a": 1, "b": 2}, 12, seed)
        return [row for batch in range(4) for row in mixture.batch(batch)]

    assert rows(7) == rows(7)
    samples = {tuple((row.dataset, row.sample) for row in rows(seed)) for seed in range(10)}
    assert len(samples) == 10
    seeds = [row.seed for seed in range(10) for row in rows(seed)]
    assert len(set(seeds)) == len(seeds)


@pytest.mark.parametrize("num_workers", [1, 2, 3, 4, 6])
def test_ranks_that_take_rows_in_turn_make_up_the_global_batch(num_workers):
    mixture = Mixture({"a": 40, "b": 60}, {"a": 1, "b": 2}, batch_size=12, seed=4)
    per_rank = 12 // num_workers
    for batch in range(3):
        union = [
            row
            for first in range(batch * 12, batch * 12 + num_workers * per_rank, per_rank)
            for row in mixture.rows(first, first + per_rank)
        ]
        assert union == Mixture({"b": 60, "a": 40}, {"b": 2, "a": 1}, 12, 4).batch(batch)


def test_another_dataset_in_the_mixture_reshuffles_none():
    sizes = {"b": 30, "c": 12, "a": 25}
    alone = Mixture({"b": 30, "c": 12}, {"b": 1, "c": 1}, 8, seed=6)
    joined = Mixture(sizes, dict.fromkeys(sizes, 1), 8, seed=6)
    for name in ("b", "c"):
        before, after = drawn(alone, name, 30), drawn(joined, name, 30)
        length = min(len(before), len(after))
        assert length > 2 * sizes[name]
        assert before[:length] == after[:length]


def test_weight_zero_or_no_weight_leaves_a_dataset_out():
    mixture = Mixture({"a": 4, "b": 4, "c": 0}, {"a": 2.0, "b": 0.0}, 4, seed=0)
    assert mixture.datasets == ("a",)
    assert mixture.shares.tolist() == [1.0]


@pytest.mark.parametrize(
    ("weights", "words"),
    [
        ({"cityscapes": -1.0}, ("data.weights.cityscapes=-1.0", "set 0")),
        ({"cityscapes": float("nan")}, ("data.weights.cityscapes=nan", "number >= 0")),
        ({"cityscapes": float("inf")}, ("data.weights.cityscapes=inf",)),
        ({"citiscapes": 1.0}, ("data.weights.citiscapes=1.0", "did you mean 'cityscapes'?")),
        ({"idd": 1.0}, ("data.weights.idd=1.0", "no samples")),
        ({"cityscapes": 0.0, "idd": 0.0}, ("data.weights", "all are 0")),
        ({}, ("data.weights", "all are 0")),
    ],
)
def test_wrong_weights_are_refused(weights, words):
    with pytest.raises(UserError) as error:
        Mixture({"cityscapes": 5, "idd": 0}, weights, 4, seed=0)
    for word in words:
        assert word in str(error.value)


def test_weights_by_word():
    sizes = {"a": 100, "b": 25}
    assert resolve_weights(sizes, "equal") == {"a": 1.0, "b": 1.0}
    assert resolve_weights(sizes, "size") == {"a": 100.0, "b": 25.0}
    assert resolve_weights(sizes, "size", temperature=0.5) == {"a": 10.0, "b": 5.0}
    assert resolve_weights(sizes, {"a": 3.0}) == {"a": 3.0}
    with pytest.raises(UserError, match=r"data\.weights='sise'.*did you mean 'size'\?"):
        resolve_weights(sizes, "sise")


@settings(deadline=None, max_examples=30)
@given(
    sizes=st.lists(st.integers(2, 30), min_size=1, max_size=3),
    cap=st.integers(1, 40),
    batch_size=st.integers(1, 9),
    seed=st.integers(0, 99),
)
def test_a_cap_uses_one_subset_in_every_pass(sizes, cap, batch_size, seed):
    by_name = dict(zip(NAMES, sizes, strict=False))
    mixture = Mixture(by_name, dict.fromkeys(by_name, 1.0), batch_size, seed, {NAMES[0]: cap})
    used = min(cap, sizes[0])
    assert mixture.rows_per_epoch == used + sum(sizes[1:])
    num_batches = math.ceil(3 * used * len(sizes) / batch_size) + 1
    samples = drawn(mixture, NAMES[0], num_batches)
    assert len(samples) >= 2 * used
    subset = set(samples[:used])
    assert len(subset) == used
    assert subset <= set(range(sizes[0]))
    for start in range(0, len(samples) - used + 1, used):
        assert set(samples[start : start + used]) == subset
    if len(sizes) > 1:
        plain = Mixture(by_name, dict.fromkeys(by_name, 1.0), batch_size, seed)
        assert drawn(plain, NAMES[1], 9) == drawn(mixture, NAMES[1], 9)


def test_caps_of_different_seeds_are_different_subsets():
    def subset(seed):
        return frozenset(drawn(Mixture({"idd": 40}, {"idd": 1}, 5, seed, {"idd": 10}), "idd", 2))

    def drawn(mixture, _, num_batches):
        return [row.sample for b in range(num_batches) for row in mixture.batch(b)]

    subsets = {subset(seed) for seed in range(10)}
    assert len(subsets) == 10
    assert len(frozenset.union(*subsets)) > 30


@settings(deadline=None, max_examples=40)
@given(sizes=st.lists(st.integers(1, 10**6), min_size=2, max_size=5), power=st.floats(0, 2))
def test_temperature_lies_between_equal_and_beyond_size(sizes, power):
    by_name = dict(zip(NAMES, sizes, strict=False))
    weights = resolve_weights(by_name, "size", power)
    for one in by_name:
        for other in by_name:
            ratio = weights[one] / weights[other]
            assert ratio == pytest.approx((by_name[one] / by_name[other]) ** power, rel=1e-9)


@pytest.mark.parametrize(
    ("caps", "words"),
    [
        ({"ide": 4}, r"data\.caps\.ide=4: no such dataset.*did you mean 'idd'"),
        ({"coco": 4}, r"data\.caps\.coco=4: would be ignored.*weight is 0"),
    ],
)
def test_wrong_caps_are_refused(caps, words):
    with pytest.raises(UserError, match=words):
        Mixture({"idd": 9, "coco": 9}, {"idd": 1.0, "coco": 0.0}, 4, 0, caps)


@pytest.mark.parametrize(
    ("weights", "temperature", "words"),
    [
        ("equal", 0.5, r"data\.temperature=0\.5: needs data\.weights=size"),
        ("size", -1.0, r"data\.temperature=-1"),
        ("size", math.nan, r"data\.temperature=nan"),
    ],
)
def test_a_temperature_that_means_nothing_is_refused(weights, temperature, words):
    with pytest.raises(UserError, match=words):
        resolve_weights({"a": 1}, weights, temperature)
