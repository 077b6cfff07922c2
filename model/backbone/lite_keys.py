"""The weights of EfficientNet-Lite in the names of the original PyTorch port, as timm's.

The port numbers its blocks through the stages; timm numbers stages and blocks within each. The
names of a block's parts shift with whether it has an expansion.
"""

from collections.abc import Iterable, Mapping

from torch import Tensor

_TOP = {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2"} | {
    "_fc": "classifier"
}
_WITH_EXPANSION = {
    "_expand_conv": "conv_pw",
    "_bn0": "bn1",
    "_depthwise_conv": "conv_dw",
    "_bn1": "bn2",
    "_project_conv": "conv_pwl",
    "_bn2": "bn3",
}
_WITHOUT = {
    "_depthwise_conv": "conv_dw",
    "_bn1": "bn1",
    "_project_conv": "conv_pw",
    "_bn2": "bn2",
}


def timm_names(weights: Mapping[str, Tensor], timms: Iterable[str]) -> dict[str, Tensor]:
    """Renames weights.

    Args:
        weights: tensors by the port's names.
        timms: names of timm's model, whose blocks are in order.

    Returns:
        The same tensors by timm's names; what has no counterpart keeps its name.
    """
    stages = dict.fromkeys(
        ".".join(name.split(".")[:3]) for name in timms if name.startswith("blocks.")
    )
    blocks = list(stages)
    expanded = {name.split(".")[1] for name in weights if "._expand_conv." in name}
    return {_renamed(name, blocks, expanded): tensor for name, tensor in weights.items()}


def _renamed(name: str, blocks: list[str], expanded: set[str]) -> str:
    head, _, rest = name.partition(".")
    if head != "_blocks":
        return f"{_TOP.get(head, head)}.{rest}"
    number, part, leaf = (*rest.split(".", 2), "", "")[:3]
    names = _WITH_EXPANSION if number in expanded else _WITHOUT
    if not number.isdecimal() or int(number) >= len(blocks) or part not in names:
        return name
    return f"{blocks[int(number)]}.{names[part]}.{leaf}"
