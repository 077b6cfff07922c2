"""The average of the weights, batch-norm statistics of a skipped step, and checkpoints of both."""

from dataclasses import replace

import pytest
import ray.train
import torch

from model.lseg import LSeg
from pipeline.training.config import TrainConfig, TrainMixConfig
from pipeline.training.questions.labels import label_space
from pipeline.training.saving import checkpoint
from pipeline.training.saving.checkpoint import provenance_of
from pipeline.training.state.state import Statistics, build_state
from tests.support.mini_shards import tiny_model

CPU = torch.device("cpu")
DTYPES = {"fp32": torch.float32, "fp64": torch.float64}
CONFIG = TrainMixConfig(model=tiny_model(), train=TrainConfig(ema_decay=0.9, steps=50, lr=0.1))


def one_step(state, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    image = torch.randn(2, 3, 48, 48, generator=generator).to(state.lseg.mean_C.dtype)
    text = torch.randn(4, 512, generator=generator)
    state.optimizer.zero_grad()
    state.lseg(image, text).square().mean().backward()
    state.optimizer.step()
    state.average.update_parameters(state.lseg)
    state.schedule.step()
    state.step += 1
    state.order.append(seed)


def test_the_average_lags_behind_by_its_decay():
    state = build_state(CONFIG, 512, CPU)
    history = []
    for step in range(4):
        one_step(state, step)
        history.append([p.detach().clone() for p in state.lseg.parameters()])
    expected = history[0]
    for values in history[1:]:
        expected = [0.9 * mean + 0.1 * now for mean, now in zip(expected, values, strict=True)]
    for mean, found in zip(expected, state.evaluated.parameters(), strict=True):
        torch.testing.assert_close(found.detach(), mean)
    buffers = zip(state.lseg.buffers(), state.evaluated.buffers(), strict=True)
    assert all(torch.equal(one, other) for one, other in buffers)


@pytest.mark.parametrize("precision", ["fp32", "fp64"])
def test_a_resumed_state_goes_on_as_the_one_it_was_saved_from(tmp_path, precision):
    config = replace(CONFIG, train=replace(CONFIG.train, precision=precision))
    whole, resumed = build_state(config, 512, CPU), build_state(config, 512, CPU)
    for step in range(3):
        one_step(whole, step)
    checkpoint.save(
        tmp_path,
        checkpoint.content_of(whole),
        provenance_of(config, label_space(["road", "sky"]), {"step": 3}, {}),
    )
    checkpoint.restore(ray.train.Checkpoint.from_directory(tmp_path), resumed, CPU)
    assert (resumed.step, resumed.order) == (3, [0, 1, 2])
    for step in (3, 4):
        one_step(whole, step)
        one_step(resumed, step)
    for which in ("lseg", "evaluated"):
        first, second = (getattr(s, which).state_dict() for s in (whole, resumed))
        assert all(torch.equal(first[name], second[name]) for name in first)
        assert first["backbone.vit.cls_token"].dtype == DTYPES[precision]
    assert whole.schedule.get_last_lr() == resumed.schedule.get_last_lr()
    # Who loads the checkpoint afterwards gets the usual float32.
    assert LSeg.load(tmp_path).mean_C.dtype == torch.float32


def test_a_resumed_state_takes_rates_that_were_changed(tmp_path):
    before = build_state(CONFIG, 512, CPU)
    for step in range(3):
        one_step(before, step)
    checkpoint.save(
        tmp_path,
        checkpoint.content_of(before),
        provenance_of(CONFIG, label_space(["road", "sky"]), {"step": 3}, {}),
    )
    train = replace(CONFIG.train, lr=CONFIG.train.lr / 8, weight_decay=0.5, steps=100)
    resumed = build_state(replace(CONFIG, train=train), 512, CPU)
    checkpoint.restore(ray.train.Checkpoint.from_directory(tmp_path), resumed, CPU)
    undisturbed = build_state(replace(CONFIG, train=train), 512, CPU)
    for step in range(3):
        one_step(undisturbed, step)
    for state in (resumed, undisturbed):
        assert state.schedule.get_last_lr() == [g["lr"] for g in state.optimizer.param_groups]
        assert {g["weight_decay"] for g in state.optimizer.param_groups} == {0.5}
    assert resumed.schedule.get_last_lr() == undisturbed.schedule.get_last_lr()
    one_step(resumed, 3)
    one_step(undisturbed, 3)
    assert resumed.schedule.get_last_lr() == undisturbed.schedule.get_last_lr()


def test_the_checkpoint_hands_out_the_average(tmp_path):
    state = build_state(CONFIG, 512, CPU)
    one_step(state, 0)
    one_step(state, 1)
    checkpoint.save(
        tmp_path, checkpoint.content_of(state), provenance_of(CONFIG, label_space(["road"]), {}, {})
    )
    loaded = LSeg.load(tmp_path)
    for one, other in zip(loaded.parameters(), state.evaluated.parameters(), strict=True):
        assert torch.equal(one, other)
    pairs = zip(loaded.parameters(), state.lseg.parameters(), strict=True)
    assert any(not torch.equal(one, other) for one, other in pairs)


def test_a_step_of_nans_leaves_no_trace_in_the_statistics():
    state = build_state(CONFIG, 512, CPU)
    statistics = Statistics(state.lseg)
    one_step(state, 0)
    statistics.keep()
    kept = {name: value.clone() for name, value in state.lseg.state_dict().items()}
    state.lseg(torch.full((2, 3, 48, 48), float("nan")), torch.randn(4, 512))
    running = [n for n in kept if n.endswith(("running_mean", "running_var"))]
    assert any(not torch.isfinite(state.lseg.state_dict()[name]).all() for name in running)
    statistics.put_back()
    assert all(torch.equal(state.lseg.state_dict()[name], kept[name]) for name in running)


def test_no_average_unless_asked_for():
    state = build_state(replace(CONFIG, train=TrainConfig(steps=50)), 512, CPU)
    assert state.average is None
    assert state.evaluated is state.lseg


@pytest.mark.parametrize("key", ["momentum", "ema_decay"])
def test_decays_are_below_one(key):
    with pytest.raises(ValueError, match=rf"train\.{key}=1\.0"):
        TrainConfig(**{key: 1.0})
