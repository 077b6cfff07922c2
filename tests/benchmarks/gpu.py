"""All that a machine with one GPU can say about the network, in one command of under 9 minutes.

    python -m tests.benchmarks.gpu [--seconds 520] [--out runs/gpu.json]
    python -m tests.benchmarks.gpu --smallest    # each kind of case once, tiny, on the CPU

Training steps of ViT-B/16, ViT-L/16 and ResNet101 at 480 px: in fp32, bf16, bf16 with channels-last
convolutions and that compiled, against the habits of the published code (labels encoded again in
every step with gradients, the loss on whole upsampled logits, fp32); with 150 and 194 labels; and
the largest batch that fits. Evaluation of one picture at six scales, mirrored. A regulariser of
depth 4 with the published initialisation, from a negative and from a positive first bias, on
rendered scenes. Nothing is downloaded: weights are random, which costs the same.

Each backbone has a process of its own, in which a case that runs out of memory is told and left.
The most telling cases come first; what the time does not reach is named. A step's time is the
median of several after the first three; the share of peak counts the operations of forward and
backward, as the dry run does, against the data sheet's dense bf16 (for fp32 cases too).
"""

import argparse
import json
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

from tests.benchmarks.train_step import BF16_PEAK_TFLOPS, habitual_step

BACKBONES = {
    "ViT-B/16": "vit_base_patch16_384",
    "ViT-L/16": "vit_large_patch16_384",
    "ResNet101": "resnet101",
    "tiny": "vit_tiny_patch16_224",
}
VARIANTS = {
    "fp32": {},
    "bf16": {"bf16": True},
    "bf16 channels-last": {"bf16": True, "channels_last": True},
    "compiled": {"bf16": True, "channels_last": True, "compiled": True},
}
LARGEST = (32, 64, 128, 256)
"""Batches that are tried for the largest one."""
WARM, TIMED = 3, 5
DIM = 512


@dataclass(frozen=True)
class Scale:
    """How large the cases are."""

    device: str
    size_px: int
    batch: int
    labels: tuple[int, ...]
    backbones: tuple[str, ...]
    picture: tuple[int, int]
    regularizer_steps: int
    variants: tuple[str, ...] = tuple(VARIANTS)


FULL = Scale("cuda", 480, 16, (150, 194), ("ViT-B/16", "ViT-L/16", "ResNet101"), (683, 1024), 300)
SMALLEST = Scale("cpu", 64, 1, (5,), ("tiny",), (64, 96), 25, ("fp32", "bf16"))


def network(backbone: str) -> Any:
    """A network with random weights, on the CPU."""
    import torch

    from model.config import BackboneConfig, ModelConfig
    from model.lseg import build_lseg

    torch.manual_seed(0)
    given = BackboneConfig(name=BACKBONES[backbone], pretrained=False)
    if backbone == "tiny":
        sizes = {"patch_size": 8, "depth": 4, "embed_dim": 32, "num_heads": 2, "img_size": 64}
        given = BackboneConfig(name=given.name, pretrained=False, kwargs=sizes)
    features = 16 if backbone == "tiny" else 256
    return build_lseg(ModelConfig(backbone=given, features=features), DIM)


def training(
    scale: Scale, backbone: str, labels: int, batch: int, variant: str
) -> dict[str, float]:
    """Times steps of ours, or of the `habits`."""
    import torch

    from model.loss import segmentation_loss

    cuda, how = scale.device == "cuda", VARIANTS.get(variant, {})
    lseg = network(backbone).train().to(scale.device)
    if how.get("channels_last"):
        lseg.channels_last()
    called = cast(Any, torch.compile(lseg)) if how.get("compiled") else lseg
    optimizer = torch.optim.SGD(lseg.parameter_groups(1e-4), momentum=0.9, fused=cuda or None)
    shape = batch, scale.size_px, scale.size_px
    image = torch.randint(0, 256, (*shape, 3), dtype=torch.uint8, device=scale.device)
    label = torch.randint(0, labels, shape, dtype=torch.uint8, device=scale.device)
    text = torch.randn(labels, DIM, device=scale.device)
    if variant == "habits":
        clip, tokens = text_tower(labels, scale.device)

    def step() -> None:
        if variant == "habits":
            loss = habitual_step(lseg, clip, tokens, lseg.normalize(image), label)
        else:
            with torch.autocast(scale.device, torch.bfloat16, enabled=how.get("bf16", False)):
                logits = called(lseg.normalize(image), text)
            loss_sum, count = segmentation_loss(logits, label)
            loss = loss_sum / count
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    found = timed(step, scale.device)
    found["images_per_s"] = batch / found["step_s"]
    found["peak_share"] = peak_share(lseg, image, text, found["step_s"], scale.device)
    return found


def text_tower(labels: int, device: str) -> tuple[Any, Any]:
    """CLIP's, with random weights, and the tokens of some labels."""
    import open_clip

    clip = cast(Any, open_clip.create_model("ViT-B-32-quickgelu", pretrained=None)).to(device)
    del clip.visual
    words = [f"label {index}" for index in range(labels)]
    return clip, open_clip.get_tokenizer("ViT-B-32-quickgelu")(words).to(device)


def timed(step: Callable[[], object], device: str, count: int = TIMED) -> dict[str, float]:
    """Median seconds of a step, its first three left out, and the peak of memory."""
    import torch

    cuda = device == "cuda"
    if cuda:
        torch.cuda.reset_peak_memory_stats()
    seconds = []
    for number in range(WARM + count):
        began = time.perf_counter()
        step()
        if cuda:
            torch.cuda.synchronize()
        if number >= WARM:
            seconds.append(time.perf_counter() - began)
    peak = torch.cuda.max_memory_allocated() / 2**30 if cuda else 0.0
    return {"step_s": statistics.median(seconds), "peak_gib": peak}


def peak_share(lseg: Any, image: Any, text: Any, seconds: float, device: str) -> float:
    """Operations of forward and backward over what the data sheet allows in that time."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    name = torch.cuda.get_device_name() if device == "cuda" else ""
    peak = next((tflops for key, tflops in BF16_PEAK_TFLOPS.items() if key in name), 0)
    if not peak:
        return 0.0
    with FlopCounterMode(display=False) as counter, torch.autocast(device, torch.bfloat16):
        lseg(lseg.normalize(image[:1]), text).sum().backward()
    return counter.get_total_flops() * len(image) / seconds / (peak * 1e12)


def largest(scale: Scale, backbone: str) -> dict[str, float]:
    """The largest batch of bf16 channels-last steps that fits, of those that are tried."""
    import torch

    fits = {"batch": 0.0}
    for batch in LARGEST if scale.device == "cuda" else (1, 2):
        with suppress(torch.cuda.OutOfMemoryError):
            done = training(scale, backbone, scale.labels[0], batch, "bf16 channels-last")
            fits = {"batch": float(batch), **done}
        if fits["batch"] != batch:
            break
    return fits


def evaluation(scale: Scale, backbone: str) -> dict[str, float]:
    """Seconds for one picture, by the published protocol and as a whole."""
    import torch

    from model.sliding import PUBLISHED, WHOLE, sliding_label_ids

    lseg = network(backbone).eval().to(scale.device)
    image = torch.randn(1, 3, *scale.picture, device=scale.device)
    text = torch.randn(scale.labels[0], DIM, device=scale.device)
    found = {}
    # As published where a picture is of the usual size; smaller ones get views as small.
    sizes = {} if scale is FULL else {"base_px": max(scale.picture), "window_px": scale.size_px}
    whole = replace(WHOLE, **{**sizes, "window_px": None})
    for name, mode in (("multi_scale", replace(PUBLISHED, **sizes)), ("whole", whole)):

        def look(mode: Any = mode) -> None:
            with torch.no_grad(), torch.autocast(scale.device, torch.bfloat16):
                sliding_label_ids(lseg, image, text, mode)

        done = timed(look, scale.device, 3 if scale.device == "cuda" else 1)
        found |= {f"{name}_s": done["step_s"], f"{name}_gib": done["peak_gib"]}
    return found


def regularizer(scale: Scale, sign: int) -> dict[str, float]:
    """A block of depth 4 as published, from a first bias of this sign, and the identity."""
    from model.config import RegularizerConfig
    from tests.benchmarks import regularizer_depth as study

    found = {}
    seeds = study.seeds_of_both_signs(1)
    seed = next(
        s for s in seeds if (study.first_bias(study.reference_block(4, s)[1]) > 0) == (sign > 0)
    )
    for init in ("reference", "identity"):
        kind = {"kind": "depthwise", "depth": 4, "activation": "lrelu", "init": init}
        block = RegularizerConfig(**cast(Any, kind))
        run = study.train((block, seed, scale.regularizer_steps, study.BASE_LR), scale.device)
        found |= {f"{init}_loss": run.loss, f"{init}_gain": run.end_gain}
        found[f"{init}_trained"] = float(run.verdict == "trained")
    return found


Case = tuple[str, Callable[[], dict[str, float]]]


def cases(scale: Scale, group: str) -> Iterator[Case]:
    """The cases of one process, the most telling first."""
    if group == "regularizer":
        for sign in (-1, 1):
            yield (
                f"depth 4, first bias {'-+'[sign > 0]}",
                lambda sign=sign: regularizer(scale, sign),
            )
        return
    first, *others = scale.labels

    def step(labels: int, variant: str) -> Case:
        name = f"{variant}, {labels} labels"
        return name, lambda: training(scale, group, labels, scale.batch, variant)

    for variant in scale.variants:
        yield step(first, variant)
    yield step(first, "habits")
    yield "largest batch", lambda: largest(scale, group)
    if group != "ResNet101":
        yield "evaluation", lambda: evaluation(scale, group)
    for labels in others:
        yield step(labels, "bf16 channels-last")


def run_group(scale: Scale, group: str) -> None:
    """Runs the cases of one process; prints each as a line of JSON."""
    import torch

    for name, measure in cases(scale, group):
        try:
            found: Any = measure()
        except torch.cuda.OutOfMemoryError:
            found = {"out_of_memory": 1.0}
        if scale.device == "cuda":
            torch.cuda.empty_cache()
        print(json.dumps({"group": group, "case": name, **found}), flush=True)


def run_all(scale: Scale, seconds: float) -> dict[str, Any]:
    """Every group in a process of its own, until the time is over."""
    deadline, rows, missing = time.monotonic() + seconds, [], []
    groups = (*scale.backbones, "regularizer")
    for number, group in enumerate(groups):
        # Who is left shares what is left; a quick group leaves more to the others.
        limit = (deadline - time.monotonic()) / (len(groups) - number)
        command = [sys.executable, "-W", "ignore", "-m", "tests.benchmarks.gpu", "--group", group]
        command += ["--smallest"] if scale is SMALLEST else []
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        timer = threading.Timer(limit, process.kill)
        timer.start()
        assert process.stdout is not None
        done = [json.loads(line) for line in process.stdout if line.startswith("{")]
        timer.cancel()
        code = process.wait()
        for row in done:
            show(row)
        rows += done
        names = [name for name, _ in cases(scale, group)]
        left = [f"{group}: {name}" for name in names[len(done) :]]
        if left:
            print(f"not measured ({'time' if code == -9 else f'exit {code}'}): {left}", flush=True)
        missing += left
    return {"device": device_name(scale), "rows": rows, "missing": missing}


def show(row: dict[str, Any]) -> None:
    """Prints one case."""
    values = {key: value for key, value in row.items() if key not in ("group", "case")}
    text = "  ".join(f"{key} {value:.4g}" for key, value in values.items())
    print(f"{row['group']:12}{row['case']:32}{text}", flush=True)


def device_name(scale: Scale) -> str:
    """The GPU and the version of torch."""
    import torch

    name = torch.cuda.get_device_name() if scale.device == "cuda" else "CPU"
    return f"{name}, torch {torch.__version__}"


def main() -> int:
    """Prints the table and writes the figures."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seconds", type=float, default=520.0)
    parser.add_argument("--out", type=Path, default=Path("runs/gpu.json"))
    parser.add_argument("--smallest", action="store_true")
    parser.add_argument("--group", help=argparse.SUPPRESS)
    args = parser.parse_args()
    scale = SMALLEST if args.smallest else FULL
    if args.group:
        run_group(scale, args.group)
        return 0
    found = run_all(scale, args.seconds)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(found, indent=1) + "\n")
    return int(not found["rows"])


if __name__ == "__main__":
    sys.exit(main())
