"""Gives other words their vectors with numpy, onnxruntime and tokenizers alone.

    pip install numpy onnxruntime tokenizers
    python embed_text_onnx.py export "dog, cat, something"

`export` is the folder that `jobs/export.py --text_tower true` wrote. Its labels.txt and text.npy
become those of the words, which segment_onnx.py asks from then on.
"""

import json
import sys
from pathlib import Path

import numpy as np
import onnxruntime
from tokenizers import Tokenizer

folder = Path(sys.argv[1])
labels = [word.strip() for word in sys.argv[2].split(",") if word.strip()]
told = json.loads((folder / "export.json").read_text())["text"]
tokenizer = Tokenizer.from_file(str(folder / told["tokenizer"]))
tower = onnxruntime.InferenceSession(folder / told["tower"])

rows = []
for label in labels:
    texts = [template.replace("{}", label) for template in told["templates"]]
    tokens = np.array([encoding.ids for encoding in tokenizer.encode_batch(texts)])
    (vectors,) = tower.run(["vectors"], {"tokens": tokens})  # (texts, C), each of length 1
    mean = vectors.mean(axis=0)
    rows.append(mean / np.linalg.norm(mean))

np.save(folder / "text.npy", np.stack(rows).astype(np.float32))
(folder / "labels.txt").write_text("".join(f"{label}\n" for label in labels), encoding="utf-8")
print(f"{len(labels)} labels, vectors of {len(rows[0])} numbers")
