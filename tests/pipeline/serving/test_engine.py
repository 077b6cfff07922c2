"""The engine: calls of one size and one question go together, and what is too much is sent away."""

import asyncio
import threading
import time

import numpy as np
import pytest

from pipeline.errors import UserError
from pipeline.serving.answers import narrow, run_lengths
from pipeline.serving.calls import Busy, Call, TooLate
from pipeline.serving.engine import Engine
from tests.pipeline.serving.conftest import png


@pytest.fixture
def watched(champion, monkeypatch):
    """The batches that went through the network, each as its size; the first one waits."""
    network, go, batches = champion.current.network, threading.Event(), []
    label_ids = type(network).label_ids

    def asked(self, seen, size, question):
        batches.append((len(seen), size, question.labels))
        go.wait(20)
        return label_ids(self, seen, size, question)

    monkeypatch.setattr(type(network), "label_ids", asked)
    return batches, go


def call(seed: int = 1, height: int = 40, labels: tuple[str, ...] = ("dog", "sky")) -> Call:
    return Call("segment", png(seed, height), {"labels": labels})


async def when_waiting(engine: Engine, number: int) -> None:
    while len(engine._jobs) < number:
        await asyncio.sleep(0.01)


def test_what_waits_for_one_question_at_one_size_goes_together(champion, watched):
    batches, go = watched
    engine = Engine(lambda: champion.current, max_batch=3)
    alone = asyncio.run(Engine(lambda: champion.current).ask(call(7))) if go.set() else None
    go.clear()
    batches.clear()

    async def all_of_them():
        first = asyncio.create_task(engine.ask(call(0)))
        while not batches:
            await asyncio.sleep(0.01)
        calls = [call(7), call(2, 48), call(3), call(4, labels=("cat",)), call(5), call(6)]
        tasks = [asyncio.create_task(engine.ask(each)) for each in calls]
        await when_waiting(engine, len(calls))
        go.set()
        return await asyncio.gather(first, *tasks)

    answers = asyncio.run(all_of_them())
    engine.close()
    counts = sorted(number for number, _, _ in batches)
    assert counts == [1, 1, 1, 1, 3]  # 7, 3, 5 or 6 with two of the others; no batch of four
    assert alone is None or answers[1].body == alone.body
    assert len({answer.body for answer in answers}) > 3


def test_beyond_the_queue_calls_are_sent_away_and_later_ones_are_answered(champion, watched):
    batches, go = watched
    engine = Engine(lambda: champion.current, max_waiting=3)

    async def all_of_them():
        tasks = [asyncio.create_task(engine.ask(call(seed))) for seed in range(8)]
        while not batches:
            await asyncio.sleep(0.01)
        go.set()
        done = await asyncio.gather(*tasks, return_exceptions=True)
        return done, await engine.ask(call())

    done, last = asyncio.run(all_of_them())
    engine.close()
    assert [type(each) for each in done].count(Busy) == 5
    assert last.model == "step_00000003"
    assert engine.waiting == 0


def test_a_call_ends_with_its_time_and_the_next_is_answered(champion, watched, monkeypatch):
    _, go = watched
    limits = champion.current.network.limits
    engine = Engine(lambda: champion.current)

    async def all_of_them():
        monkeypatch.setattr(type(limits), "seconds", 0.3)
        began = time.monotonic()
        with pytest.raises(TooLate):
            await engine.ask(call())
        assert time.monotonic() - began < 10
        monkeypatch.setattr(type(limits), "seconds", 60)
        go.set()
        return await engine.ask(call())

    assert asyncio.run(all_of_them()).body
    engine.close()


def test_slow_texts_stop_nobody_else_and_end_with_their_call(champion, monkeypatch):
    encoder = champion.current.network.lseg._text_encoder
    limits = champion.current.network.limits
    monkeypatch.setattr(encoder, "chunk_size", 1)
    forward, chunks = type(encoder)._forward, []

    def slowly(self, texts):
        chunks.append(texts[0])
        time.sleep(0.05 if texts[0].startswith("slow") else 0)
        return forward(self, texts)

    monkeypatch.setattr(type(encoder), "_forward", slowly)
    engine = Engine(lambda: champion.current)

    async def all_of_them():
        await engine.ask(call(labels=("kept", "word")))
        monkeypatch.setattr(type(limits), "seconds", 3.0)
        slow = [call(labels=tuple(f"slow {i} {n}" for n in range(200))) for i in range(4)]
        tasks = [asyncio.create_task(engine.ask(each)) for each in slow]
        while not any(text.startswith("slow") for text in chunks):
            await asyncio.sleep(0.01)
        assert (await engine.ask(call(labels=("kept", "word")))).body
        assert not any(task.done() for task in tasks)
        done = await asyncio.gather(*tasks, return_exceptions=True)
        assert [type(each) for each in done] == [TooLate] * 4
        await asyncio.sleep(0.3)
        number = len(chunks)
        await asyncio.sleep(0.3)
        assert len(chunks) == number < 100  # Nobody waits for the rest, and the other three.
        monkeypatch.setattr(type(limits), "seconds", 60)
        return await engine.ask(call(labels=("new", "words")))

    assert asyncio.run(all_of_them()).body
    engine.close()


def test_one_wrong_call_harms_no_other(engine):
    async def all_of_them():
        calls = [call(), Call("segment", b"no image", {}), call(2)]
        return await asyncio.gather(*map(engine.ask, calls), return_exceptions=True)

    first, wrong, last = asyncio.run(all_of_them())
    assert isinstance(wrong, UserError)
    assert first.body
    assert last.body


@pytest.mark.parametrize("num_labels", [3, 300])
def test_run_lengths_give_the_image_back(num_labels):
    ids = np.random.default_rng(0).integers(-1, num_labels, (9, 7))
    ids[2:5] = -1
    runs = np.array(run_lengths(narrow(ids, num_labels))).reshape(-1, 2)
    np.testing.assert_array_equal(np.repeat(runs[:, 0], runs[:, 1]).reshape(9, 7), ids)
    assert (runs[1:, 0] != runs[:-1, 0]).all()
