"""Writes docs/configuration.md: every setting of every job, from the jobs' own parsers.

    make docs

A test fails while the committed page is not what this prints. The text depends on the code alone.
"""

import importlib
import runpy
import sys
from collections.abc import Iterator
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any, NamedTuple, get_args, get_origin
from unittest import mock

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import yaml

from jobs.cli import build_parser
from jobs.mistakes import type_words

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "configuration.md"
BASE = "train_mix"
"""The job whose settings others take as a whole; they are listed once."""


class Setting(NamedTuple):
    """One setting, as its row shows it."""

    key: str
    kind: str
    default: str
    text: str


def jobs() -> dict[str, str]:
    """The first line of the documentation of each job, by the name of its file."""
    paths = sorted((ROOT / "jobs").glob("*.py"))
    sources = {path.stem: path.read_text(encoding="utf-8") for path in paths}
    return {
        name: text.partition("\n")[0].strip('"')
        for name, text in sources.items()
        if '__name__ == "__main__"' in text
    }


def config_class(job: str) -> type:
    """The settings of a job: what it gives to `jobs.cli.main` when it is started."""
    given: list[type] = []

    def record(config_class: type, *_: Any, **__: Any) -> int:
        given.append(config_class)
        return 0

    # A job takes `main` when it is imported, which is when it is started.
    with mock.patch("jobs.cli.main", record), mock.patch.object(sys, "argv", [job, "--help"]):
        try:
            runpy.run_path(str(ROOT / "jobs" / f"{job}.py"), run_name="__main__")
        except SystemExit:
            pass
    (found,) = given
    # The texts of a class are read from the module that it is in, and a started job is gone again.
    return getattr(importlib.import_module(f"jobs.{job}"), found.__name__)


def settings(cls: type, prefix: str = "") -> Iterator[Setting]:
    """The settings of a dataclass in the order of its parser, those of groups in groups too."""
    parser = build_parser(cls)
    defaults = parser.get_defaults()
    for action in parser._actions:
        hint = getattr(action, "_typehint", None)
        # The parser adds `GROUP.help` to a group that may be null.
        if hint is None or action.dest == "config" or ".help" in action.dest:
            continue
        key = f"{prefix}{action.dest}"
        kind, default = type_words(hint), _default(defaults.get(action.dest))
        if default == "null" and "null" not in kind and hint is not Any:
            default = ""
        text = _text(action.help)
        yield Setting(key, kind, f"`{default}`" if default else "required", text)
        if group := _group(hint):
            middle = ".NAME." if get_origin(hint) is dict else "."
            yield from settings(group, f"{key}{middle}")


def _group(hint: Any) -> type | None:
    """The dataclass of a mapping of groups, or of a group that may be null."""
    return next((part for part in get_args(hint) if is_dataclass(part)), None)  # type: ignore[return-value]


def _default(value: Any) -> str:
    if hasattr(value, "as_dict"):
        value = value.as_dict()
    if isinstance(value, str):
        value = value.replace(f"{ROOT}/", "")
    text = yaml.safe_dump(value, default_flow_style=True, width=10_000, sort_keys=False)
    return text.removesuffix("\n").removesuffix("\n...")


def _text(words: str | None) -> str:
    return " ".join((words or "").split()).replace("|", "\\|")


def _table(rows: list[Setting]) -> Iterator[str]:
    yield "| key | type | default | what it is |"
    yield "|---|---|---|---|"
    for row in rows:
        yield f"| `{row.key}` | {row.kind} | {row.default} | {row.text} |"


def page() -> str:
    """The whole page."""
    lines = [
        "# Configuration",
        "",
        "<!-- Written by `make docs` from the dataclasses of the jobs: change the texts there. -->",
        "",
        "Every key of this page stands in a YAML recipe (`--config FILE`) or on the command line",
        "(`--train.lr 0.01`). The command line overrides the recipe, and the recipe overrides the",
        "defaults. `--print_config` prints the settings that result. A key with a dot lies in a",
        "group, which a recipe writes as a mapping: `train: {lr: 0.01}`.",
        "",
        "Secrets and endpoints come from the environment only: `AWS_ENDPOINT_URL`,",
        "`AWS_ACCESS_KEY_ID`, `AWS_SECRET_ACCESS_KEY`, `MLFLOW_TRACKING_URI`,",
        "`MLFLOW_TRACKING_USERNAME`, `MLFLOW_TRACKING_PASSWORD` and, of a service, `LSEG_API_KEY`.",
        "",
    ]
    found = jobs()
    classes = {job: config_class(job) for job in found}
    base = list(settings(classes[BASE]))
    for job in (BASE, *(job for job in found if job != BASE)):
        rows = list(settings(classes[job]))
        lines += [f"## {job}.py", "", found[job], ""]
        common = set(rows) & set(base)
        if job != BASE and len(common) > len(base) // 2:
            rows = [row for row in rows if row not in common]
            lacks = ", ".join(f"`{row.key}`" for row in base if row not in common)
            but = f", except {lacks}," if lacks else ","
            lines += [f"It takes all settings of [{BASE}.py](#{BASE}py){but} and these:", ""]
        lines += [*_table(rows), ""]
    return "\n".join(lines)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
    print(f"written: {PAGE.relative_to(ROOT)}")
