"""Cross-entropy at full resolution without the full-resolution logits.

The logits live at half resolution; the published loss upsamples them (bilinear, corners on
corners) and takes the cross-entropy at every labelled pixel. For 150 labels at 480x480 the
upsampled logits alone are 138 MB an image, and autograd keeps several copies. Here the label's
rows are processed in chunks, and the gradient of each chunk is taken at once, so that only the
half-resolution gradient and one chunk are ever held.

Shapes: B batch, K labels, H W label pixels, h w logits, R rows of a chunk.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.nn import functional

from model.errors import ModelError
from model.upsampling import source_rows, upsample_rows

CHUNK_MIB_CPU = 32
CHUNK_MIB_GPU = 512


def segmentation_loss(
    logits_BKhw: Tensor, label_BHW: Tensor, ignore: int = 255, chunk_mib: float | None = None
) -> tuple[Tensor, Tensor]:
    """Upsamples the logits to the label's size and sums the cross-entropy over labelled pixels.

    Dividing the sum by the labelled pixels of the GLOBAL batch gives the loss to train on.

    Args:
        logits_BKhw: (B, K, h, w), any float type; computed in at least float32.
        label_BHW: (B, H, W) integers, class ids 0..K-1 or `ignore`.
        ignore: label value that does not count.
        chunk_mib: size of the float32 logits of one chunk; None: by the device.

    Returns:
        loss_sum: 0-d, differentiable once.
        num_labelled: 0-d int64.

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
    loss_sum = _ChunkedCrossEntropy.apply(logits_BKhw, label_BHW, ignore, rows)
    return loss_sum, (label_BHW != ignore).sum()


class _ChunkedCrossEntropy(Function):
    """The gradient is computed in the forward pass; the backward pass only scales it."""

    @staticmethod
    def forward(ctx: Any, logits_BKhw: Tensor, label_BHW: Tensor, ignore: int, rows: int) -> Tensor:
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
                        loss = functional.cross_entropy(
                            upsampled, label, ignore_index=ignore, reduction="sum"
                        )
                    loss_sum += loss.detach()
                    if grad_BKhw is not None:
                        grad_BKhw[image : image + 1, :, span] += torch.autograd.grad(loss, piece)[0]
        if grad_BKhw is not None:
            ctx.save_for_backward(grad_BKhw.to(logits_BKhw.dtype))
        return loss_sum

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None, None, None]:
        (grad_BKhw,) = ctx.saved_tensors
        return grad_BKhw * grad_outputs[0].to(grad_BKhw.dtype), None, None, None
