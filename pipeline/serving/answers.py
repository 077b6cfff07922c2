"""What the network found in an image, as the body of an answer."""

import base64
import io
import json
from typing import Any

import numpy as np

from model.prediction import NO_LABEL
from pipeline.data.pixels.palette import NO_LABEL_COLOUR, name_colours
from pipeline.inference.segmenter import encode_index
from pipeline.inference.served_network import Question
from pipeline.serving.calls import Answer, Call

MAX_PALETTE = 255
"""Labels that a PNG of 8 bits can tell apart, with one more value for no label."""


def narrow(ids: np.ndarray, num_labels: int) -> np.ndarray:
    """Label ids as small as they may be: uint8 or uint16, whose largest value is no label."""
    kind = np.uint8 if num_labels <= MAX_PALETTE else np.uint16
    return np.where(ids == NO_LABEL, np.iinfo(kind).max, ids).astype(kind)


def segmented(call: Call, question: Question, ids: np.ndarray, model: str) -> Answer:
    """The answer to a segmentation.

    Args:
        call: What was sent.
        question: What it asked.
        ids: (H, W) of `narrow`.
        model: The name of the model.
    """
    labels = question.labels
    if call.answer == "png":
        headers = {"LSeg-Labels": json.dumps(labels)} if _is_short(labels) else {}
        return Answer("image/png", _png(ids, labels), model, headers)
    counts = np.bincount(ids.ravel(), minlength=len(labels))
    none = np.iinfo(ids.dtype).max
    found: dict[str, Any] = {
        "model": model,
        "height": ids.shape[0],
        "width": ids.shape[1],
        "labels": list(labels),
        "other": str(question.other),
        "shares": (counts[: len(labels)] / ids.size).round(6).tolist(),
        "no_label_share": round(float((ids == none).mean()), 6),
        "colours": name_colours(labels, "distinct").tolist(),
        "no_label_colour": list(NO_LABEL_COLOUR),
        "runs": run_lengths(ids),
    }
    if call.with_mask:
        found["mask"] = base64.b64encode(_png(ids, labels)).decode("ascii")
    return Answer("application/json", json.dumps(found).encode(), model)


def array(found: np.ndarray, model: str) -> Answer:
    """An array as a file of numpy's format."""
    buffer = io.BytesIO()
    np.save(buffer, found, allow_pickle=False)
    shape = ", ".join(map(str, found.shape))
    return Answer("application/x-npy", buffer.getvalue(), model, {"LSeg-Shape": shape})


def run_lengths(ids: np.ndarray) -> list[int]:
    """Run lengths of an image of `narrow`, row by row: label, length, label, length, ...

    A run may go on in the next row. The label is a position, or -1 for none.
    """
    flat = ids.ravel()
    starts = np.concatenate([[0], np.flatnonzero(flat[1:] != flat[:-1]) + 1])
    lengths = np.diff(np.append(starts, flat.size))
    values = flat[starts].astype(np.int64)
    values[values == np.iinfo(ids.dtype).max] = NO_LABEL
    return np.stack([values, lengths], axis=1).ravel().tolist()


def _png(ids: np.ndarray, labels: tuple[str, ...]) -> bytes:
    none = np.iinfo(ids.dtype).max
    wide = ids.astype(np.int32)
    wide[ids == none] = NO_LABEL
    return encode_index(wide, labels, "distinct")


def _is_short(labels: tuple[str, ...]) -> bool:
    """Whether a header can hold labels, as JSON in ASCII."""
    return len(json.dumps(labels)) <= 4000
