"""The model that answers: it changes with its alias, and only to one that can be loaded."""

import asyncio
import threading
import time

import pytest

from model.errors import ModelError
from pipeline.errors import Outage
from pipeline.serving import champion as module
from pipeline.serving.calls import Call
from pipeline.serving.champion import Champion
from pipeline.serving.engine import Engine
from tests.pipeline.serving.conftest import LIMITS, png
from tests.support.tiny_checkpoint import tiny_checkpoint

URI = "models:/lseg@champion"


@pytest.fixture
def alias(tmp_path, monkeypatch) -> dict[str, object]:
    """Where the alias leads, and the folders of the versions."""
    places = {f"models:/lseg/{n}": tiny_checkpoint(tmp_path / str(n), n) for n in (1, 2)}
    now: dict[str, object] = {"version": "models:/lseg/1"}
    monkeypatch.setattr(module, "pinned", lambda uri: now["version"] if uri == URI else uri)
    monkeypatch.setattr(module, "local", lambda uri: places[uri])
    return now


def test_the_alias_is_followed_there_and_back(alias):
    champion = Champion(URI, "cpu", LIMITS, 0)
    assert champion.is_followed
    assert champion.current.name == "models:/lseg/1"
    assert not champion.look()
    alias["version"] = "models:/lseg/2"
    assert champion.look()
    assert champion.current.name == "models:/lseg/2"
    alias["version"] = "models:/lseg/1"
    assert champion.look()
    assert champion.current.name == "models:/lseg/1"


@pytest.fixture
def clock(monkeypatch) -> list[float]:
    """The time that the champion sees, to be moved by hand."""
    now = [0.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    return now


@pytest.mark.parametrize("error", [ModelError("damaged"), Outage("S3 is away"), OSError("full")])
def test_a_version_that_cannot_be_loaded_is_tried_again_after_pauses_that_grow(
    alias, clock, error, monkeypatch
):
    champion = Champion(URI, "cpu", LIMITS, 0)
    before, load, tries = champion.current, champion._load, []
    alias["version"] = "models:/lseg/2"

    def broken(uri):
        tries.append(clock[0])
        raise error

    monkeypatch.setattr(champion, "_load", broken)
    assert not champion.is_behind
    for second in range(0, 3000, 5):
        clock[0] = second
        try:
            assert not champion.look()
        except type(error):
            assert tries[-1] == second
        assert champion.is_behind
    assert tries == [0, 10, 30, 70, 150, 310, 630, 1230, 1830, 2430]
    assert champion.current is before
    # What was away is back.
    monkeypatch.setattr(champion, "_load", load)
    clock[0] = 3030
    assert champion.look()
    assert champion.current.name == "models:/lseg/2"
    assert not champion.is_behind


def test_an_alias_that_moves_on_is_followed_without_a_pause(alias, clock, monkeypatch):
    champion = Champion(URI, "cpu", LIMITS, 0)
    load, tries = champion._load, []

    def broken(uri):
        tries.append(uri)
        raise ModelError("damaged")

    monkeypatch.setattr(champion, "_load", broken)
    for number in (2, 3):
        alias["version"] = f"models:/lseg/{number}"
        with pytest.raises(ModelError):
            champion.look()
        assert not champion.look()  # It is not loaded again at once.
    assert tries == ["models:/lseg/2", "models:/lseg/3"]
    alias["version"] = "models:/lseg/1"
    assert not champion.look()
    assert not champion.is_behind
    monkeypatch.setattr(champion, "_load", load)
    alias["version"] = "models:/lseg/2"
    assert champion.look()


def test_the_thread_follows_when_the_storage_is_back(alias, monkeypatch, caplog):
    monkeypatch.setattr(module, "FIRST_PAUSE_S", 0.02)
    champion = Champion(URI, "cpu", LIMITS, 0.01)
    load, tries = champion._load, []

    def away_at_first(uri):
        tries.append(uri)
        if len(tries) < 3:
            raise Outage("S3 is away")
        return load(uri)

    monkeypatch.setattr(champion, "_load", away_at_first)
    alias["version"] = "models:/lseg/2"
    ends = time.monotonic() + 30
    while champion.current.name != "models:/lseg/2":
        assert time.monotonic() < ends
        time.sleep(0.01)
    champion.close()
    assert len(tries) == 3
    assert "models:/lseg/1 goes on: S3 is away" in caplog.text
    assert not champion.is_behind


def test_fetched_files_do_not_stay(alias, tmp_path, monkeypatch):
    monkeypatch.setattr("pipeline.checkpoints.resolvers._process_folder", lambda: tmp_path / "2")
    champion = Champion(URI, "cpu", LIMITS, 0)
    alias["version"] = "models:/lseg/2"
    assert champion.look()
    assert (tmp_path / "1").is_dir()  # It was not fetched.
    assert not (tmp_path / "2").exists()
    question = champion.current.network.question({"labels": ("a", "b")})
    assert len(champion.current.network.vectors(question)) == 2


def test_no_call_is_lost_while_the_model_changes(alias):
    champion = Champion(URI, "cpu", LIMITS, 0)
    engine = Engine(lambda: champion.current, max_waiting=100)
    call = Call("segment", png(), {"labels": ("dog", "sky", "car")})

    async def answered(number: int) -> list[tuple[str, bytes]]:
        found = await asyncio.gather(*(engine.ask(call) for _ in range(number)))
        return [(each.model, each.body.partition(b'"labels"')[2]) for each in found]

    of_each = {}
    for number in (1, 2):
        alias["version"] = f"models:/lseg/{number}"
        champion.look()
        ((model, body),) = asyncio.run(answered(1))
        of_each[model] = body
    assert len(set(of_each.values())) == 2  # else no answer could be of the wrong one

    def change() -> None:
        for number in (1, 2, 1, 2):
            alias["version"] = f"models:/lseg/{number}"
            champion.look()

    changing = threading.Thread(target=change)
    changing.start()
    found = []
    while changing.is_alive():
        found += asyncio.run(answered(4))
    changing.join()
    engine.close()
    assert {model for model, _ in found} == set(of_each)
    assert all(body == of_each[model] for model, body in found)
