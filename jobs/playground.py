"""Opens a page on this machine where any words segment any image.

    python jobs/playground.py --checkpoint runs/published
    python jobs/playground.py --checkpoint models:/lseg@champion --port 7861

Answers until Ctrl-C, to this machine alone unless `--host` says otherwise. The page asks the same
service that other programs can call (`/docs` of its address describes it), and nothing of it, nor
of the images, goes elsewhere.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from jobs.cli import main
from pipeline.serving.config import PlaygroundConfig, address


def run(config: PlaygroundConfig) -> None:
    """Loads the model and serves the page."""
    from model.config import STAND_IN
    from pipeline.demo.examples import examples_of, photo_example, rendered_examples
    from pipeline.serving.champion import Champion
    from pipeline.serving.gate import api_key
    from pipeline.serving.limits import limits_of
    from pipeline.serving.local import bound_socket, serve_here

    key, limits = api_key(config.host), limits_of(config)
    bound = bound_socket(config.host, config.port)
    champion = Champion(config.checkpoint, config.device, limits, config.follow_s)
    encoder = champion.current.network.lseg.config.text.encoder
    if config.examples:
        examples = examples_of(config.examples)
    else:
        examples = rendered_examples() if encoder == STAND_IN else photo_example()
    place = address(config.host, bound.getsockname()[1])
    model = champion.current.name

    def say() -> None:
        print(f"{model} answers at {place} - open it in a browser; Ctrl-C ends it", flush=True)

    serve_here(champion, config, bound, key, examples, say)


if __name__ == "__main__":
    sys.exit(main(PlaygroundConfig, run, description=__doc__))
