"""The model that answers: it changes with its alias, and only to one that can be loaded."""

import asyncio
import threading

import pytest

from model.errors import ModelError
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


def test_a_version_that_cannot_be_loaded_changes_nothing(alias):
    champion = Champion(URI, "cpu", LIMITS, 0)
    before = champion.current
    alias["version"] = "models:/lseg/2"

    def broken(uri):
        raise ModelError("damaged")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(champion, "_load", broken)
        with pytest.raises(ModelError):
            champion.look()
        assert not champion.look()  # It is not loaded again and again.
    assert champion.current is before
    alias["version"] = "models:/lseg/1"
    assert not champion.look()
    alias["version"] = "models:/lseg/2"
    assert champion.look()


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
