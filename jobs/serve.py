"""Serves a model over HTTP with Ray Serve, on this machine or on the cluster around it.

    python jobs/serve.py --checkpoint models:/lseg@champion
    python jobs/serve.py --checkpoint runs/published --replicas 2 --cpus 4
    python jobs/serve.py --checkpoint models:/lseg@champion --replicas 4 --gpus 0.5

Answers until Ctrl-C; `/docs` of its address says how it is called, and infra/serve/ has it as a
RayService. LSEG_API_KEY holds the key that callers send. An alias is followed: when a re-training
promotes another version, that one answers, and no call is lost.
"""

import logging
import sys
import threading
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from jobs.cli import main, start_ray
from pipeline.errors import UserError
from pipeline.serving.config import ServeConfig

logger = logging.getLogger("jobs.serve")


def run(config: ServeConfig) -> None:
    """Starts the replicas, says where they answer, and waits."""
    import signal
    from dataclasses import replace

    from model.checkpoint import read_checkpoint
    from pipeline.serving.gate import api_key
    from pipeline.serving.local import bound_socket
    from pipeline.signals import handled

    try:
        import ray.serve  # noqa: F401
    except ImportError:
        raise UserError(
            "ray.serve: is not installed: pip install -c constraints.txt '.[serve]'"
        ) from None
    from pipeline.serving.on_ray import run_here, stop

    api_key(config.host)
    # Here and not first in a replica, which Serve would start again and again.
    read_checkpoint(config.checkpoint)
    bound = bound_socket(config.host, config.port)
    config = replace(config, port=bound.getsockname()[1])
    bound.close()
    start_ray(config.replicas * config.cpus, int(-(-config.replicas * config.gpus // 1)))
    ends = threading.Event()
    with handled(lambda *_: ends.set(), signal.SIGINT, signal.SIGTERM) as arm:
        place = run_here(config)
        arm()
        print(f"{config.checkpoint} answers at {place} - Ctrl-C ends it", flush=True)
        ends.wait()
        logger.info("ends when the calls that have begun are answered")
        stop()


if __name__ == "__main__":
    sys.exit(main(ServeConfig, run, description=__doc__))
