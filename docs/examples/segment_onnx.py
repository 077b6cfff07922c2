"""Segments a photo with numpy, onnxruntime and Pillow alone.

    pip install numpy onnxruntime pillow
    python segment_onnx.py export photo.jpg mask.png

`export` is the folder that `jobs/export.py` wrote. The mask holds positions in labels.txt.
"""

import json
import sys
from pathlib import Path

import numpy as np
import onnxruntime
from PIL import Image, ImageOps

folder, photo, out = (Path(word) for word in sys.argv[1:])
told = json.loads((folder / "export.json").read_text())
labels = (folder / "labels.txt").read_text(encoding="utf-8").splitlines()
text = np.load(folder / "text.npy", allow_pickle=False)  # (K, C): a row for each label

image = ImageOps.exif_transpose(Image.open(photo)).convert("RGB")
scale = told["long_side_px"] / max(image.size)  # The long side as in the training.
width, height = (max(1, round(side * scale)) for side in image.size)
seen = image.resize((width, height), Image.Resampling.BOX)

session = onnxruntime.InferenceSession(folder / told["network"])
pixels = np.asarray(seen)[None]  # (1, H, W, 3) uint8
(logits,) = session.run(["logits"], {"image": pixels, "text": text})  # (1, K, H/2, W/2)
best = logits[0].argmax(0).astype(np.int32)

mask = Image.fromarray(best).resize(image.size, Image.Resampling.NEAREST)
ids = np.asarray(mask)
Image.fromarray(ids.astype(np.uint16 if len(labels) > 256 else np.uint8)).save(out)
for position in np.unique(ids):
    print(f"{labels[position]}: {(ids == position).mean():.1%}")
