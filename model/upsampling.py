"""Bilinear upsampling, corner pixels on corner pixels, in the forms that cost little.

`upsample_rows` makes some rows of an upsampled map, so that a map of many channels never has to
exist whole. `upsample_squares` gives the length of every upsampled vector without making the
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
    taps = [_taps(source, target, dtype) for dtype in (torch.float32, torch.float64)]
    first = min(int(before[start]) for before, _, _ in taps)
    last = max(int(after[stop - 1]) for _, after, _ in taps)
    return slice(first, last + 1)


def upsample_rows(
    piece_BCrw: Tensor, first_row: int, span: tuple[int, int], source: int, size: tuple[int, int]
) -> Tensor:
    """Makes rows span[0]..span[1] of an upsampled map: (B, C, R, W).

    Args:
        piece_BCrw: (B, C, r, w), the rows of the map from `first_row` on; at least those of
            `source_rows`.
        first_row: where `piece_BCrw` begins in the whole map.
        span: the wanted rows of the target.
        source: rows of the whole map.
        size: (H, W) of the target.
    """
    height, width = size
    device = piece_BCrw.device
    taps = _taps(source, height, piece_BCrw.dtype)
    before, after, weight = (tap[span[0] : span[1]] for tap in taps)
    upper, lower = (before - first_row).to(device), (after - first_row).to(device)
    weight = weight.to(device)[:, None]  # (R, 1)
    mixed = torch.lerp(
        piece_BCrw.index_select(2, upper), piece_BCrw.index_select(2, lower), weight
    )  # (B, C, R, w)
    return functional.interpolate(
        mixed, (mixed.shape[2], width), mode="bilinear", align_corners=True
    )


def upsample_squares(
    own_Bhw: Tensor,
    right_Bhw: Tensor,
    below_Bhw: Tensor,
    diagonals_Bhw: Tensor,
    size: tuple[int, int],
) -> Tensor:
    """Gives the squared length of every vector of an upsampled map of vectors e: (B, H, W).

    Args:
        own_Bhw: <e, e> of every source pixel.
        right_Bhw: <e, its right neighbour>; the last column is not used.
        below_Bhw: <e, its lower neighbour>; the last row is not used.
        diagonals_Bhw: <e, right lower neighbour> + <right neighbour, lower neighbour>.
        size: (H, W) of the target.
    """
    device, dtype = own_Bhw.device, own_Bhw.dtype
    cols, next_cols, col_weight = (t.to(device) for t in _taps(own_Bhw.shape[2], size[1], dtype))
    rows, next_rows, row_weight = (t.to(device) for t in _taps(own_Bhw.shape[1], size[0], dtype))
    row_weight = row_weight[:, None]

    def along_width(squares: Tensor, products: Tensor) -> Tensor:
        """(B, h, W): squared length of the mix of two columns, from squares and products."""
        ends = squares[:, :, cols] * (1 - col_weight).square()
        ends = ends + squares[:, :, next_cols] * col_weight.square()
        return ends + 2 * products[:, :, cols] * (col_weight * (1 - col_weight))

    within = along_width(own_Bhw, right_Bhw)
    # Products of the mixes of two rows: the diagonals come in pairs, hence the half.
    across = along_width(below_Bhw, diagonals_Bhw / 2)
    ends = within[:, rows] * (1 - row_weight).square()
    ends = ends + within[:, next_rows] * row_weight.square()
    return ends + 2 * across[:, rows] * (row_weight * (1 - row_weight))


def shift(map_BChw: Tensor, dim: int) -> Tensor:
    """Every pixel's next neighbour along `dim`; the last has itself for a neighbour."""
    size = map_BChw.shape[dim]
    # Slices, not an index: their gradient is twice as fast.
    return torch.cat([map_BChw.narrow(dim, 1, size - 1), map_BChw.narrow(dim, size - 1, 1)], dim)


def _taps(source: int, target: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """For each target index: the source index before it, the next one, and that one's weight.

    Positions are computed in the precision of the map, as torch's own upsampling computes them;
    on the CPU, where slicing needs no host synchronisation.
    """
    step = torch.tensor(source - 1, dtype=dtype, device="cpu") / max(1, target - 1)
    position = torch.arange(target, dtype=dtype, device="cpu") * step
    before = position.floor().clamp_max(source - 1)
    after = (before + 1).clamp_max(source - 1)
    return before.long(), after.long(), position - before
