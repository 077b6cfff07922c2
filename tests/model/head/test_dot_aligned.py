"""The dot head beside the cosines of an aligned backbone."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn import functional

from model.checkpoint import save_checkpoint
from model.config import AlignedConfig, HeadConfig, RegularizerConfig
from model.errors import ModelError
from model.head.dot import LOGIT_SCALE, DotHead
from model.loss import segmentation_loss
from model.lseg import LSeg, build_lseg
from model.sliding import SlidingConfig, sliding_label_ids, sliding_logits
from model.stand_in import stand_in_vectors
from model.upsampling import upsample
from tests.model.head.test_cost import CONFIG as COST
from tests.model.head.test_cost import LABELS

CONFIG = replace(COST, head=HeadConfig(kind="dot-aligned"), features=16)


@pytest.fixture
def lseg() -> LSeg:
    torch.manual_seed(0)
    return build_lseg(CONFIG, 512).eval()


@pytest.fixture
def text() -> torch.Tensor:
    return torch.from_numpy(stand_in_vectors(LABELS))


@torch.no_grad()
def test_the_backbones_cosines_are_added_to_the_decoders(lseg, text):
    image = torch.randn(2, 3, 37, 50)
    scores = lseg(image, text)
    assert scores.shape == (2, 3, 19, 25)
    trunk = lseg.trunk(image)
    aligned = functional.normalize(trunk.aligned_BChw, dim=1)
    aligned = torch.einsum("kc,bchw->bkhw", text, aligned)
    decoded = DotHead._cosines(lseg.head, trunk, LOGIT_SCALE * text)
    expected = trunk.crop(decoded + LOGIT_SCALE * upsample(aligned, trunk.size))
    torch.testing.assert_close(scores, expected, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_pixel_features_rank_labels_as_the_scores_do(lseg, text):
    image = np.random.default_rng(0).integers(0, 255, (32, 40, 3), dtype=np.uint8)
    (features,) = lseg.pixel_features(image)
    scores = lseg(lseg.normalize(torch.from_numpy(image)[None]), text)[0]
    cosines = torch.einsum("kc,chw->khw", text, features)
    first, second = (functional.normalize(each, dim=0) for each in (scores, cosines))
    torch.testing.assert_close(first, second, rtol=1e-3, atol=1e-3)


@torch.no_grad()
def test_labels_may_be_asked_some_at_a_time(lseg, text, monkeypatch):
    image, sliding = torch.randn(1, 3, 48, 40), SlidingConfig(window_px=32, stride_px=16)
    whole = sliding_logits(lseg, image, text, sliding).argmax(1)
    monkeypatch.setattr("model.sliding.SCORES_MIB", 1e-9)
    assert torch.equal(sliding_label_ids(lseg, image, text, sliding), whole)


@pytest.mark.parametrize("variant", ["cat-seg", "value", "tokens"])
def test_it_trains_and_is_stored(text, tmp_path, variant):
    regularizer = RegularizerConfig(kind="bottleneck", depth=1)
    head = HeadConfig(kind="dot-aligned", aligned=AlignedConfig(variant=variant))
    lseg = build_lseg(replace(CONFIG, head=head, regularizer=regularizer), 512).train()
    image, label = torch.randn(2, 3, 32, 32), torch.randint(3, (2, 32, 32))
    segmentation_loss(lseg(image, text), label)[0].backward()
    assert [n for n, p in lseg.named_parameters() if p.grad is None] == []
    save_checkpoint(tmp_path, lseg, LABELS)
    found = LSeg.load(tmp_path)
    assert (found.config, found.embed_dim) == (lseg.config, 512)
    with torch.no_grad():
        assert torch.equal(found(image, text), lseg.eval()(image, text))


def test_settings_of_the_cost_head_are_refused():
    with pytest.raises(ModelError, match=r"model.head.pool: has no meaning with .*=dot-aligned"):
        HeadConfig(kind="dot-aligned", pool=3)
