"""What a worker prints of errors, and what it does with freed memory."""

import logging
import platform
import subprocess
import sys

import pytest
from ray.train.v2._internal.util import construct_user_exception_with_traceback

from model.errors import ModelError
from pipeline.errors import UserError
from pipeline.ray_internals import worker_loggers
from pipeline.training.worker import process


@pytest.mark.parametrize("error", [UserError("a mistake"), ModelError("a mistake"), KeyError("x")])
def test_ray_prints_the_traceback_of_defects_alone(caplog, monkeypatch, error):
    loggers = worker_loggers()
    for logger in loggers:
        monkeypatch.setattr(logger, "filters", [])
        monkeypatch.setattr(logger, "propagate", True)
        logger.addHandler(caplog.handler)
    ours = logging.getLogger("pipeline")
    kept = ours.handlers, ours.propagate, ours.level, logging.getLogger().level
    try:
        process._log_to_driver(0)
        try:
            raise error
        except Exception as raised:
            construct_user_exception_with_traceback(raised)
            loggers[1].exception("an upload failed")
    finally:
        for logger in loggers:
            logger.removeHandler(caplog.handler)
        ours.handlers, ours.propagate = kept[:2]
        ours.setLevel(kept[2])
        logging.getLogger().setLevel(kept[3])
    told = {record.name for record in caplog.records}
    assert told == ({each.name for each in loggers} if isinstance(error, KeyError) else set())


HELD_MIB = """
import psutil
from pipeline.training.worker.process import give_back_memory

def held():
    return psutil.Process().memory_info().rss >> 20

small = [bytearray(100_000) for _ in range(2000)]
last = bytearray(100_000)  # Above the others, so that they are a gap below it.
del small
before = held()
give_back_memory()
print(before - held())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other libraries have other ways")
def test_gaps_between_arrays_go_back_to_the_kernel():
    command = [sys.executable, "-c", HELD_MIB]
    found = subprocess.run(command, check=True, capture_output=True, text=True)
    assert int(found.stdout.split()[-1]) > 100
