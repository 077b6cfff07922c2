from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.data.ingest.share import NodeShare, batches_per_block


@settings(deadline=None, max_examples=200)
@given(
    first=st.integers(0, 10**9),
    batches=st.integers(0, 60),
    rows=st.integers(1, 5),
    per_block=st.integers(1, 7),
    nodes=st.lists(st.integers(1, 4), min_size=1, max_size=4),
    shuffled=st.randoms(use_true_random=False),
)
def test_the_nodes_share_all_rows_and_each_goes_round_its_workers(
    first, batches, rows, per_block, nodes, shuffled
):
    ranks = list(range(sum(nodes)))
    shuffled.shuffle(ranks)
    start, stop = first * rows, (first + batches) * rows
    found: dict[int, list[int]] = {rank: [] for rank in ranks}
    for size in nodes:
        workers = tuple(sorted(ranks[:size]))
        ranks = ranks[size:]
        share = NodeShare(
            start=start,
            stop=stop,
            rows_per_batch=rows,
            batches_per_block=per_block,
            num_workers=sum(nodes),
            workers=workers,
        )
        for number in range(share.num_blocks):
            block = share.block(number)
            assert 1 <= len(block) <= per_block
            # Ray's split gives the blocks to the consumers strictly in turn.
            found[workers[number % size]] += block
        assert not any(share.block(share.num_blocks + more) for more in range(size))
    for rank, taken in found.items():
        assert taken == list(range(start, stop, rows))[rank :: sum(nodes)]


def test_a_block_of_a_long_run_costs_no_more_than_one_of_a_short_run():
    share = NodeShare(
        start=0,
        stop=256 * 10**12,
        rows_per_batch=4,
        batches_per_block=16,
        num_workers=64,
        workers=(3, 9),
    )
    assert share.num_blocks == 2 * 10**12 // 16
    assert list(share.block(2 * 10**9 + 1)) == [
        (16 * 10**9 + turn) * 256 + 9 * 4 for turn in range(16)
    ]


def test_small_batches_share_a_block_and_large_crops_do_not():
    assert batches_per_block(4, 480) == 16
    assert batches_per_block(24, 480) == 2
    assert batches_per_block(128, 480) == 1
    assert batches_per_block(4, 1024) == 4
    assert batches_per_block(1, 8192) == 1
