"""A text tower that is trained along: gradients, checkpoints, and two workers against one."""

import socket
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import distributed as dist
from torch.multiprocessing.spawn import spawn
from torch.nn import functional

from model.checkpoint_files import TEXT_WEIGHTS, WEIGHTS
from model.lseg import LSeg, build_lseg
from model.text import trained_tower
from pipeline.data.taxonomy import Taxonomy
from pipeline.errors import UserError
from pipeline.training.config import DistractorConfig, OtherConfig, TrainConfig, TrainMixConfig
from pipeline.training.questions.labels import label_space
from pipeline.training.questions.questions import Questions
from pipeline.training.saving import checkpoint
from pipeline.training.state.optimizer import build_optimizer
from pipeline.training.worker import loop
from pipeline.training.worker.step_text import StepText
from pipeline.training.worker.wrapping import autocast, wrap
from tests.support.lone_worker import LoneWorker, process_group, rest_of  # noqa: F401
from tests.support.mini_shards import MiniShards, tiny_model
from tests.support.tiny_clip import DIM, tiny_clip

CPU = torch.device("cpu")
WEIGHT = "clip.transformer.resblocks.{}.attn.in_proj_weight"


@pytest.fixture
def config(mini_shards: MiniShards, tmp_path, monkeypatch) -> TrainMixConfig:
    """A run that asks for some of its labels in each step, with "other" and distractors."""
    monkeypatch.setattr(loop, "Saver", lambda *_: SimpleNamespace(news=0))  # Saved below.
    train = {
        "steps": 4,
        "ema_decay": 0.5,
        "labels_per_step": 9,
        "other": OtherConfig(share=0.5),
        "distractors": DistractorConfig(count=3),
        "lr": 0.5,
        "clip_norm": 0.0,
    }
    made = mini_shards.config(tmp_path, "text", **train)
    trained = replace(made.train, text="attention-qv")
    return replace(made, model=tiny_model(text=tiny_clip(tmp_path), features=16), train=trained)


def changed(before: dict[str, torch.Tensor], after: dict[str, torch.Tensor]) -> set[str]:
    return {name for name, value in before.items() if not torch.equal(value, after[name])}


@pytest.mark.usefixtures("process_group")
def test_queries_and_values_alone_train_and_a_checkpoint_has_them(config, tmp_path, monkeypatch):
    whole = LoneWorker(config)
    tower = whole.state.lseg.text_tower
    assert tower is not None
    before = {name: value.clone() for name, value in tower.state_dict().items()}
    assert np.isfinite([whole.step(), whole.step()]).all()
    after = tower.state_dict()
    assert changed(before, after) == {WEIGHT.format(0), WEIGHT.format(1)}
    for block in (0, 1):
        old, new = (state[WEIGHT.format(block)].chunk(3) for state in (before, after))
        assert [torch.equal(*pair) for pair in zip(old, new, strict=True)] == [False, True, False]

    folder = tmp_path / "step_2"
    folder.mkdir()
    provenance = checkpoint.provenance_of(config, whole.labels, {}, {})
    checkpoint.save(folder, checkpoint.content_of(whole.state), provenance)
    assert not any(name.startswith("text_tower") for name in load_file(folder / WEIGHTS))
    assert (folder / TEXT_WEIGHTS).stat().st_mode == (folder / WEIGHTS).stat().st_mode
    # Everyone reads the tower that was trained, of the average, and not the one it began from.
    loaded = LSeg.load(folder)
    words = [whole.labels.texts[0], "a word of no training"]
    average = whole.state.evaluated
    expected = whole.loop.text.of_all(average)[:1]
    torch.testing.assert_close(loaded.embed_text(words)[:1], expected, rtol=1e-5, atol=1e-6)
    frozen = build_lseg(config.model, DIM).embed_text(words)[:1]
    assert float((frozen - expected).abs().max()) > 1e-3

    # And a run goes on from it to the bit: also in which labels it holds for near to others.
    whole.step()
    monkeypatch.setattr(LoneWorker, "batches_of_noise", rest_of(LoneWorker.batches_of_noise, 2))
    resumed = LoneWorker(config, source=folder)
    resumed.step()
    assert changed(whole.tensors(), resumed.tensors()) == set()


@pytest.mark.usefixtures("process_group")
def test_a_question_has_the_vectors_of_its_own_labels(config):
    worker = LoneWorker(config)
    sizes = set()
    for step in range(12):
        question = worker.loop.questions.at(step, ())
        sizes.add(len(question.text_KC))
        # Before the first step the tower is the frozen encoder.
        vectors = worker.loop.text.of(question)
        torch.testing.assert_close(vectors.detach(), question.text_KC, rtol=1e-5, atol=1e-6)
    assert len(sizes) > 1
    torch.testing.assert_close(
        worker.loop.text.of_all(worker.state.lseg), worker.loop.questions.text_KC
    )


def steps_of(tower_config, rank: int, world: int) -> dict[str, torch.Tensor]:
    """Three steps on this worker's part of twelve images, in two passes each: the weights."""
    taxonomy = Taxonomy("own", ("road", "sky", "car", "dog"))
    train = TrainConfig(text="attention-qv", accumulate=2, batch_size=12, momentum=0.9, lr=0.3)
    config = TrainMixConfig(train=train, model=tiny_model(text=tower_config))
    torch.manual_seed(0)
    lseg = build_lseg(config.model, DIM).double()
    lseg.text_tower = trained_tower(config.model.text).double()
    optimizer = build_optimizer(lseg, train)
    questions = Questions(config, label_space(taxonomy.classes, taxonomy), lseg.text_encoder, CPU)
    text = StepText(config, lseg, questions, autocast("fp64", CPU))
    network = wrap(lseg.eval(), train, CPU, world)
    generator = torch.Generator().manual_seed(0)
    for step in range(3):
        image = torch.rand(12, 3, 48, 48, generator=generator, dtype=torch.float64)
        label = torch.randint(4, (12, 24, 24), generator=generator)
        optimizer.zero_grad()
        vectors = text.of(questions.at(step))
        each = len(image) // world // 2
        for part in range(2):
            first = (2 * rank + part) * each
            last = part == 1
            logits = _pass(network, last, image[first : first + each], vectors)
            loss = functional.cross_entropy(logits, label[first : first + each], reduction="sum")
            (loss * world / label.numel()).backward()
        text.backward()
        optimizer.step()
    return lseg.state_dict()


def _pass(network, last: bool, image: torch.Tensor, vectors: torch.Tensor) -> torch.Tensor:
    if last or isinstance(network, LSeg):
        return network(image, vectors)
    with network.no_sync():
        return network(image, vectors)


def run_worker(rank: int, port: int, folder: str) -> None:
    torch.set_num_threads(1)
    address = f"tcp://127.0.0.1:{port}"
    dist.init_process_group("gloo", init_method=address, rank=rank, world_size=2)
    text = tiny_clip(Path(folder) / str(rank))
    torch.save(steps_of(text, rank, 2), Path(folder) / f"{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.usefixtures("process_group")
def test_two_workers_train_as_one_does(tmp_path):
    for name in ("0", "1", "alone"):
        (tmp_path / name).mkdir()
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]
    spawn(run_worker, args=(port, str(tmp_path)), nprocs=2)
    one, two = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1))
    expected = steps_of(tiny_clip(tmp_path / "alone"), 0, 1)
    (tmp_path / "again").mkdir()  # The same tower: its random weights are of one seed.
    start = trained_tower(tiny_clip(tmp_path / "again")).double().state_dict()
    name = f"text_tower.{WEIGHT.format(1)}"
    assert float((expected[name] - start[WEIGHT.format(1)]).abs().max()) > 1e-3
    for name, value in expected.items():
        assert torch.equal(one[name], two[name]), name
        torch.testing.assert_close(one[name], value, rtol=1e-7, atol=1e-9, msg=name)


@pytest.mark.usefixtures("process_group")
def test_a_tower_whose_rate_has_the_factor_0_stays_as_it_is(config):
    worker = LoneWorker(replace(config, train=replace(config.train, rates=("^text_tower=0",))))
    tower = worker.state.lseg.text_tower
    assert tower is not None
    before = {name: value.clone() for name, value in tower.state_dict().items()}
    assert np.isfinite(worker.step())
    assert changed(before, tower.state_dict()) == set()


def test_it_goes_with_towers_of_open_clip_alone():
    with pytest.raises(UserError, match=r"train\.text=attention-qv: model\.text\.encoder=stand-in"):
        TrainMixConfig(train=TrainConfig(text="attention-qv"), model=tiny_model())
    model = replace(tiny_model(), text=replace(tiny_model().text, encoder="ViT-B-16"))
    with pytest.raises(UserError, match=r"train\.text_noise=0\.1: is for vectors"):
        TrainMixConfig(train=TrainConfig(text="attention-qv", text_noise=0.1), model=model)
