import pytest
import torch
from torch.nn import functional

from model.head import cost_attention
from model.head.aggregator import GUIDANCE_INNER, LEFT_OUT, Aggregator, ImageMaps
from model.head.cost_attention import NUM_HEADS, LinearAttention, SwinBlock
from model.head.windows import WINDOW

EMBED = 16


def maps(batch: int, size: tuple[int, int]) -> ImageMaps:
    high, wide = size
    guidance = tuple(
        torch.randn(batch, channels, factor * high, factor * wide)
        for channels, factor in zip(GUIDANCE_INNER, (2, 4), strict=True)
    )
    return ImageMaps(torch.randn(batch, EMBED, high, wide), guidance)


def aggregator(padded: int = 0, templates: int = 1) -> Aggregator:
    torch.manual_seed(0)
    head = Aggregator(EMBED, templates, padded=padded).eval()
    for name, parameter in head.named_parameters():
        if "padding" in name:  # Zero at the start, which would hide what they do.
            torch.nn.init.normal_(parameter)
    return head


@torch.no_grad()
@pytest.mark.parametrize("padded", [0, 8])
def test_classes_in_another_order_get_the_same_scores(padded):
    head, image = aggregator(padded, templates=2), maps(2, (4, 5))
    text = torch.randn(1, 5, 2, EMBED)
    order = torch.tensor([3, 0, 4, 1, 2])
    scores = head(image, text)
    assert scores.shape == (2, 5, 16, 20)
    torch.testing.assert_close(head(image, text[:, order]), scores[:, order])


@torch.no_grad()
def test_padding_changes_nothing_where_nothing_is_padded():
    padded, image, text = aggregator(5), maps(1, (4, 4)), torch.randn(1, 5, 1, EMBED)
    bare = aggregator(0)
    bare.load_state_dict({n: t for n, t in padded.state_dict().items() if "padding" not in n})
    torch.testing.assert_close(padded(image, text), bare(image, text))
    four = text[:, :4]
    assert not torch.allclose(padded(image, four), bare(image, four), atol=1e-3)


@torch.no_grad()
def test_equal_classes_are_computed_as_one():
    torch.manual_seed(0)
    attention = LinearAttention(8, 8)
    classes, guidance = torch.randn(2, 3, 4, 8), torch.randn(1, 1, 4, 8)
    extra, extra_guidance = torch.randn(8), torch.randn(8)
    whole = attention(
        torch.cat([classes, extra.expand(2, 3, 5, 8)], 2),
        torch.cat([guidance, extra_guidance.expand(1, 1, 5, 8)], 2),
        None,
        0,
    )
    short = attention(classes, guidance, (extra, extra_guidance), 5)
    torch.testing.assert_close(short, whole[:, :, :4])


@torch.no_grad()
def test_of_too_many_classes_the_best_of_each_image_go_on():
    head, image, text = aggregator(3), maps(2, (4, 4)), torch.randn(1, 6, 1, EMBED)
    text = functional.normalize(text, dim=-1)
    scores = head(image, text)
    dense = functional.normalize(image.dense_BChw, dim=1).flatten(2)
    for number in range(2):
        highest = (text[0, :, 0] @ dense[number]).amax(1)
        best = sorted(sorted(range(6), key=lambda k: -highest[k])[:3])
        others = [k for k in range(6) if k not in best]
        assert (scores[number, others] == LEFT_OUT).all()
        own = ImageMaps(
            image.dense_BChw[number : number + 1],
            tuple(each[number : number + 1] for each in image.guidance_BGhw),
        )
        torch.testing.assert_close(scores[number, best], head(own, text[:, best])[0])


@torch.no_grad()
@pytest.mark.parametrize("size", [(24, 24), (8, 10), (30, 24)])
@pytest.mark.parametrize("shift", [0, WINDOW // 2])
def test_windows_are_attention_over_those_that_share_one(size, shift):
    torch.manual_seed(0)
    channels = 8
    block = SwinBlock(channels, channels, shift)
    x, guidance = torch.randn(1, 2, *size, channels), torch.randn(1, 1, *size, channels)

    def place(side: int) -> torch.Tensor:
        """The window of each row, and on which side of the border it lay before the shift."""
        padded = side + -side % WINDOW
        rows = torch.arange(side)
        return ((rows - shift) % padded) // WINDOW * 2 + (rows < shift)

    rows, columns = place(size[0]), place(size[1])
    same = (rows[:, None] * 1000 + columns).flatten()
    sees = same[:, None] == same
    normed = block.norm1(x)
    joined = torch.cat([normed, guidance.expand_as(normed)], -1).flatten(2, 3)
    query, key = block.attn.q(joined), block.attn.k(joined)
    value = block.attn.v(normed.flatten(2, 3))
    heads = [t.unflatten(-1, (NUM_HEADS, -1)).transpose(2, 3) for t in (query, key, value)]
    scores = heads[0] @ heads[1].transpose(3, 4) * (channels / NUM_HEADS) ** -0.5
    mixed = scores.masked_fill(~sees, -torch.inf).softmax(-1) @ heads[2]
    plain = x + block.attn.proj(mixed.transpose(2, 3).flatten(3)).unflatten(2, size)
    plain = plain + block.mlp(block.norm2(plain))
    torch.testing.assert_close(block(x, guidance), plain)


@torch.no_grad()
def test_some_classes_at_a_time_give_the_same_scores(monkeypatch):
    head, image, text = aggregator(4), maps(1, (6, 6)), torch.randn(1, 3, 1, EMBED)
    whole = head(image, text)
    calls = []
    plain = cost_attention.over_parts
    monkeypatch.setattr(cost_attention, "CHUNK_MIB", 0.1)
    torch.testing.assert_close(head(image, text), whole)
    plain(lambda some: calls.append(some) or some, torch.zeros(1, 3), held=20_000)
    assert len(calls) == 3


@pytest.mark.parametrize("num_classes", [3, 8, 9])
def test_every_weight_trains(num_classes):
    head = aggregator(8).train()
    head(maps(1, (4, 4)), torch.randn(1, num_classes, 1, EMBED)).square().sum().backward()
    grads = {name: parameter.grad for name, parameter in head.named_parameters()}
    assert [name for name, grad in grads.items() if grad is None] == []
    idle = {name for name, grad in grads.items() if grad is not None and not grad.any()}
    assert idle == (set() if num_classes < 8 else {n for n in grads if "padding" in n})
