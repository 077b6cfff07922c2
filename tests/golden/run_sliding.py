"""Scores one picture by the ADE20K protocol, for comparison with other implementations of it.

    python tests/golden/run_sliding.py --image x.npy --out logits.npy

x.npy: (1, 3, H, W) float32, already normalised. The network is the rule-filled ViT-B/32 of
`run_case.py` without a regulariser, the labels are the five text rows of `data/inputs.npz`; base
520, windows of 480 every 320 pixels, scales 0.5 to 1.75, each with its mirror image. Writes the
summed logits, (1, 5, H, W) float32.
"""

import argparse
import sys
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from model.sliding import PUBLISHED, sliding_logits
from tests.golden.run_case import published_lseg

INPUTS = Path(__file__).parent / "data" / "inputs.npz"


def main(argv: list[str] | None = None) -> None:
    """Runs from the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--image", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args(argv)
    try:
        image = np.load(args.image, allow_pickle=False)
    except (OSError, ValueError) as error:
        parser.error(f"--image {args.image}: is no readable .npy file: {error}")
    if image.ndim != 4 or image.shape[:2] != (1, 3) or image.dtype != np.float32:
        parser.error(f"--image: {image.shape} {image.dtype}: must be (1, 3, H, W) float32")
    text = torch.from_numpy(np.load(INPUTS)["text"])
    lseg = published_lseg("vitb32", "none", 0, "lrelu")
    logits = sliding_logits(lseg, torch.from_numpy(image), text, PUBLISHED)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    with args.out.open("wb") as file:  # np.save by name would append .npy
        np.save(file, logits.numpy())


if __name__ == "__main__":
    main()
