"""EfficientNet-Lite in the names of the original port, as timm's."""

import timm
import torch

from model.backbone.lite_keys import timm_names

_STAGES = (
    ("_depthwise_conv", "_bn1", "_project_conv", "_bn2"),
    ("conv_dw", "bn1", "conv_pw", "bn2"),
)
_EXPANDED = (
    ("_expand_conv", "_bn0", "_depthwise_conv", "_bn1", "_project_conv", "_bn2"),
    ("conv_pw", "bn1", "conv_dw", "bn2", "conv_pwl", "bn3"),
)


def ported(state):
    """The names that the port has for timm's."""
    blocks = list(dict.fromkeys(".".join(n.split(".")[:3]) for n in state if n[:7] == "blocks."))
    tops = dict(conv_stem="_conv_stem", bn1="_bn0", conv_head="_conv_head", bn2="_bn1")
    tops |= {"classifier": "_fc"}
    found = {}
    for name, tensor in state.items():
        parts = name.split(".")
        if parts[0] != "blocks":
            found[".".join([tops[parts[0]], *parts[1:]])] = tensor
            continue
        number = blocks.index(".".join(parts[:3]))
        theirs, ours = _EXPANDED if f"{blocks[number]}.conv_pwl.weight" in state else _STAGES
        found[".".join(["_blocks", str(number), theirs[ours.index(parts[3])], *parts[4:]])] = tensor
    return found


def test_every_tensor_finds_its_place():
    with torch.device("meta"):
        state = timm.create_model("tf_efficientnet_lite0").state_dict()
    renamed = timm_names(ported(state), state)
    assert renamed.keys() == state.keys()
    assert all(renamed[name] is state[name] for name in state)


def test_what_has_no_counterpart_keeps_its_name():
    tensor = torch.zeros(1)
    names = ["odd.weight", "_blocks.99._bn1.weight", "_blocks.x", "plain"]
    renamed = timm_names({name: tensor for name in names}, ["blocks.0.0.bn1.weight"])
    assert {"odd.weight", "_blocks.99._bn1.weight", "_blocks.x"} <= renamed.keys()
