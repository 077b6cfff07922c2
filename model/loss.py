"""Cross-entropy at full resolution without the full-resolution logits.

The logits live at half resolution; the published losses upsample them (bilinear, corners on
corners) and take the cross-entropy at every labelled pixel: over the labels (`softmax`, LSeg's), or
of each label alone (`binary`, CAT-Seg's). For 150 labels at 480x480 the upsampled logits alone are
138 MB an image, and autograd keeps several copies. Here the label's rows are processed in chunks,
and the gradient of each chunk is taken at once, so that only the half-resolution gradient and one
chunk are ever held.

CAT-Seg's code trains pixels without a label as negatives of every label, also of the one that they
show. `binary` leaves them out; `binary-all` is what it does.

Shapes: B batch, K labels, H W label pixels, h w logits, R rows of a chunk.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.nn import functional

from model.config import LossKind
from model.errors import ModelError
from model.upsampling import source_rows, upsample_rows

CHUNK_MIB_CPU = 32
CHUNK_MIB_GPU = 512


def num_counted(label_BHW: Tensor, kind: LossKind = "softmax", ignore: int = 255) -> Tensor:
    """How many pixels of a label map enter the loss: 0-d int64."""
    if kind == "binary-all":
        return torch.tensor(label_BHW.numel(), device=label_BHW.device)
    return (label_BHW != ignore).sum()


def segmentation_loss(
    logits_BKhw: Tensor,
    label_BHW: Tensor,
    ignore: int = 255,
    chunk_mib: float | None = None,
    kind: LossKind = "softmax",
    weight_BHW: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Upsamples the logits to the label's size and sums the cross-entropy over the pixels.

    Dividing the sum by the counted pixels of the GLOBAL batch gives the loss to train on.

    Args:
        logits_BKhw: (B, K, h, w), any float type; computed in at least float32.
        label_BHW: (B, H, W) integers, class ids 0..K-1 or `ignore`.
        ignore: label value that does not count.
        chunk_mib: size of the float32 logits of one chunk; None: by the device.
        kind: which cross-entropy; the binary ones are means over the K labels.
        weight_BHW: (B, H, W) float, what each pixel counts by; only with `softmax`; None: 1.

    Returns:
        loss_sum: 0-d, differentiable once.
        num_counted: 0-d int64, labelled pixels, or all of them with `binary-all`.

    Raises:
        ModelError: the batch sizes differ.
    """
    if len(logits_BKhw) != len(label_BHW):
        raise ModelError(
            f"loss: {len(logits_BKhw)} logit maps for {len(label_BHW)} labels: must be equal"
        )
    if chunk_mib is None:
        chunk_mib = CHUNK_MIB_GPU if logits_BKhw.is_cuda else CHUNK_MIB_CPU
    num_labels, width = logits_BKhw.shape[1], label_BHW.shape[2]
    rows = max(1, int(chunk_mib * 2**20 / (4 * num_labels * width)))
    assert weight_BHW is None or kind == "softmax"
    loss_sum = _ChunkedCrossEntropy.apply(logits_BKhw, label_BHW, ignore, rows, kind, weight_BHW)
    return loss_sum, num_counted(label_BHW, kind, ignore)


class _ChunkedCrossEntropy(Function):
    """The gradient is computed in the forward pass; the backward pass only scales it."""

    @staticmethod
    def forward(
        ctx: Any,
        logits_BKhw: Tensor,
        label_BHW: Tensor,
        ignore: int,
        rows: int,
        kind: LossKind,
        weight_BHW: Tensor | None,
    ) -> Tensor:
        dtype = torch.promote_types(logits_BKhw.dtype, torch.float32)
        needs_grad = ctx.needs_input_grad[0]
        grad_BKhw = torch.zeros_like(logits_BKhw, dtype=dtype) if needs_grad else None
        loss_sum = torch.zeros((), dtype=dtype, device=logits_BKhw.device)
        size = (label_BHW.shape[1], label_BHW.shape[2])
        height = size[0]
        with torch.autocast(logits_BKhw.device.type, enabled=False):
            for image in range(len(logits_BKhw)):
                for start in range(0, height, rows):
                    stop = min(start + rows, height)
                    span = source_rows(start, stop, logits_BKhw.shape[2], height)
                    piece = logits_BKhw[image : image + 1, :, span].detach().to(dtype)
                    label = label_BHW[image : image + 1, start:stop].long()
                    with torch.set_grad_enabled(needs_grad):
                        piece.requires_grad_(needs_grad)
                        upsampled = upsample_rows(
                            piece, span.start, (start, stop), logits_BKhw.shape[2], size
                        )
                    values = upsampled.detach()
                    if kind == "softmax":
                        weight = None
                        if weight_BHW is not None:
                            weight = weight_BHW[image : image + 1, start:stop].to(dtype)
                        loss, grad = _cross_entropy(values, label, ignore, needs_grad, weight)
                    else:
                        counts_all = kind == "binary-all"
                        loss, grad = _binary(values, label, ignore, needs_grad, counts_all)
                    loss_sum += loss
                    if grad_BKhw is not None:
                        (piece_grad,) = torch.autograd.grad(upsampled, piece, grad)
                        grad_BKhw[image : image + 1, :, span] += piece_grad
        if grad_BKhw is not None:
            ctx.save_for_backward(grad_BKhw.to(logits_BKhw.dtype))
        return loss_sum

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        (grad_BKhw,) = ctx.saved_tensors
        return grad_BKhw * grad_outputs[0].to(grad_BKhw.dtype), None, None, None, None, None


@torch.no_grad()
def _cross_entropy(
    logits_1KRW: Tensor,
    label_1RW: Tensor,
    ignore: int,
    needs_grad: bool,
    weight_1RW: Tensor | None = None,
) -> tuple[Tensor, Tensor | None]:
    """The summed cross-entropy, and its gradient made in the memory of the logits."""
    labelled = (label_1RW != ignore)[:, None]
    target = label_1RW[:, None].where(labelled, 0)
    counts = labelled.to(logits_1KRW.dtype)
    if weight_1RW is not None:
        counts = counts * weight_1RW[:, None]
    peak = logits_1KRW.amax(1, keepdim=True)
    chosen = logits_1KRW.gather(1, target) - peak
    exponents = logits_1KRW.sub_(peak).exp_()
    total = exponents.sum(1, keepdim=True)
    loss = torch.where(labelled, (total.log() - chosen) * counts, 0).sum()
    if not needs_grad:
        return loss, None
    grad = exponents.mul_(counts / total)
    return loss, grad.scatter_add_(1, target, -counts)


@torch.no_grad()
def _binary(
    logits_1KRW: Tensor, label_1RW: Tensor, ignore: int, needs_grad: bool, counts_all: bool
) -> tuple[Tensor, Tensor | None]:
    """The cross-entropy of each label alone, as a mean over them, and its gradient."""
    labelled = (label_1RW != ignore)[:, None]
    counted = torch.ones_like(labelled) if counts_all else labelled
    target = label_1RW[:, None].where(labelled, 0)
    chosen = logits_1KRW.gather(1, target)
    num_labels = logits_1KRW.shape[1]
    loss = torch.where(counted, functional.softplus(logits_1KRW).sum(1, keepdim=True), 0).sum()
    loss = (loss - torch.where(labelled, chosen, 0).sum()) / num_labels
    if not needs_grad:
        return loss, None
    grad = logits_1KRW.sigmoid_().mul_(counted)
    return loss, grad.scatter_add_(1, target, -labelled.to(grad.dtype)).div_(num_labels)
