"""Windows of positions: maps are cut into squares and put together again (Liu et al. 2021).

While exporting, every function does the same at each size.

Shapes: B batch, K classes, h w cost map, C channels, W windows, N positions of a window.
"""

import torch
from torch import Tensor
from torch.nn import functional

WINDOW = 12
"""Side of a window of positions; every second block shifts by half of it."""
FORBIDDEN = -100.0
"""What is added to the score of two positions that only the shift made neighbours."""


def to_windows(x_BKhwC: Tensor, shift: int) -> Tensor:
    """Cuts maps into windows, after a cyclic shift: (B, K, W, N, C)."""
    high, wide = x_BKhwC.shape[2:4]
    down, right = _num_windows(high) * WINDOW - high, _num_windows(wide) * WINDOW - wide
    # An exported graph always pads, by 0 where nothing is missing.
    if torch.compiler.is_exporting() or down or right:
        x_BKhwC = functional.pad(x_BKhwC, (0, 0, 0, right, 0, down))
    if shift:
        x_BKhwC = x_BKhwC.roll((-shift, -shift), (2, 3))
    # (B, K, rows, WINDOW, columns, WINDOW, C)
    cut = x_BKhwC.unflatten(3, (_num_windows(wide), WINDOW)).unflatten(
        2, (_num_windows(high), WINDOW)
    )
    return cut.transpose(3, 4).flatten(4, 5).flatten(2, 3)


def from_windows(x_BKWNC: Tensor, size: tuple[int, int], shift: int) -> Tensor:
    """Puts windows together again: (B, K, h, w, C)."""
    cut = x_BKWNC.unflatten(3, (WINDOW, WINDOW))
    cut = cut.unflatten(2, (_num_windows(size[0]), _num_windows(size[1])))
    whole = cut.transpose(3, 4).flatten(4, 5).flatten(2, 3)
    if shift:
        whole = whole.roll((shift, shift), (2, 3))
    return whole[:, :, : size[0], : size[1]]


def shift_mask(size: tuple[int, int], shift: int) -> Tensor:
    """What to add to the scores of the positions of each window: (W, N, N), 0 or `FORBIDDEN`.

    Positions see each other where they were neighbours before the shift; what fills the map up to
    whole windows sees only itself.
    """

    def regions(side: int) -> Tensor:
        padded = _num_windows(side) * WINDOW
        place = torch.arange(padded)
        before = torch.where(place < padded - shift, place + shift, place + shift - padded)
        number = (before >= side).to(torch.float32)
        if shift:
            number = number + 2 * (place >= padded - WINDOW) + 2 * (place >= padded - shift)
        return number

    number = regions(size[0])[:, None] * 10 + regions(size[1])
    windows = to_windows(number[None, None, :, :, None], 0)[0, 0, :, :, 0]  # (W, N)
    apart = windows[:, :, None] != windows[:, None, :]
    return torch.zeros_like(apart, dtype=torch.float32).masked_fill(apart, FORBIDDEN)


def _num_windows(side: int) -> int:
    """How many windows a side takes."""
    return (side + WINDOW - 1) // WINDOW
