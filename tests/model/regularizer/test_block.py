import pytest
import torch
from torch import nn

from model.config import RegularizerConfig
from model.errors import ModelError
from model.lseg import LSeg
from model.regularizer import DEAD_GAIN, Regularizer


def scores() -> torch.Tensor:
    torch.manual_seed(0)
    return torch.randn(2, 6, 9, 9)


@pytest.mark.parametrize("activation", ["relu", "lrelu", "tanh"])
@pytest.mark.parametrize("kind", ["depthwise", "bottleneck"])
@pytest.mark.parametrize("depth", [1, 2, 4])
def test_shared_block_is_its_definition(kind, depth, activation):
    config = RegularizerConfig(kind=kind, depth=depth, activation=activation, init="reference")
    torch.manual_seed(1)
    block = Regularizer(config)
    (conv,) = block.convs
    expected = scores()
    for step in range(depth):
        smoothed = torch.cat([conv(expected[:, k : k + 1]) for k in range(6)], 1)
        if kind == "bottleneck":
            smoothed = smoothed + expected.max(1, keepdim=True).values
        function = {"relu": nn.ReLU(), "lrelu": nn.LeakyReLU(), "tanh": nn.Tanh()}[activation]
        expected = function(smoothed) if step < depth - 1 else smoothed
    torch.testing.assert_close(block(scores()), expected)


def test_identity_init_changes_nothing_where_no_activation_does():
    for depth in (0, 1):
        block = Regularizer(RegularizerConfig(kind="depthwise", depth=depth))
        torch.testing.assert_close(block(scores()), scores())
    deep = Regularizer(RegularizerConfig(kind="depthwise", depth=4, activation="relu"))
    torch.testing.assert_close(deep(scores().abs()), scores().abs())


def test_unshared_blocks_have_weights_of_their_own():
    shared = Regularizer(RegularizerConfig(kind="depthwise", depth=3))
    unshared = Regularizer(RegularizerConfig(kind="depthwise", depth=3, shared=False))
    assert sum(p.numel() for p in shared.parameters()) == 10
    assert sum(p.numel() for p in unshared.parameters()) == 30
    torch.manual_seed(0)
    unshared = Regularizer(
        RegularizerConfig(kind="depthwise", depth=2, shared=False, init="reference")
    )
    first, second = unshared.convs
    expected = scores()
    expected = torch.relu(torch.cat([first(expected[:, k : k + 1]) for k in range(6)], 1))
    expected = torch.cat([second(expected[:, k : k + 1]) for k in range(6)], 1)
    torch.testing.assert_close(unshared(scores()), expected)


def test_a_negative_bias_at_depth_4_is_found_dead_and_its_cause_named():
    gains = {}
    for sign in (-1, 1):
        torch.manual_seed(3)
        block = Regularizer(
            RegularizerConfig(kind="depthwise", depth=4, activation="lrelu", init="reference")
        )
        conv = block.convs[0]
        assert isinstance(conv, nn.Conv2d)
        with torch.no_grad():
            conv.weight.abs_().div_(conv.weight.sum() * 4)
            conv.bias.fill_(sign * 0.3)  # pyright: ignore[reportOptionalMemberAccess]
        # Scores of a fresh decoder: near zero.
        gains[sign] = float(block.label_spread_gain(0.1 * scores()))
    assert gains[-1] < 1e-4 < DEAD_GAIN
    assert gains[1] > 100 * gains[-1]
    warning = block.gain_warning(gains[-1])
    assert warning is not None
    assert "overshot" in warning
    with torch.no_grad():
        conv.bias.fill_(-0.3)  # pyright: ignore[reportOptionalMemberAccess]
    warning = block.gain_warning(gains[-1])
    assert warning is not None
    assert "bias is negative" in warning
    assert block.gain_warning(0.5) is None


def test_gain_of_the_identity_is_one(tiny_lseg: LSeg):
    assert float(Regularizer(RegularizerConfig()).label_spread_gain(scores())) == pytest.approx(1)
    tiny_lseg.train()
    before = {name: value.clone() for name, value in tiny_lseg.state_dict().items()}
    image, text = torch.randn(1, 3, 64, 64), torch.randn(4, 512)
    gain = tiny_lseg.label_spread_gain(image, text)
    assert tiny_lseg.training
    for name, value in tiny_lseg.state_dict().items():
        assert torch.equal(value, before[name]), name
    # By its definition: the spread over the labels behind the block, over that before it.
    with torch.no_grad():
        scores_BKhw = tiny_lseg.eval().score(image, text)
        smoothed = tiny_lseg.regularizer(scores_BKhw)
    spread = [float(x.var(1, correction=0).mean().sqrt()) for x in (smoothed, scores_BKhw)]
    assert spread[1] > 0
    assert gain == pytest.approx(spread[0] / spread[1], rel=1e-5)


def test_gain_where_there_is_nothing_to_compare_or_not_finite():
    block = Regularizer(RegularizerConfig(kind="depthwise", depth=2))
    assert float(block.label_spread_gain(scores()[:, :1])) == 1
    gain = float(block.label_spread_gain(scores() * float("nan")))
    assert "not finite" in str(block.gain_warning(gain))


def test_the_kernels_gradient_is_summed_exactly():
    torch.manual_seed(0)
    block = Regularizer(RegularizerConfig(kind="depthwise", depth=2, init="reference"))
    logits, probe = torch.randn(2, 40, 60, 60), torch.randn(2, 40, 60, 60)
    parameters = list(block.parameters())
    found = torch.autograd.grad((block(logits) * probe).sum(), parameters)
    wide = Regularizer(block.config).double()
    wide.load_state_dict(block.state_dict())
    expected = torch.autograd.grad(
        (wide(logits.double()) * probe.double()).sum(), list(wide.parameters())
    )
    for own, exact in zip(found, expected, strict=True):
        assert float((own - exact).abs().max()) <= 1e-5 * max(1.0, float(exact.abs().max()))


@pytest.mark.parametrize("values", [{"depth": 9, "kind": "depthwise"}, {"depth": 1}])
def test_what_cannot_work_is_refused(values):
    with pytest.raises(ModelError, match=r"regularizer\.depth"):
        RegularizerConfig(**values)
