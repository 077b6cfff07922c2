"""The checks themselves, made from the driver with a probe in the place of each training worker."""

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from model.errors import ModelError
from pipeline.errors import UserError
from pipeline.preflight.probe import Facts, Probe
from pipeline.preflight.report import Report
from pipeline.storage.open import open_storage
from pipeline.storage.places import resolve_location
from pipeline.training.config import TrainMixConfig

logger = logging.getLogger(__name__)

LIMIT_S = 180.0
"""Longest time that one question to all probes may take."""
MOST_SKEW_S = 60.0
"""S3 refuses requests that are signed 15 minutes apart; half of that would be found too late."""
NOTED_SKEW_S = 2.0
WEIGHTS_LIMIT_S = 900.0
"""The same where a node may have to copy weights of some GB first."""
_LEAST_SHM_GIB = 1.0
_SEE_LOGS = "Ray's dashboard has the log of the worker (check_cluster's actors)"
_BYTES_OF_A_GRADIENT = 4


def check_cluster(
    config: TrainMixConfig,
    start_ray: Callable[[float, int, float], None],
    exchange_mib: int,
    read_s: float,
) -> Report:
    """Tries what a training of this configuration would need, and changes nothing that stays.

    Args:
        config: The training. Its data, storage, tracking and model may be left out in part: what is
            not set is not checked.
        start_ray: Connects to the cluster for a number of CPUs and GPUs, and waits for its nodes.
        exchange_mib: Size of the tensor that the workers sum.
        read_s: Seconds for which every worker reads shards.

    Raises:
        UserError: There is no cluster at the address.
    """
    import ray

    data = replace(config.data, shards=resolve_location("data.shards", config.data.shards))
    config = replace(config, data=data) if config.data.shards else config
    report = Report()
    _check_storage(report, config)
    _check_mlflow(report, config)
    try:
        start_ray(config.logical_cpus, config.fewest_gpus, config.least_cpus)
    except UserError as error:
        if not ray.is_initialized():
            raise
        report.add("cluster", "failed", str(error))
        return report
    with _told(report, "workers"), _probes_in_place(config) as probes:
        facts = _check_nodes(report, config, probes)
        with _told(report, "clocks"):
            _check_clocks(report, probes, facts)
        with _told(report, "weights"):
            _check_weights(report, probes, facts)
        with _told(report, "exchange"):
            _check_exchange(report, config, probes, exchange_mib)
        with _told(report, "shards"):
            _check_reading(report, config, probes, read_s)
    return report


@contextmanager
def _told(report: Report, check: str) -> Iterator[None]:
    """Makes a finding of what keeps a check from its answer, so that the others are still shown.

    A probe may die (an image without a package, no memory) or not answer, and Ray has an exception
    for each.
    """
    try:
        yield
    except Exception as error:
        cause = getattr(error, "cause", None) or error
        text = " ".join(str(cause).split())[-400:] or type(cause).__name__
        report.add(check, "failed", text, "" if isinstance(cause, UserError) else _SEE_LOGS)


@contextmanager
def _probes_in_place(config: TrainMixConfig) -> Iterator[list[Any]]:
    """Actors in the places that training workers would have; both are given back at the end."""
    import ray
    from ray.util.placement_group import placement_group, remove_placement_group
    from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

    cluster = config.cluster
    bundle = {"CPU": cluster.cpus_per_worker} | ({"GPU": 1.0} if cluster.use_gpu else {})
    group = placement_group([bundle] * cluster.num_workers, strategy=cluster.placement)
    probes: list[Any] = []
    try:
        if not group.wait(int(LIMIT_S)):
            raise UserError(
                f"cluster.num_workers={cluster.num_workers}: the cluster has no place for so many "
                f"workers of {bundle} each: end what else runs there, or lower it"
            )
        for rank in range(cluster.num_workers):
            options = ray.remote(Probe).options(
                num_cpus=cluster.cpus_per_worker,
                num_gpus=1 if cluster.use_gpu else 0,
                scheduling_strategy=PlacementGroupSchedulingStrategy(
                    group, placement_group_bundle_index=rank
                ),
            )
            probes.append(options.remote(config))
        yield probes
    finally:
        for probe in probes:
            ray.kill(probe)
        remove_placement_group(group)


def _ask(references: list[Any], limit_s: float = LIMIT_S) -> list[Any]:
    """All answers, after `limit_s` at most."""
    import ray

    return ray.get(references, timeout=limit_s)


def _check_nodes(report: Report, config: TrainMixConfig, probes: list[Any]) -> list[Facts]:
    facts: list[Facts] = _ask([probe.facts.remote() for probe in probes])
    nodes = {each.node: each for each in facts}
    report.add("nodes", "ok", f"{len(probes)} workers on {len(nodes)} nodes")
    if config.cluster.use_gpu:
        for node in nodes:
            mine = [each for each in facts if each.node == node]
            problems = {each.problem for each in mine if each.problem}
            what = ", ".join(sorted({f"{each.gpu} {each.gpu_gib:.0f} GiB" for each in mine}))
            versions = f"driver {mine[0].driver or 'unknown'}, CUDA {mine[0].cuda or 'none'}"
            if problems:
                advice = "update the driver, or choose an image with a torch that it can run"
                report.add(f"gpu {node}", "failed", "; ".join(sorted(problems)), advice)
            else:
                report.add(f"gpu {node}", "ok", f"{len(mine)} x {what}, {versions}")
        if len({(each.gpu, each.driver) for each in facts}) > 1:
            advice = "the slowest sets the pace: use nodes of one kind"
            report.add("gpus", "remark", "the nodes differ in GPU or driver", advice)
    for node, each in nodes.items():
        is_small = each.shm_gib < _LEAST_SHM_GIB
        advice = "mount a volume of `medium: Memory` there (docker: --shm-size)" if is_small else ""
        found = f"{each.shm_gib:.1f} GiB"
        report.add(f"/dev/shm {node}", "failed" if is_small else "ok", found, advice)
        if config.data.cache_gib and "://" in config.data.shards:
            found = f"{each.cache}: {each.cache_free_gib:.0f} GiB free"
            if each.cache_problem:
                report.add(f"cache {node}", "failed", each.cache_problem)
            elif each.cache_free_gib < config.data.cache_gib:
                advice = f"lower data.cache_gib={config.data.cache_gib:g}, or make room"
                report.add(f"cache {node}", "remark", found, advice)
            else:
                report.add(f"cache {node}", "ok", found)
    return facts


def _check_clocks(report: Report, probes: list[Any], facts: list[Facts]) -> None:
    """The largest difference between the clocks of two nodes, the driver's among them."""
    one_a_node = {each.node: probe for each, probe in zip(facts, probes, strict=True)}
    offsets = {"driver": 0.0}
    for node, probe in one_a_node.items():
        tries = []
        for _ in range(5):
            before = time.time()
            (there,) = _ask([probe.clock.remote()])
            after = time.time()
            tries.append((after - before, there - (before + after) / 2))
        offsets[node] = min(tries)[1]  # That of the quickest answer.
    skew_s = max(offsets.values()) - min(offsets.values())
    found = f"at most {skew_s:.2f} s apart"
    if skew_s > NOTED_SKEW_S:
        last, first = max(offsets, key=offsets.__getitem__), min(offsets, key=offsets.__getitem__)
        status = "failed" if skew_s > MOST_SKEW_S else "remark"
        report.add("clocks", status, f"{found}: {last} is ahead of {first}", "run NTP on the nodes")
    else:
        report.add("clocks", "ok", found, skew_s=round(skew_s, 3))


def _check_weights(report: Report, probes: list[Any], facts: list[Facts]) -> None:
    one_a_node = {each.node: probe for each, probe in zip(facts, probes, strict=True)}
    asked = [probe.weights.remote() for probe in one_a_node.values()]
    problems = _ask(asked, WEIGHTS_LIMIT_S)
    for node, problem in zip(one_a_node, problems, strict=True):
        if problem:
            report.add(f"weights {node}", "failed", problem)
    if not any(problems):
        report.add("weights", "ok", "at hand, or the hub answers")


def _check_exchange(
    report: Report, config: TrainMixConfig, probes: list[Any], exchange_mib: int
) -> None:
    """Sums a tensor over all workers, and says what that means for the gradients."""
    world = len(probes)
    if world == 1:
        report.add("exchange", "ok", "one worker exchanges nothing")
        return
    backend = "NCCL" if config.cluster.use_gpu else "gloo"
    try:
        (address,) = _ask([probes[0].meeting_point.remote()])
        seconds = max(
            _ask(
                [
                    probe.exchange.remote(rank, world, address, exchange_mib, LIMIT_S / 3)
                    for rank, probe in enumerate(probes)
                ]
            )
        )
    # Whatever torch, NCCL or gloo raise, or Ray where they never return.
    except Exception as error:
        reason = " ".join(str(error).split())[-300:] or type(error).__name__
        advice = "the workers must reach each other at every port: check NCCL_SOCKET_IFNAME"
        report.add("exchange", "failed", f"{backend}: {reason}", f"{advice} and network policies")
        return
    sent = 2 * (world - 1) / world * exchange_mib * 2**20
    gb_per_s = sent / seconds / 1e9
    gradients = _gradient_bytes(config)
    step_s = gradients / (exchange_mib * 2**20) * seconds
    found = f"{backend}: {gb_per_s:.2f} GB/s a worker"
    if gradients:
        found += f": {gradients / 1e9:.2f} GB of gradients in {step_s:.2f} s a step"
    report.add("exchange", "ok", found, gb_per_s=round(gb_per_s, 3), step_s=round(step_s, 4))


def _gradient_bytes(config: TrainMixConfig) -> int:
    """Bytes of gradients that the workers sum in a step; 0 where the model cannot be built here."""
    from pipeline.training.driver.preflight import check_training
    from pipeline.training.state.optimizer import build_optimizer

    try:
        lseg = check_training(config)
    except ModelError as error:
        logger.warning("the model cannot be built: %s", error)
        return 0
    build_optimizer(lseg, config.train)  # Which freezes what is not to train.
    trained = sum(each.numel() for each in lseg.parameters() if each.requires_grad)
    return trained * _BYTES_OF_A_GRADIENT


def _check_reading(
    report: Report, config: TrainMixConfig, probes: list[Any], read_s: float
) -> None:
    """Lets every worker read shards at the same time."""
    if not config.data.shards:
        report.add("shards", "remark", "data.shards is not set", "nothing was read")
        return
    files = [
        (entry.path, entry.size)
        for entry in open_storage(config.data.shards).list()
        if entry.path.endswith(".tar") and entry.size
    ]
    if not files:
        advice = "name the folder that jobs/prepare_shards.py wrote"
        report.add("shards", "failed", f"data.shards={config.data.shards}: no shard", advice)
        return
    shares = [files[rank % len(files) :: len(probes)] for rank in range(len(probes))]
    answers = _ask(
        [probe.read.remote(share, read_s) for probe, share in zip(probes, shares, strict=True)]
    )
    mb_per_s = sum(size / seconds for size, seconds in answers) / 1e6
    found = f"{mb_per_s:.0f} MB/s by all workers together, {len(files)} shards"
    report.add("shards", "ok", found, mb_per_s=round(mb_per_s, 1))


def _check_storage(report: Report, config: TrainMixConfig) -> None:
    """Writes an object into the storage of the runs, reads it and deletes it."""
    name = f".check-cluster-{time.time_ns()}"
    try:
        place = resolve_location("run.storage", config.run.storage)
        made = _missing_folders(place)
        storage = open_storage(place)
        try:
            storage.write(name, b"check")
            back = storage.read(name)
        finally:
            with suppress(UserError, OSError):  # What kept it from being read is what is told.
                storage.delete(name)
            for folder in made:
                with suppress(OSError):  # Somebody has put something there meanwhile.
                    folder.rmdir()
    except (UserError, OSError) as error:
        report.add("run.storage", "failed", str(error))
        return
    if back == b"check":
        report.add("run.storage", "ok", f"{config.run.storage} takes objects and gives them back")
    else:
        found = f"run.storage={config.run.storage}: gave back other bytes than were written"
        report.add("run.storage", "failed", found, "do not train into it")


def _missing_folders(place: str) -> list[Path]:
    """The folders that writing into a local place makes, the innermost first."""
    if "://" in place:
        return []
    return [each for each in (Path(place), *Path(place).parents) if not each.exists()]


def _check_mlflow(report: Report, config: TrainMixConfig) -> None:
    from pipeline.tracking.config import server_uri
    from pipeline.tracking.redaction import redact_text
    from pipeline.tracking.trial import try_server

    try:
        uri = redact_text(server_uri(config.tracking))
    except UserError:
        advice = "set MLFLOW_TRACKING_URI for a server"
        report.add("mlflow", "remark", "a file beside the run, which nobody else sees", advice)
        return
    seconds, problem = try_server(config.tracking)
    if problem:
        advice = "check address, login and rights of MLflow"
        report.add("mlflow", "failed", f"tracking.uri={uri}: {problem}", advice)
    else:
        report.add("mlflow", "ok", f"{uri} took a run in {seconds:.1f} s", seconds=seconds)
