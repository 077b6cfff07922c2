"""The memory of a served model under calls that are as large as its limits allow.

    python -m tests.benchmarks.serve [--calls 20] [--checkpoint DIR]

Serves a checkpoint (a tiny one with random weights by default) with MLflow's own scoring server in
a process of its own, and sends all calls at once: each has as many megapixels and as many bytes as
one call may have. Prints the memory of the idle server, its peak, and how the calls ended.
"""

import argparse
import base64
import io
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections import Counter
from pathlib import Path

import numpy as np
import psutil
import torch
from PIL import Image

from model.checkpoint import save_checkpoint
from model.lseg import build_lseg
from pipeline.inference.served_limits import Limits
from pipeline.inference.served_model import save_served
from tests.support.mini_shards import tiny_model

PORT = 5187
URL = f"http://127.0.0.1:{PORT}"
SIZE = (6000, 4000)


def main() -> None:
    """Runs the measurement and prints a line for each figure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--calls", type=int, default=20)
    parser.add_argument("--checkpoint", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        served = Path(scratch) / "served"
        save_served(options.checkpoint or tiny_checkpoint(Path(scratch) / "tiny"), served)
        command = [sys.executable, "-m", "mlflow", "models", "serve", "-m", str(served)]
        command += ["-p", str(PORT), "--env-manager", "local"]
        # MLflow starts uvicorn by its name.
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
        with subprocess.Popen(command, env={**os.environ, "PATH": path}) as it:
            try:
                measure(psutil.Process(it.pid), options.calls)
            finally:
                for process in (*psutil.Process(it.pid).children(recursive=True), it):
                    process.terminate()


def measure(server: psutil.Process, calls: int) -> None:
    """Sends the calls at once, and watches the server's memory meanwhile."""
    wait_for_server()
    post(body_of(1, 0))  # What the first call loads stays.
    idle = memory_mib(server)
    body = largest_body()
    codes: Counter[int] = Counter()
    threads = [threading.Thread(target=lambda: codes.update([post(body)])) for _ in range(calls)]
    began, peak = time.monotonic(), idle
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        peak = max(peak, memory_mib(server))
        time.sleep(0.05)
    print(f"body of a call: {len(body) / 2**20:.0f} MiB; calls at once: {calls}")
    print(f"idle: {idle:.0f} MiB; peak: {peak:.0f} MiB; more than idle: {peak - idle:.0f} MiB")
    print(f"{time.monotonic() - began:.1f} s; answers: {dict(codes)}")


def largest_body() -> bytes:
    """A call with the most images of the most pixels, padded to the most bytes."""
    limits = Limits()
    num_images = int(limits.max_call_mpx // (SIZE[0] * SIZE[1] / 1e6))
    return body_of(num_images, int(limits.max_call_mib * 2**20 / num_images) - 1)


def body_of(num_images: int, num_bytes: int) -> bytes:
    """A request of several images of SIZE, each with bytes behind its end up to a size."""
    buffer = io.BytesIO()
    # Stripes: a small file that takes its whole size when it is decoded.
    pixels = np.zeros((SIZE[1], SIZE[0], 3), np.uint8)
    pixels[:, ::2] = 200
    Image.fromarray(pixels).save(buffer, "PNG", compress_level=1)
    data = buffer.getvalue()
    row = [base64.b64encode(data + bytes(max(0, num_bytes - len(data)))).decode()]
    table = {"columns": ["image"], "data": [row] * num_images}
    labels = ["road", "sky", "tree"]
    return json.dumps({"dataframe_split": table, "params": {"labels": labels}}).encode()


def post(body: bytes) -> int:
    """The status of the answer to a request; 0 where there is none."""
    headers = {"Content-Type": "application/json"}
    request = urllib.request.Request(f"{URL}/invocations", body, headers)
    try:
        with urllib.request.urlopen(request, timeout=300) as answer:
            answer.read()
            return answer.status
    except urllib.error.HTTPError as error:
        return error.code
    except OSError:
        return 0


def memory_mib(server: psutil.Process) -> float:
    """Resident memory of the server and the processes that it started."""
    processes = (server, *server.children(recursive=True))
    return sum(process.memory_info().rss for process in processes) / 2**20


def wait_for_server() -> None:
    """Waits until the server answers."""
    for _ in range(300):
        try:
            with urllib.request.urlopen(f"{URL}/ping", timeout=2):
                return
        except OSError:
            time.sleep(0.5)
    raise SystemExit("the server did not start")


def tiny_checkpoint(folder: Path) -> Path:
    """A network of random weights that sees images as the published one does."""
    torch.manual_seed(0)
    extra = {"data": {"augment": {"base_px": 520, "crop_px": 480}}}
    save_checkpoint(folder, build_lseg(tiny_model(), 512), ("wall", "sky"), extra)
    return folder


if __name__ == "__main__":
    main()
