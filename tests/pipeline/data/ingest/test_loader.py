"""What a loader does with the memory of its process; its crops are tested with the stream."""

import platform
import subprocess
import sys

import pytest

PAGES_PER_LABEL = """
import resource, sys
from concurrent.futures import ThreadPoolExecutor
import numpy as np
from pipeline.data.ingest.loader import keep_freed_memory
from pipeline.data.pixels.decode import decode_label
from pipeline.data.pixels.encode import encode_label

if sys.argv[1:] == ["keep"]:
    keep_freed_memory()
png = encode_label(np.arange(2048, dtype=np.uint8)[None].repeat(1024, 0) % 190)

def pages(count):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(count):
        decode_label(png, 194)
    return (resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before) // count

with ThreadPoolExecutor(1) as threads:
    threads.submit(pages, 5).result()
    print(threads.submit(pages, 20).result())
"""


def pages_per_label(*how: str) -> int:
    command = [sys.executable, "-c", PAGES_PER_LABEL, *how]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the parameters are glibc's")
def test_the_memory_of_one_label_serves_the_next():
    assert pages_per_label() > 500
    assert pages_per_label("keep") < 10
