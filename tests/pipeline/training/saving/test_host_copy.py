"""Copies in host memory stay as they were when they were taken, and take memory once."""

import ray.train
import torch

from pipeline.training.config import TrainConfig, TrainMixConfig
from pipeline.training.questions.labels import label_space
from pipeline.training.saving import checkpoint
from pipeline.training.saving.checkpoint import content_of, provenance_of
from pipeline.training.saving.host_copy import HostCopy
from pipeline.training.state.state import TrainingState, build_state
from tests.support.mini_shards import tiny_model

CPU = torch.device("cpu")


def test_a_copy_has_the_same_values_and_types_in_other_memory():
    weight = torch.nn.Parameter(torch.arange(12.0).reshape(3, 4).t())
    content = {"a": weight, 3: {"betas": (0.9, torch.ones(2)), "list": [1, None]}, "x": "text"}
    taken = HostCopy().take(content, "all")
    assert torch.equal(taken["a"], weight)
    assert taken["a"].stride() == weight.stride()
    assert not taken["a"].requires_grad
    assert isinstance(taken[3]["betas"], tuple)
    with torch.no_grad():
        weight.zero_()
    content[3]["list"][0] = 2
    assert taken["a"].sum() == 66
    assert taken[3]["list"] == [1, None]
    assert taken["x"] == "text"


def test_the_next_copy_takes_no_further_memory():
    copy = HostCopy()
    places = set()
    for value in (1.0, 2.0):
        taken = copy.take({"a": torch.full((4,), value)}, "all")["a"]
        assert taken[0] == value
        places.add(taken.data_ptr())
    assert len(places) == 1
    assert copy.take({"a": torch.zeros(5)}, "all")["a"].shape == (5,)


def stepped(state: TrainingState) -> None:
    for parameter in state.lseg.parameters():
        parameter.grad = torch.full_like(parameter, 0.1)
    state.optimizer.step()
    state.schedule.step()
    if state.average:
        state.average.update_parameters(state.lseg)
    state.step += 1
    state.order.append(state.step)


def test_a_checkpoint_is_of_the_step_after_which_it_was_taken(tmp_path):
    train = TrainConfig(steps=9, optimizer="adamw", ema_decay=0.5)
    config = TrainMixConfig(model=tiny_model(), train=train)
    state, copy = build_state(config, 512, CPU), HostCopy()
    stepped(state)
    folders, before = [tmp_path / "at_once", tmp_path / "later"], provenance_of(
        config, label_space(["road"]), {}, {}
    )  # fmt: skip
    for folder in folders:
        folder.mkdir()
    content = content_of(state, copy)
    checkpoint.save(folders[0], content_of(state), before)
    stepped(state)
    checkpoint.save(folders[1], content, before)
    for path in folders[0].iterdir():
        assert (folders[1] / path.name).read_bytes() == path.read_bytes(), path.name
    # And the memory is filled anew for the next one.
    again = content_of(state, copy, content)
    assert again.weights.keys() == content.weights.keys()
    resumed = build_state(config, 512, CPU)
    checkpoint.save(folders[1], again, before)
    checkpoint.restore(ray.train.Checkpoint.from_directory(folders[1]), resumed, CPU)
    assert (resumed.step, resumed.order) == (2, [1, 2])
    one, other = state.optimizer.state_dict(), resumed.optimizer.state_dict()
    for key, values in one["state"].items():
        assert all(torch.equal(value, other["state"][key][n]) for n, value in values.items())
