"""`docs/generate_configuration.py` as a module: `docs` holds pages and is no package."""

import importlib.util
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

_spec = importlib.util.spec_from_file_location(
    "generate_configuration", ROOT / "docs" / "generate_configuration.py"
)
assert _spec is not None
assert _spec.loader is not None
generator = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(generator)
