"""The parts that every job shares: configuration from YAML and command line, exit code, Ray.

Precedence is defaults < recipe (`--config FILE`) < command line (`--train.lr 0.01`). A user's
mistake ends in one message and exit code 2; a traceback means a defect of ours.
"""

import io
import logging
import math
import os
import select
import sys
import time
from argparse import RawDescriptionHelpFormatter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, TextIO, TypeVar, get_type_hints

from jsonargparse import (
    SUPPRESS,
    ArgumentError,
    ArgumentParser,
    DefaultHelpFormatter,
    Namespace,
    set_parsing_settings,
)

from jobs import local_ray
from jobs.mistakes import check_settings
from model.errors import ModelError
from pipeline import monitoring
from pipeline.errors import Terminated, UserError, printable, told_by_system
from pipeline.log_lines import OURS, Lines
from pipeline.ray_internals import SUBMITTED_JOB, keep_back_lines

Config = TypeVar("Config")

logger = logging.getLogger("jobs.cli")

REPOSITORY = Path(__file__).resolve().parents[1]

_USAGE = "[--config RECIPE] [--KEY VALUE ...]"
_WAIT = "LSEG_CLUSTER_WAIT_S"

_NEWS_TO_NOBODY = (
    # Ray Data's actors get their arguments so, and Ray Train's too: nothing of it can be changed.
    "has constructor arguments in the object store and max_restarts > 0",
    # The log has lines of its own.
    "Progress bars disabled. To enable, set",
    "execution finished in",
)
"""Parts of lines that Ray's processes print and that say nothing to a user."""
_BROKEN_PIPE = 141
"""Exit code of a program whose output is not read any more, as a shell counts it."""

set_parsing_settings(docstring_parse_attribute_docstrings=True)


def build_parser(
    config_class: type, description: str | None = None, bare: Mapping[str, Any] | None = None
) -> ArgumentParser:
    """A parser whose keys are the fields of `config_class`, nested ones dotted.

    Args:
        config_class: A frozen dataclass, possibly of dataclasses. A setting of it that is true or
            false may stand without a value, which means true.
        description: What `--help` says about the job.
        bare: Settings that may stand without `--KEY`, before the options, each with the further
            arguments of argparse's `add_argument`.
    """
    parser = ArgumentParser(
        description="\n\n".join(filter(None, (description, _overview(config_class)))),
        usage=" ".join(["%(prog)s", *(f"[{key.upper()}]" for key in bare or ()), _USAGE]),
        formatter_class=_AsWritten,
        exit_on_error=False,
        allow_abbrev=False,
    )
    parser.add_argument(
        "--config", action="config", help="A YAML recipe; later arguments override it."
    )
    parser.add_class_arguments(config_class)
    # After the fields, whose actions exist now: flags, and words that share a field's place.
    for action in parser._actions:
        if getattr(action, "_typehint", None) is bool:
            action.nargs, action.const = "?", True
    for key, how in (bare or {}).items():
        parser.add_argument(key, default=SUPPRESS, **how)
    return parser


class _AsWritten(DefaultHelpFormatter, RawDescriptionHelpFormatter):
    """Keeps the lines of a description, among which are commands to copy."""


def _overview(config_class: type) -> str:
    """The groups of a configuration, a line each; empty without any."""
    kinds = get_type_hints(config_class)
    groups = {f.name: kinds[f.name] for f in fields(config_class) if is_dataclass(kinds[f.name])}
    if not groups:
        return ""
    width = max(map(len, groups)) + 2
    lines = [f"  {name:{width}}{_first_line(kind)}" for name, kind in groups.items()]
    return "\n".join(["groups of settings (docs/configuration.md has them all):", *lines])


def _first_line(kind: Any) -> str:
    return (kind.__doc__ or "").strip().partition("\n")[0]


def parse(
    config_class: type[Config],
    argv: Sequence[str] | None = None,
    description: str | None = None,
    bare: Mapping[str, Any] | None = None,
) -> Config:
    """Builds the configuration of a job; see `build_parser` for its form.

    The words are those of a command line without the program's name; None takes `sys.argv`.

    Raises:
        UserError: A key, a value or a combination is not allowed; names the nearest key.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    for word in words:
        if any("\ud800" <= letter <= "\udfff" for letter in word):
            raise UserError(
                f"{word!a}: is not UTF-8 text, which settings and names on the command line "
                "must be: rename the file, or write the word anew"
            )
    parser = build_parser(config_class, description, bare)
    # Before the parser, which takes some mistakes silently and explains others in Python's words.
    check_settings(config_class, parser.get_defaults(), words, bare or {})
    try:
        built = parser.instantiate(parser.parse_args(words))
    except (ArgumentError, TypeError, ValueError, RecursionError) as error:
        raise _mistake(error) from None
    given = {
        key: value.as_dict() if isinstance(value, Namespace) else value
        for key, value in vars(built).items()
        if key != "config"
    }
    return config_class(**given)


def main(
    config_class: type[Config],
    run: Callable[[Config], Any],
    argv: Sequence[str] | None = None,
    description: str | None = None,
    bare: Mapping[str, Any] | None = None,
) -> int:
    """Parses, runs, and turns the outcome into an exit code for `sys.exit`.

    Returns:
        0 when `run` returned, 2 for a user's mistake (or what its `exit_code` says), 130 when
        interrupted by Ctrl-C and 143 by SIGTERM. Any other exception is a defect and keeps its
        traceback.
    """
    _ready_streams()
    local_ray.quiet()
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_lines())
    logging.basicConfig(handlers=[handler])
    for ours in OURS:
        logging.getLogger(ours).setLevel(logging.INFO)
    try:
        code = _outcome(lambda: run(parse(config_class, argv, description, bare)))
    except BrokenPipeError:
        if not _is_abandoned(sys.stdout):
            raise
        code = _BROKEN_PIPE
    return _flushed(code)


def _outcome(work: Callable[[], Any]) -> int:
    """The exit code of a job, with a message for each mistake."""
    try:
        work()
    except (UserError, ModelError) as error:
        _tell(f"error: {printable(str(error))}")
        return getattr(error, "exit_code", 2)
    except OSError as error:
        if not (told := told_by_system(error)):
            raise
        _tell(f"error: {printable(str(error.filename or 'this machine'))}: {told}")
        return 2
    except KeyboardInterrupt as error:
        _tell(str(error) or "interrupted")
        return 143 if isinstance(error, Terminated) else 130
    return 0


def _lines() -> Lines:
    """The form of the lines of this process, which says where it runs only on a cluster."""
    return Lines("driver" if os.environ.get("RAY_ADDRESS") else "", as_text=True)


def _tell(message: str) -> None:
    """Prints why a job ends: bare for who called it, as a line of its log under `ray job submit`.

    There the log outlives the terminal, and lies among those of other jobs and nodes.
    """
    if SUBMITTED_JOB in os.environ:
        message = _lines().format(logging.makeLogRecord({"name": logger.name, "msg": message}))
    print(message, file=sys.stderr)


def _ready_streams() -> None:
    """Makes sure that any label and any name can be printed, wherever the output goes."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:  # It is closed.
            setattr(sys, name, open(os.devnull, "w", errors="backslashreplace"))
        elif isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _is_abandoned(stream: TextIO) -> bool:
    """Whether the reader of a pipe is gone, as after `| head`."""
    poll = select.poll()
    poll.register(stream.fileno(), 0)
    return any(event & select.POLLERR for _, event in poll.poll(0))


def _flushed(code: int) -> int:
    """Writes the rest of the output, where Python would tell a failure only at its very end."""
    try:
        sys.stdout.flush()
    except OSError as error:
        # What is left in the buffer would be tried again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if isinstance(error, BrokenPipeError):
            return code or _BROKEN_PIPE
        if not code:
            reason = told_by_system(error) or f"{error.strerror}: send it elsewhere"
            _tell(f"error: the output: {reason}")
            return 2
    return code


def start_ray(num_cpus: float, num_gpus: int = 0, least_cpus: float = 0.0) -> None:
    """Connects to the Ray cluster around this process, or starts a local one.

    Inside a cluster (`RAY_ADDRESS` is set, as under `ray job submit`) that cluster is used. Where
    its nodes start only on demand, this waits for them for up to LSEG_CLUSTER_WAIT_S seconds.
    Otherwise Ray starts on this machine with at least `num_cpus` LOGICAL CPUs, which may exceed
    the cores: the training workers hold theirs for the whole run, and data loading needs more.

    Args:
        num_cpus: Logical CPUs that the job holds at once.
        num_gpus: GPUs that it needs at once.
        least_cpus: Logical CPUs with which it can begin on a cluster; 0: all of `num_cpus`.

    Raises:
        UserError: The cluster does not answer, or is smaller than the job needs.
    """
    import ray

    if not ray.is_initialized():
        address = os.environ.get("RAY_ADDRESS")
        if address:
            try:
                ray.init(address=address, log_to_driver=True, logging_level=logging.WARNING)
            except (ConnectionError, RuntimeError) as error:
                raise UserError(
                    f"RAY_ADDRESS={address}: no Ray cluster answers there ({error}): start one "
                    "with `ray start --head`, or unset RAY_ADDRESS to run on this machine alone"
                ) from None
        else:
            # Its workers inherit this, and so import the checkout that this process runs, whatever
            # else is installed.
            paths = [str(REPOSITORY), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
            os.environ["PYTHONPATH"] = os.pathsep.join(dict.fromkeys(filter(None, paths)))
            local_ray.start(
                num_cpus=max(os.cpu_count() or 1, int(-(-num_cpus // 1))),
                log_to_driver=True,
                logging_level=logging.WARNING,
                runtime_env={"worker_process_setup_hook": "jobs.ray_worker.prepare"},
            )
    keep_back_lines(_NEWS_TO_NOBODY)
    needed = {"CPU": least_cpus or num_cpus, "GPU": float(num_gpus)}
    for kind, available in _cluster_resources(needed).items():
        if available < needed[kind]:
            lower = "cluster.num_workers (of an evaluation: workers.num_workers)"
            if kind == "CPU":
                lower = f"start Ray with --num-cpus, or lower {lower}, cpus_per_worker or "
                lower += "data.loader_cpus"
            else:
                lower = f"lower {lower}, or set use_gpu to false"
            raise UserError(
                f"cluster {kind}s={available:g}: this job holds {needed[kind]:g} at once and would "
                f"wait for ever: add nodes, {lower}; for a cluster whose nodes come when they are "
                f"needed, set {_WAIT} to the seconds that they may take"
            )


def _cluster_resources(needed: dict[str, float]) -> dict[str, float]:
    """The cluster's resources of the needed kinds, after LSEG_CLUSTER_WAIT_S seconds at most."""
    import ray
    from ray.autoscaler.sdk import request_resources

    given = os.environ.get(_WAIT, "0")
    try:
        wait_s = float(given)
    except ValueError:
        raise UserError(f"{_WAIT}={given}: must be a number of seconds, 0 for no wait") from None

    def available() -> dict[str, float]:
        there = ray.cluster_resources()
        return {kind: there.get(kind, 0.0) for kind in needed}

    def is_enough() -> bool:
        there = available()
        for kind, number in there.items():
            monitoring.MISSING.set(max(0.0, needed[kind] - number), kind=kind)
        return all(number >= needed[kind] for kind, number in there.items())

    deadline = time.monotonic() + wait_s
    if is_enough() or wait_s <= 0:
        return available()
    there = (f"{number:g} of {needed[kind]:g} {kind}s" for kind, number in available().items())
    logger.info("waiting up to %.0f s for nodes: %s", wait_s, ", ".join(there))
    # The request holds until it is taken back; from then on the job's own tasks keep the nodes.
    num_gpus = int(needed["GPU"])
    if num_gpus:  # Nodes that have both.
        request_resources(bundles=[{"CPU": needed["CPU"] / num_gpus, "GPU": 1}] * num_gpus)
    else:
        request_resources(num_cpus=math.ceil(needed["CPU"]))
    try:
        while not is_enough() and time.monotonic() < deadline:
            time.sleep(1.0)
    finally:
        request_resources(num_cpus=0)
    return available()


def _mistake(error: Exception) -> UserError | ModelError:
    """The message of a configuration's own check, which the parser wraps; else the parser's."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, UserError | ModelError):
            return cause
        cause = cause.__cause__ or cause.__context__
    return UserError(" ".join(str(error).split()))
