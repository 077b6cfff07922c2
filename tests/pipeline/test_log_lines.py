import logging
import os
import re

from pipeline import log_lines
from pipeline.log_lines import Lines, log_as


def line_of(form: Lines, message: str) -> str:
    return form.format(logging.LogRecord("pipeline.x", logging.INFO, "", 0, message, (), None))


def test_a_line_begins_with_date_and_node_once(monkeypatch):
    monkeypatch.setattr(log_lines, "here", lambda: "gpu-100%-3")
    line = line_of(Lines("worker 0"), "step 3/9  loss 1")
    assert re.fullmatch(
        r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d gpu-100%-3 worker 0: step 3/9  loss 1", line
    )
    assert re.fullmatch(r"[-\d]{10} [:\d]{8} a%sb", line_of(Lines(as_text=True), "a%sb"))


def test_a_driver_keeps_its_log(local_ray):
    ours = logging.getLogger("pipeline")
    before = ours.handlers, ours.propagate, ours.level
    log_as("loader")
    assert (ours.handlers, ours.propagate, ours.level) == before


def test_a_process_of_rays_tells_node_and_part(local_ray, tmp_path):
    import ray

    class Speaker:
        def __init__(self, path: str) -> None:
            import sys

            file = open(path, "w")
            sys.stdout, kept = file, sys.stdout
            log_as("loader")
            sys.stdout = kept
            logging.getLogger("pipeline.data").info("hello")
            file.close()

        def done(self) -> None:
            pass

    path = tmp_path / "lines"
    ray.get(ray.remote(num_cpus=0)(Speaker).remote(str(path)).done.remote())
    assert re.fullmatch(
        rf"[-\d]{{10}} [:\d]{{8}} {os.uname().nodename} loader: hello\n", path.read_text()
    )
