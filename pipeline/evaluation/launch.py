"""An evaluation from its configuration to its report."""

import contextlib
import logging
import re
import shutil
import sys
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from rich.console import Console

from model.checkpoint import is_uri
from pipeline import monitoring
from pipeline.checkpoints.files import checkpoint_fingerprint
from pipeline.checkpoints.provenance import Provenance, open_checkpoint
from pipeline.checkpoints.resolvers import pinned
from pipeline.errors import UserError
from pipeline.evaluation.config import EvaluateConfig
from pipeline.evaluation.figures import figures_of
from pipeline.evaluation.leak import check_leaks
from pipeline.evaluation.page import link_run, write_page
from pipeline.evaluation.protocols import make_plan, size_remarks
from pipeline.evaluation.record import destination, open_run, record
from pipeline.evaluation.report import EvaluationReport
from pipeline.evaluation.runner import Runner, resolve_workers
from pipeline.storage.open import open_storage
from pipeline.storage.places import ensure_writable_dir, try_writable_place
from pipeline.tracking.preflight import check_server

logger = logging.getLogger(__name__)

MANY_SCORES = 40_000
"""Images times labels above which the cost is said before it is paid, where there is no GPU."""


class StartRay(Protocol):
    """Connects to Ray, or starts it, and waits for what a job needs at once."""

    def __call__(self, num_cpus: float, num_gpus: int = 0, least_cpus: float = 0.0) -> None:
        """Raises UserError where the cluster is smaller; `jobs.cli.start_ray` says more."""


@dataclass(frozen=True)
class Evaluation:
    """The outcome of an evaluation."""

    report: dict[str, Any]
    """The content of report.json."""
    folder: str
    """Where its files lie."""
    ui_hint: str
    """How to open the MLflow run."""
    seconds: float


def evaluate(config: EvaluateConfig, start_ray: StartRay | None = None) -> Evaluation:
    """Scores a checkpoint by a protocol, writes the report, and records it.

    Args:
        config: What to score, and how.
        start_ray: Called with the numbers of CPUs and GPUs once Ray is needed, which is after all
            that can be checked without it; None where it is running.

    Raises:
        UserError: Data, checkpoint or settings do not fit each other.
        ModelError: The checkpoint is damaged.
        MlflowRefused: MLflow answers, and would never take the figures.
    """
    began = time.perf_counter()
    config = with_absolute_places(config)
    try_writable_place("out", config.out)
    checkpoint, provenance = open_checkpoint(config.checkpoint)
    name = folder_name(config)
    out = f"{config.out}/{name}"
    work = _local_folder(out)
    found = destination(config, provenance, work)
    try:
        check_server(found.tracking)
    except UserError:
        with contextlib.suppress(OSError):  # An earlier evaluation left its files.
            work.rmdir()
        raise
    if config.protocol == "behaviours":
        from pipeline.evaluation.behaviours.run import evaluate_behaviours

        content = evaluate_behaviours(config, checkpoint, provenance, work)
    else:
        content = _evaluate(config, checkpoint, provenance, out, work, start_ray)
    tracker = open_run(config, found)
    tracker.wait_for_run(30)
    hint = tracker.ui_hint()
    link_run(work, hint)
    record(tracker, config, content, provenance.step, work)
    tracker.close("FINISHED", 60.0)
    if "://" in out:
        storage = open_storage(out)
        for path in sorted(work.iterdir()):
            storage.upload(path.name, path)
        shutil.rmtree(work)
    return Evaluation(content, out, hint, time.perf_counter() - began)


def _evaluate(
    config: EvaluateConfig,
    checkpoint: Path,
    provenance: Provenance,
    out: str,
    work: Path,
    start_ray: StartRay | None,
) -> dict[str, Any]:
    plan = make_plan(config, provenance.labels, provenance.trained_size)
    for seen in dict.fromkeys(part.geometry for part in plan.parts):
        logger.info("images are seen %s", seen)
    leak = check_leaks(config, plan, provenance)
    if start_ray is not None:
        least = max(1, config.workers.num_workers)
        start_ray(least * config.workers.cpus_per_worker, least if config.workers.use_gpu else 0)
    config = replace(config, workers=resolve_workers(config.workers))
    total = sum(len(part.source) for part in plan.parts)
    logger.info(
        "%s: %d images in %s, on %d %s",
        config.protocol,
        total,
        ", ".join(part.name for part in plan.parts),
        config.workers.num_workers,
        "GPUs" if config.workers.use_gpu else "CPU workers",
    )
    if cost := cost_of(config, total, max(len(part.space.texts) for part in plan.parts)):
        logger.warning(cost)
    if any(part.geometry.mode == "published" for part in plan.parts) and not config.workers.use_gpu:
        logger.warning(
            "six scales and flips on CPUs take some fifty forward passes for each image; "
            "--geometry.mode whole is one"
        )
    # Workers on this machine read what the driver fetched; others fetch for themselves.
    active = monitoring.EVALUATION_ACTIVE.while_in(protocol=config.protocol)
    with active, Runner(config, plan.parts, out) as runner:
        counts = runner.run()
        figures, bytes_of = figures_of(plan, counts), checkpoint_fingerprint(checkpoint)
        report = EvaluationReport(
            config,
            plan,
            figures,
            counts,
            leak,
            runner.fingerprint,
            bytes_of,
            size_remarks(plan, provenance.trained_size),
        )
        report.write(work)
        write_page(report, runner.examples, work)
        runner.clean()
        for empty in (work / "partial" / runner.fingerprint, work / "partial"):
            with contextlib.suppress(OSError):  # Not there, or with counts of another evaluation.
                empty.rmdir()
    # A log is no terminal, and has no width of its own.
    console = Console(file=sys.stderr, width=None if sys.stderr.isatty() else 160)
    for table in report.tables():
        console.print(table)
    for line in (*leak.reasons, *plan.notes, *report.remarks):
        logger.info("note: %s", line)
    return report.to_dict()


def cost_of(config: EvaluateConfig, images: int, labels: int) -> str:
    """Says what many scores cost without a GPU, and how to ask fewer; empty where they are few."""
    if images * labels <= MANY_SCORES or config.workers.use_gpu:
        return ""
    trained = "; --labels checkpoint asks those that were trained" if config.labels == "all" else ""
    return (
        f"each of {images} images is asked {labels} labels without a GPU, which takes a second or "
        f"more of a core for each{trained}; --max_images N takes fewer images"
    )


def folder_name(config: EvaluateConfig) -> str:
    """The folder below `out`: checkpoint, protocol, and what departs from it."""
    parts = [part for part in re.split(r"[/\\]+", config.checkpoint.rstrip("/")) if part]
    words = "-".join(parts[-2:]) if len(parts) > 1 else parts[0]
    return re.sub(r"[^\w.\-]+", "-", f"{words}-{config.variant}").strip("-.")


def with_absolute_places(config: EvaluateConfig) -> EvaluateConfig:
    """Makes every place mean the same in all processes, as long as the job runs.

    The working folder of a Ray worker is another, and an alias of the registry may move.
    """

    def fix(uri: str) -> str:
        if not uri or is_uri(uri):
            return uri
        return str(Path(uri).expanduser().resolve())

    return replace(
        config,
        checkpoint=pinned(fix(config.checkpoint)),
        out=fix(config.out),
        shards=fix(config.shards),
        splits=fix(config.splits),
        roots={name: fix(root) for name, root in config.roots.items()},
    )


def _local_folder(out: str) -> Path:
    if "://" in out:
        return Path(tempfile.mkdtemp(prefix="lseg-evaluation-"))
    folder = Path(out)
    ensure_writable_dir("out", out, folder)
    return folder
