import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from model.errors import ModelError
from model.loss import num_counted, segmentation_loss


def plain_loss(logits, label):
    upsampled = functional.interpolate(logits, label.shape[1:], mode="bilinear", align_corners=True)
    return functional.cross_entropy(upsampled, label.long(), ignore_index=255, reduction="sum")


@given(
    num_labels=st.integers(1, 7),
    source=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    size=st.tuples(st.integers(1, 19), st.integers(1, 19)),
    ignored=st.floats(0, 1),
    chunk_mib=st.sampled_from([1e-9, 2e-4, 1.0]),
    seed=st.integers(0, 99),
)
@settings(max_examples=60, deadline=None)
def test_any_chunking_gives_the_plain_loss_and_gradients(
    num_labels, source, size, ignored, chunk_mib, seed
):
    torch.manual_seed(seed)
    logits = torch.randn(2, num_labels, *source, dtype=torch.float64, requires_grad=True)
    label = torch.randint(0, num_labels, (2, *size), dtype=torch.uint8)
    label[torch.rand(label.shape) < ignored] = 255
    loss, count = segmentation_loss(logits, label, chunk_mib=chunk_mib)
    assert int(count) == int((label != 255).sum())
    expected = plain_loss(logits, label)
    torch.testing.assert_close(loss, expected, rtol=1e-9, atol=1e-9)
    grad = torch.autograd.grad(3 * loss, logits)[0]
    expected_grad = torch.autograd.grad(3 * expected, logits)[0]
    torch.testing.assert_close(grad, expected_grad, rtol=1e-9, atol=1e-9)


def test_pixels_count_by_their_weights():
    torch.manual_seed(0)
    logits = torch.randn(2, 5, 4, 6, dtype=torch.float64, requires_grad=True)
    label = torch.randint(0, 5, (2, 9, 11), dtype=torch.uint8)
    label[0, :3] = 255
    weight = torch.rand(label.shape, dtype=torch.float64)
    loss, count = segmentation_loss(logits, label, chunk_mib=1e-3, weight_BHW=weight)
    assert int(count) == int((label != 255).sum())
    upsampled = functional.interpolate(logits, (9, 11), mode="bilinear", align_corners=True)
    each = functional.cross_entropy(upsampled, label.long(), ignore_index=255, reduction="none")
    expected = (each * weight).sum()
    torch.testing.assert_close(loss, expected, rtol=1e-9, atol=1e-9)
    grads = (torch.autograd.grad(3 * value, logits)[0] for value in (loss, expected))
    torch.testing.assert_close(*grads, rtol=1e-9, atol=1e-9)


def plain_binary(logits, label, counts_all):
    upsampled = functional.interpolate(logits, label.shape[1:], mode="bilinear", align_corners=True)
    target = torch.zeros_like(upsampled)
    for row in range(logits.shape[1]):
        target[:, row] = (label == row).to(target)
    each = functional.binary_cross_entropy_with_logits(upsampled, target, reduction="none")
    counted = torch.ones_like(label, dtype=torch.bool) if counts_all else label != 255
    return (each.mean(1) * counted).sum(), counted.sum()


@given(
    num_labels=st.integers(1, 5),
    size=st.tuples(st.integers(1, 17), st.integers(1, 17)),
    ignored=st.floats(0, 1),
    chunk_mib=st.sampled_from([1e-9, 2e-4, 1.0]),
    counts_all=st.booleans(),
)
@settings(max_examples=30, deadline=None)
def test_the_binary_loss_is_of_labelled_pixels_or_as_published_of_all(
    num_labels, size, ignored, chunk_mib, counts_all
):
    torch.manual_seed(0)
    logits = torch.randn(2, num_labels, 4, 7, dtype=torch.float64, requires_grad=True)
    label = torch.randint(0, num_labels, (2, *size), dtype=torch.uint8)
    label[torch.rand(label.shape) < ignored] = 255
    kind = "binary-all" if counts_all else "binary"
    loss, count = segmentation_loss(logits, label, chunk_mib=chunk_mib, kind=kind)
    expected, expected_count = plain_binary(logits, label, counts_all)
    assert int(count) == int(num_counted(label, kind)) == int(expected_count)
    torch.testing.assert_close(loss, expected, rtol=1e-9, atol=1e-9)
    grad, expected_grad = (torch.autograd.grad(3 * x, logits)[0] for x in (loss, expected))
    torch.testing.assert_close(grad, expected_grad, rtol=1e-9, atol=1e-9)


def test_float32_at_training_size_agrees_to_a_millionth():
    torch.manual_seed(0)
    logits = (8 * torch.randn(1, 150, 60, 60)).requires_grad_()
    label = torch.randint(0, 150, (1, 120, 120))
    loss, _ = segmentation_loss(logits, label, chunk_mib=1)
    expected = plain_loss(logits, label)
    torch.testing.assert_close(loss, expected, rtol=1e-6, atol=0)
    grad, expected_grad = (torch.autograd.grad(x, logits)[0] for x in (loss, expected))
    assert (grad - expected_grad).abs().max() <= 1e-6 * expected_grad.abs().max()


def test_bfloat16_logits_are_summed_in_float32():
    logits = torch.randn(1, 5, 8, 8, dtype=torch.bfloat16, requires_grad=True)
    label = torch.randint(0, 5, (1, 16, 16))
    loss, _ = segmentation_loss(logits, label)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, plain_loss(logits.float(), label), rtol=1e-5, atol=0)
    loss.backward()
    assert logits.grad is not None
    assert logits.grad.dtype == torch.bfloat16


def test_nothing_labelled_is_zero_with_zero_gradients():
    logits = torch.randn(1, 3, 4, 4, requires_grad=True)
    loss, count = segmentation_loss(logits, torch.full((1, 8, 8), 255))
    assert (float(loss.detach()), int(count)) == (0.0, 0)
    loss.backward()
    assert logits.grad is not None
    assert not logits.grad.any()


def test_without_gradients_none_are_kept():
    loss, _ = segmentation_loss(torch.randn(1, 3, 4, 4), torch.zeros(1, 8, 8, dtype=torch.uint8))
    assert not loss.requires_grad


def test_differing_batches_are_refused():
    with pytest.raises(ModelError, match="2 logit maps for 1 labels"):
        segmentation_loss(torch.randn(2, 3, 4, 4), torch.zeros(1, 8, 8, dtype=torch.uint8))
