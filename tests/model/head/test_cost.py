"""The network with the cost head: built by a setting, trained, stored and asked like any other."""

import copy
import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from model.checkpoint import save_checkpoint
from model.config import (
    AlignedConfig,
    BackboneConfig,
    HeadConfig,
    ModelConfig,
    RegularizerConfig,
    TextConfig,
)
from model.errors import ModelError
from model.head.cost import guiding_blocks
from model.loss import segmentation_loss
from model.lseg import LSeg, build_lseg
from model.prediction import NO_LABEL
from model.sliding import AS_IT_IS, SlidingConfig, Views, sliding_label_ids, sliding_logits
from model.stand_in import stand_in_vectors
from model.upsampling import upsample

CONFIG = ModelConfig(
    backbone=BackboneConfig(
        name="vit_base_patch16_clip_quickgelu_224",
        pretrained=False,
        kwargs={
            "embed_dim": 32,
            "depth": 3,
            "num_heads": 2,
            "img_size": 32,
            "patch_size": 8,
            "num_classes": 512,
        },
    ),
    text=TextConfig(encoder="stand-in"),
    head=HeadConfig(kind="cost", padded=8),
)
LABELS = ("red circle", "blue square", "grass")


@pytest.fixture
def cost_lseg() -> LSeg:
    torch.manual_seed(0)
    return build_lseg(CONFIG, 512).eval()


@pytest.fixture
def text() -> torch.Tensor:
    return torch.from_numpy(stand_in_vectors(LABELS))


def test_the_shallower_block_guides_the_coarser_stage():
    assert [guiding_blocks(depth) for depth in (12, 24, 3, 1)] == [(3, 7), (7, 15), (0, 1), (0, 0)]


@torch.no_grad()
def test_scores_have_half_the_size_of_any_image(cost_lseg, text):
    image = torch.randn(2, 3, 37, 50)
    scores = cost_lseg(image, text)
    assert scores.shape == (2, 3, 19, 25)
    own = torch.stack([text, text.flip(0)])
    each = cost_lseg(image, own)
    torch.testing.assert_close(each[0], scores[0])
    torch.testing.assert_close(each[1], scores[1].flip(0), rtol=1e-4, atol=1e-5)


@pytest.mark.long
def test_compiled_step_is_one_graph_and_equals_the_eager_one(cost_lseg, text):
    image, label = torch.randn(1, 3, 32, 32), torch.randint(0, 3, (1, 32, 32))
    # With inductor's decompositions: without them PyTorch takes wrong strides for ELU's gradient.
    backend = "aot_eager_decomp_partition"
    results = []
    for step in (cost_lseg, torch.compile(cost_lseg, backend=backend, fullgraph=True)):
        cost_lseg.zero_grad()
        loss, _ = segmentation_loss(step(image, text), label)
        loss.backward()
        trained = [p.grad.clone() for p in cost_lseg.parameters() if p.grad is not None]
        results.append([loss.detach(), *trained])
    assert len(results[0]) > 50
    torch.testing.assert_close(results[0], results[1], rtol=1e-3, atol=1e-3)


@torch.no_grad()
def test_pixel_features_are_the_backbones(cost_lseg):
    image = np.random.default_rng(0).integers(0, 255, (32, 32, 3), dtype=np.uint8)
    (features,) = cost_lseg.pixel_features(image)
    assert features.shape == (512, 16, 16)
    dense = cost_lseg.backbone(cost_lseg.normalize(torch.from_numpy(image)[None])).dense_BEhw
    corner = torch.nn.functional.normalize(dense[0, :, 0, 0], dim=0)
    torch.testing.assert_close(features[:, 0, 0], corner)


def test_a_picture_is_learnt_and_the_network_is_stored(cost_lseg, text, tmp_path):
    """Two of three labels have a half each: whoever gives all pixels one answer loses 2/3 ln 2."""
    lseg = cost_lseg.train()
    image = torch.ones(1, 3, 32, 32)
    label = torch.zeros(1, 32, 32, dtype=torch.uint8)
    image[..., 16:], label[:, :, 16:], label[:, 24:] = -1, 1, 255
    # At 1e-3 the decoder's units can die together, on some processors and not on others.
    optimizer = torch.optim.AdamW(lseg.parameters(), lr=3e-4)
    losses = []
    for _ in range(40):
        loss, count = segmentation_loss(lseg(image, text), label, kind="binary")
        optimizer.zero_grad()
        (loss / count).backward()
        assert [n for n, p in lseg.named_parameters() if p.grad is None] == []
        optimizer.step()
        losses.append(float((loss / count).detach()))
    assert losses[-1] < 0.5 * 2 / 3 * math.log(2), losses
    save_checkpoint(tmp_path, lseg, LABELS)
    found = LSeg.load(tmp_path)
    assert (found.config, found.embed_dim, found.labels) == (lseg.config, 512, LABELS)
    with torch.no_grad():
        assert torch.equal(found(image, text), lseg.eval()(image, text))


def test_recomputed_blocks_have_the_same_gradients(cost_lseg, text):
    saving = build_lseg(replace(CONFIG, activation_checkpointing=True), 512)
    saving.load_state_dict(cost_lseg.state_dict())
    image, label = torch.randn(1, 3, 32, 32), torch.randint(3, (1, 32, 32))
    for lseg in (cost_lseg.train(), saving.train()):
        segmentation_loss(lseg(image, text), label)[0].backward()
    for (name, one), other in zip(cost_lseg.named_parameters(), saving.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad, msg=name)


def test_two_trainings_are_the_same_to_the_bit(cost_lseg, text):
    image, label = torch.randn(2, 3, 32, 32), torch.randint(3, (2, 32, 32))
    results = []
    for lseg in (copy.deepcopy(cost_lseg).train(), copy.deepcopy(cost_lseg).train()):
        optimizer = torch.optim.SGD(lseg.parameter_groups(0.01))
        for _ in range(2):
            optimizer.zero_grad()
            segmentation_loss(lseg(image, text), label)[0].backward()
            optimizer.step()
        results.append(lseg.state_dict())
    assert all(torch.equal(results[0][name], results[1][name]) for name in results[0])


def test_templates_are_channels_of_the_cosine_maps(tmp_path):
    """As the head sees them: the vector of each sentence apart, and the mean of a label's names."""
    sentences = "a {}\nthe {} there"
    given = TextConfig(encoder="stand-in", templates=sentences, channels=True, synonyms="mean")
    torch.manual_seed(0)
    lseg = build_lseg(replace(CONFIG, text=given), 512).eval()
    labels = ("grass", "car, red auto")
    text = lseg.embed_text(labels)
    assert text.shape == (2, 2 * 512)
    torch.testing.assert_close(text.norm(dim=1), torch.ones(2))
    alone = [
        torch.from_numpy(stand_in_vectors([t.replace("{}", name) for name in ("car", "red auto")]))
        for t in sentences.splitlines()
    ]
    apart = torch.stack([torch.nn.functional.normalize(rows.mean(0), dim=0) for rows in alone])
    torch.testing.assert_close(text[1].unflatten(0, (2, 512)) * 2**0.5, apart)
    seen = []
    lseg.cost.aggregator.conv1.register_forward_hook(lambda m, inputs, o: seen.append(inputs[0]))
    image = torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        lseg(image, text)
        dense = torch.nn.functional.normalize(lseg.backbone(image).dense_BEhw, dim=1)
    torch.testing.assert_close(seen[0][1], torch.einsum("bchw,pc->bphw", dense, apart)[0])
    save_checkpoint(tmp_path, lseg, labels)
    found = LSeg.load(tmp_path)
    assert (found.embed_dim, found.text_width) == (512, 1024)
    with torch.no_grad():
        torch.testing.assert_close(found(image, found.embed_text(labels)), lseg(image, text))


def test_templates_are_channels_of_the_cost_head_alone():
    text = TextConfig(encoder="stand-in", channels=True)
    with pytest.raises(ModelError, match=r"model.text.channels=true: has no .*kind=dot: leave"):
        ModelConfig(text=text)


@torch.no_grad()
def test_windows_score_all_labels_together(cost_lseg, text, monkeypatch):
    """The score of a label depends on the others, so that they may not come some at a time."""
    monkeypatch.setattr("model.sliding.SCORES_MIB", 1e-9)
    image = torch.randn(1, 3, 48, 40)
    sliding = SlidingConfig(base_px=None, window_px=32, stride_px=16)
    ids = sliding_label_ids(cost_lseg, image, text, sliding)
    whole = torch.cat([band for _, band in Views(cost_lseg, image, sliding).bands(text)], dim=2)
    assert torch.equal(ids, whole.argmax(1))


@torch.no_grad()
def test_windows_and_mirrors_are_averaged_as_probabilities(cost_lseg, text):
    image = torch.randn(1, 3, 32, 48)
    sliding = SlidingConfig(base_px=None, window_px=32, stride_px=16, flip=True)
    mean = sliding_logits(cost_lseg, image, text, sliding) / sliding.num_views
    total, count = torch.zeros(1, 3, 32, 48), torch.zeros(48)
    for left in (0, 16):
        window = image[..., left : left + 32]
        for mirrored in (False, True):
            scores = cost_lseg(window.flip(-1) if mirrored else window, text).sigmoid()
            scores = scores.flip(-1) if mirrored else scores
            total[..., left : left + 32] += upsample(scores, (32, 32))
            count[left : left + 32] += 1
    torch.testing.assert_close(mean.sigmoid(), total / count, rtol=1e-4, atol=1e-5)
    whole = cost_lseg(image, text)
    alone = sliding_logits(cost_lseg, image, text, AS_IT_IS)
    torch.testing.assert_close(alone, upsample(whole, (32, 48)))


@torch.no_grad()
def test_a_label_that_one_window_leaves_out_keeps_half_its_probability(cost_lseg, monkeypatch):
    """The mean of its logits would be below those of labels that no window finds likely."""
    given = {0: (3.0, -2.0), 16: (-100.0, -2.0)}
    lefts = iter(given)

    def scores(trunk, text_KC):
        logits = [torch.tensor(given[next(lefts)]) for _ in range(len(trunk.features_BFhw))]
        return torch.stack(logits)[:, :, None, None].expand(-1, -1, 16, 16)

    monkeypatch.setattr(cost_lseg, "score_trunk", scores)
    sliding = SlidingConfig(base_px=None, window_px=32, stride_px=16)
    logits = sliding_logits(cost_lseg, torch.randn(1, 3, 32, 48), torch.randn(2, 512), sliding)
    expected = (torch.tensor(3.0).sigmoid() / 2, torch.tensor(-2.0).sigmoid())
    torch.testing.assert_close(logits[0, :, 0, 24].sigmoid(), torch.stack(expected))


@torch.no_grad()
@pytest.mark.parametrize(("logits", "named"), [((-3.0, -8.0), False), ((3.0, -8.0), True)])
def test_a_threshold_is_on_the_probability_of_a_label_alone(cost_lseg, monkeypatch, logits, named):
    """Of softmax the first label would have 0.99 in both cases."""
    scores = torch.tensor(logits)[None, :, None, None].expand(1, 2, 16, 16)
    monkeypatch.setattr(cost_lseg, "score_trunk", lambda *_: scores)
    image, text = torch.randn(1, 3, 32, 32), torch.randn(2, 512)
    ids = sliding_label_ids(cost_lseg, image, text, AS_IT_IS, threshold=0.5)
    assert ids.unique().tolist() == [0 if named else NO_LABEL]
    (ids,) = cost_lseg.predict(np.zeros((32, 32, 3), np.uint8), ["a", "b"], other=0.5)
    assert np.unique(ids).tolist() == [0 if named else NO_LABEL]


@torch.no_grad()
def test_of_847_labels_those_that_go_on_are_bounded(cost_lseg, monkeypatch):
    labels = torch.randn(847, 512)
    sizes = []
    cost_lseg.cost.aggregator.conv1.register_forward_hook(lambda m, a, out: sizes.append(len(out)))
    ids = sliding_label_ids(
        cost_lseg, torch.randn(1, 3, 32, 32), labels, SlidingConfig(window_px=None, base_px=None)
    )
    assert sizes == [8]
    assert len(ids.unique()) <= 8


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"features": 16}, "model.features=16: has no meaning .*: leave it out, or set --model.f"),
        ({"reassemble": (1, 1, 1, 1)}, r"model.reassemble=\[1, 1, 1, 1\]: has no .* null where"),
        (
            {"regularizer": RegularizerConfig(kind="depthwise", depth=1)},
            "model.regularizer.depth=1: has no meaning",
        ),
    ],
)
def test_settings_without_a_meaning_are_refused(values, message):
    with pytest.raises(ModelError, match=message):
        replace(CONFIG, **values)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"kind": "product"}, "model.head.kind='product': must be one of dot, dot-aligned, cost"),
        ({"padded": 8}, "model.head.padded: has no meaning with model.head.kind=dot"),
        ({"aligned": AlignedConfig(variant="csa")}, "model.head.aligned: has no meaning"),
        ({"kind": "cost", "pool": 0}, "model.head.pool=0: must be 1 to 16"),
        ({"kind": "cost", "padded": -1}, "model.head.padded=-1: must be 0 to"),
    ],
)
def test_wrong_settings_of_the_head_are_refused(values, message):
    with pytest.raises(ModelError, match=message):
        HeadConfig(**values)


@pytest.mark.parametrize(
    ("name", "kwargs", "message"),
    [
        ("vit_base_patch16_clip_quickgelu_224", {"num_classes": 20}, "vectors of 20 numbers.*512"),
        ("convnext_base", {}, "convnext_base: is no ViT of CLIP's kind"),
        ("resnet101", {}, "resnet101: is no ViT of CLIP's kind"),
        ("vit_tiny_patch16_224", {"num_classes": 0}, "of 192 numbers.* with num_classes: 512 in"),
    ],
)
def test_backbones_of_another_text_encoder_are_refused(name, kwargs, message):
    backbone = BackboneConfig(name=name, pretrained=False, kwargs=kwargs)
    with pytest.raises(ModelError, match=message), torch.device("meta"):
        build_lseg(replace(CONFIG, backbone=backbone), 512)
