import pytest
import torch

from model.config import BackboneConfig, ModelConfig, RegularizerConfig, TextConfig
from model.lseg import LSeg, build_lseg

TINY_VIT = BackboneConfig(
    name="vit_tiny_patch16_224",
    pretrained=False,
    kwargs={"patch_size": 8, "depth": 4, "embed_dim": 48, "num_heads": 3, "img_size": 64},
)


@pytest.fixture
def tiny_config() -> ModelConfig:
    return ModelConfig(
        backbone=TINY_VIT,
        text=TextConfig(encoder="stand-in"),
        regularizer=RegularizerConfig(kind="bottleneck", depth=2, activation="lrelu"),
        features=16,
    )


@pytest.fixture
def tiny_lseg(tiny_config) -> LSeg:
    torch.manual_seed(0)
    return build_lseg(tiny_config, embed_dim=512).eval()
