"""Calls of a service on this machine, as a client of its HTTP API makes them."""

import base64
import io
import json
import time
import urllib.request

import numpy as np
from PIL import Image


def wait_until_it_answers(port: int, timeout_s: float) -> bool:
    """Waits for the service; whether it answers in time."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/healthz", timeout=5) as answer:
                return answer.status == 200
        except OSError:
            time.sleep(1)
    return False


def name_of_model(port: int, seed: int) -> str:
    """Has a picture of noise segmented; the name of the model that answered."""
    pixels = np.random.default_rng(seed).integers(0, 256, (96, 128, 3), np.uint8)
    picture = io.BytesIO()
    Image.fromarray(pixels).save(picture, "PNG")
    image = base64.b64encode(picture.getvalue()).decode()
    body = json.dumps({"image": image, "labels": ["road", "sky"]}).encode()
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/v1/segment", body, {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=120) as answer:
        return json.load(answer)["model"]
