"""Bilinear upsampling, corner pixels on corner pixels, in the forms that cost little.

`upsample_rows` makes some rows of an upsampled map, so that a map of many channels never has to
exist whole. `upsampled_length` gives the length of every upsampled vector without making the
vectors: the length of a weighted sum of four neighbours follows from their inner products.

Shapes: B batch, C or K channels, h w source map, H W target, R rows.
"""

import torch
from torch import Tensor
from torch.nn import functional


def upsample(map_BChw: Tensor, size: tuple[int, int]) -> Tensor:
    """Resizes (B, C, h, w) to (B, C, *size)."""
    if tuple(map_BChw.shape[2:]) == size:
        return map_BChw
    return functional.interpolate(map_BChw, size, mode="bilinear", align_corners=True)


def source_rows(start: int, stop: int, source: int, target: int) -> slice:
    """The rows of a map of `source` rows that rows start..stop of `target` are made from."""
    step = _step(source, target)
    return slice(int(start * step), min(source, int((stop - 1) * step) + 2))


def upsample_rows(
    piece_BCrw: Tensor, first_row: int, span: tuple[int, int], source: int, size: tuple[int, int]
) -> Tensor:
    """Makes rows span[0]..span[1] of an upsampled map.

    Args:
        piece_BCrw: (B, C, r, w), the rows of the map from `first_row` on; at least those of
            `source_rows`.
        first_row: where `piece_BCrw` begins in the whole map.
        span: the wanted rows of the target.
        source: rows of the whole map.
        size: (H, W) of the target.

    Returns:
        (B, C, R, W)
    """
    height, width = size
    position = torch.arange(*span, device=piece_BCrw.device, dtype=torch.float64)
    position = position * _step(source, height) - first_row
    last = piece_BCrw.shape[2] - 1
    upper = position.floor().clamp(0, last)
    weight = (position - upper).to(piece_BCrw.dtype)[:, None]  # (R, 1)
    upper = upper.long()
    lower = (upper + 1).clamp_max(last)
    mixed = torch.lerp(piece_BCrw[:, :, upper], piece_BCrw[:, :, lower], weight)  # (B, C, R, w)
    return functional.interpolate(
        mixed, (mixed.shape[2], width), mode="bilinear", align_corners=True
    )


def upsampled_length(map_BChw: Tensor, size: tuple[int, int]) -> Tensor:
    """Gives the length over C of every vector of `upsample(map, size)`, without upsampling C.

    Args:
        map_BChw: (B, C, h, w) float32 or float64.
        size: (H, W).

    Returns:
        (B, 1, H, W)
    """
    own = map_BChw.square().sum(1, keepdim=True)
    # Inner products with the neighbour to the right, below, and of both diagonals; a border
    # pixel is its own neighbour, where the weight is 0.
    right_map = _shift(map_BChw, 3)
    below_map = _shift(map_BChw, 2)
    right = (map_BChw * right_map).sum(1, keepdim=True)
    below = (map_BChw * below_map).sum(1, keepdim=True)
    diagonals = (map_BChw * _shift(below_map, 3) + right_map * below_map).sum(1, keepdim=True)

    rows, row_weight = _taps(map_BChw.shape[2], size[0], map_BChw)
    cols, col_weight = _taps(map_BChw.shape[3], size[1], map_BChw)
    row_weight = row_weight[:, None]
    next_rows = (rows + 1).clamp_max(map_BChw.shape[2] - 1)
    next_cols = (cols + 1).clamp_max(map_BChw.shape[3] - 1)
    cross_cols = col_weight * (1 - col_weight)

    def along_width(squares: Tensor, products: Tensor) -> Tensor:
        """Mixes the columns of maps (B, 1, h, w) quadratically: (B, 1, h, W)."""
        mixed = squares[..., cols] * (1 - col_weight) ** 2 + squares[..., next_cols] * col_weight**2
        return mixed + products[..., cols] * cross_cols

    inside = along_width(own, 2 * right)
    between = along_width(2 * below, 2 * diagonals)
    squared = (
        inside[:, :, rows] * (1 - row_weight) ** 2
        + inside[:, :, next_rows] * row_weight**2
        + between[:, :, rows] * (row_weight * (1 - row_weight))
    )
    return squared.clamp_min(torch.finfo(squared.dtype).tiny).sqrt()


def _step(source: int, target: int) -> float:
    return (source - 1) / max(1, target - 1)


def _shift(map_BChw: Tensor, dim: int) -> Tensor:
    """The neighbour map one step on along `dim`; the last row or column is repeated."""
    size = map_BChw.shape[dim]
    return torch.cat(
        [
            map_BChw.narrow(dim, min(1, size - 1), max(1, size - 1)),
            map_BChw.narrow(dim, size - 1, min(1, size - 1)),
        ],
        dim,
    )


def _taps(source: int, target: int, like: Tensor) -> tuple[Tensor, Tensor]:
    """For each target index: the source index before it, and the weight of the one after."""
    position = torch.arange(target, device=like.device, dtype=torch.float64)
    position = position * _step(source, target)
    before = position.floor().clamp_max(source - 1)
    return before.long(), (position - before).to(like.dtype)
