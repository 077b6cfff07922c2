"""What every head gives the network, and where its modules lie there."""

from dataclasses import replace

import pytest
import torch

from model.config import BackboneConfig, HeadConfig, ModelConfig, RegularizerConfig
from model.head.interface import Head
from model.lseg import LSeg, build_lseg
from tests.model.head.test_cost import CONFIG as COST

DOT = replace(COST, head=HeadConfig(), features=16)
ALIGNED = replace(DOT, head=HeadConfig(kind="dot-aligned"))
CNN = replace(DOT, backbone=BackboneConfig(name="resnet10t", pretrained=False))
SMOOTHED = RegularizerConfig(kind="bottleneck", depth=1)


def built(config: ModelConfig) -> LSeg:
    with torch.device("meta"):
        return build_lseg(config, 512)


@pytest.mark.parametrize(
    ("config", "rooms"),
    [
        (DOT, ["reassemble", "backbone", "decoder"]),
        (ALIGNED, ["reassemble", "backbone", "decoder"]),
        (CNN, ["backbone", "decoder"]),
        (replace(DOT, regularizer=SMOOTHED), ["reassemble", "backbone", "decoder", "regularizer"]),
        (COST, ["backbone", "cost"]),
    ],
    ids=["dot", "dot-aligned", "cnn", "regulariser", "cost"],
)
def test_weights_have_the_names_and_the_order_of_every_checkpoint_so_far(config, rooms):
    """Another order would mix up the optimiser's state of a run that resumes."""
    lseg = built(config)
    assert list(dict.fromkeys(name.split(".")[0] for name in lseg.state_dict())) == rooms
    grouped = [p for group in lseg.parameter_groups(1.0) for p in group["params"]]
    assert len(grouped) == len({id(p) for p in grouped})
    assert {id(p) for p in grouped} == {id(p) for p in lseg.parameters()}


@pytest.mark.parametrize(
    ("config", "couples", "apart"),
    [(DOT, False, False), (ALIGNED, False, False), (COST, True, True)],
    ids=["dot", "dot-aligned", "cost"],
)
def test_the_network_answers_for_its_head(config, couples, apart):
    lseg = built(config)
    assert isinstance(lseg.head, Head)
    assert (lseg.couples_labels, lseg.scores_apart) == (couples, apart)
    assert lseg.stride_px == lseg.head.stride_px


@pytest.mark.parametrize(("kind", "couples"), [("bottleneck", True), ("depthwise", False)])
def test_a_maximum_over_the_labels_couples_them(kind, couples):
    regularizer = RegularizerConfig(kind=kind, depth=1)
    assert built(replace(DOT, regularizer=regularizer)).couples_labels is couples
