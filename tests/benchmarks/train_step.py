"""What a training step costs: ours against the habits of the published code.

    python -m tests.benchmarks.train_step [--backbones vitb32,vitl16] [--steps 2] [--threads 2]

One image of 480x480, 150 labels, SGD. The habits: the CLIP text tower encodes the labels in every
step, with gradients; the head runs at half resolution; the logits are upsampled whole for the
loss. Every case runs in a process of its own, once to warm up and then `--steps` times; the median
is printed. Weights are random: the cost does not depend on them. On a GPU also ours in bfloat16,
compiled.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any, cast

SIZE_PX = 480
NUM_LABELS = 150
BACKBONES = {"vitb32": "vit_base_patch32_384", "vitl16": "vit_large_patch16_384"}
TARGETS = {"vitb32": (5.0, 3.0), "vitl16": (2.3, None)}
"""Wanted ratios habits / ours of CPU seconds and of peak memory."""
BF16_PEAK_TFLOPS = {"H200": 989, "H100": 989, "A100": 312, "L40S": 362, "A10": 125, "L4": 121}


def habitual_step(lseg: Any, clip: Any, tokens: Any, image: Any, label: Any) -> Any:
    """The published forward pass and loss, at its published cost."""
    import torch
    from torch.nn import functional

    from model.head.dpt import upsample_x2

    text = functional.normalize(clip.encode_text(tokens).float(), dim=-1)
    levels = [
        block(level) for block, level in zip(lseg.reassemble, lseg.backbone(image), strict=True)
    ]
    pixels = functional.normalize(lseg.decoder.head(upsample_x2(lseg.decoder(levels))), dim=1)
    logits = torch.einsum("kc,bchw->bkhw", text, pixels) / 0.07
    return functional.cross_entropy(upsample_x2(logits), label.long(), ignore_index=255)


def measure(backbone: str, ours: bool, device: str, steps: int, threads: int) -> dict[str, float]:
    """Times one case in this process."""
    import open_clip
    import torch

    from model.config import BackboneConfig, ModelConfig
    from model.loss import segmentation_loss
    from model.lseg import build_lseg

    torch.set_num_threads(threads)
    torch.manual_seed(0)
    config = ModelConfig(backbone=BackboneConfig(name=BACKBONES[backbone], pretrained=False))
    lseg = build_lseg(config, 512).train().to(device)
    optimizer = torch.optim.SGD(
        lseg.parameter_groups(1e-4), momentum=0.9, weight_decay=1e-4, fused=ours
    )
    batch_size = 1 if device == "cpu" else 16
    image = torch.randn(batch_size, 3, SIZE_PX, SIZE_PX, device=device)
    label = torch.randint(0, NUM_LABELS, (batch_size, SIZE_PX, SIZE_PX), dtype=torch.uint8)
    label = label.to(device)
    step: Callable[[], Any]
    if ours:
        text = torch.randn(NUM_LABELS, 512, device=device)
        on_gpu = device != "cpu"
        network = cast(Any, lseg)
        if on_gpu:
            network = torch.compile(lseg.to(memory_format=torch.channels_last))
            image = image.contiguous(memory_format=torch.channels_last)

        def step() -> Any:
            with torch.autocast(device, torch.bfloat16, enabled=on_gpu):
                logits = network(image, text)
            loss_sum, count = segmentation_loss(logits, label)
            return loss_sum / count

    else:
        clip = cast(Any, open_clip.create_model("ViT-B-32-quickgelu", pretrained=None)).to(device)
        del clip.visual
        labels = [f"label {index}" for index in range(NUM_LABELS)]
        tokens = open_clip.get_tokenizer("ViT-B-32-quickgelu")(labels).to(device)

        def step() -> Any:
            return habitual_step(lseg, clip, tokens, image, label)

    cpu_s, wall_s = [], []
    for index in range(steps + 1 if device == "cpu" else steps + 4):
        cpu, wall = time.process_time(), time.perf_counter()
        loss = step()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        loss.item()  # host synchronisation: the step is over
        if index >= (1 if device == "cpu" else 4):
            cpu_s.append(time.process_time() - cpu)
            wall_s.append(time.perf_counter() - wall)
    if device == "cpu":
        peak_gib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    else:
        peak_gib = torch.cuda.max_memory_allocated() / 2**30
    found = {
        "cpu_s": statistics.median(cpu_s),
        "wall_s": statistics.median(wall_s),
        "peak_gib": peak_gib,
        "images_per_s": batch_size / statistics.median(wall_s),
    }
    if device != "cpu":
        from torch.utils.flop_counter import FlopCounterMode

        with FlopCounterMode(display=False) as counter:
            lseg(image, torch.randn(NUM_LABELS, 512, device=device)).sum().backward()
        name = torch.cuda.get_device_name()
        peak = next((tflops for key, tflops in BF16_PEAK_TFLOPS.items() if key in name), None)
        if peak:
            found["peak_share"] = counter.get_total_flops() / found["wall_s"] / (peak * 1e12)
    return found


def in_own_process(backbone: str, ours: bool, device: str, args: Any) -> dict[str, float]:
    """Runs one case apart, so that peak memory is its own."""
    command = [sys.executable, "-m", "tests.benchmarks.train_step", "--case", backbone]
    command += ["--device", device, "--steps", str(args.steps), "--threads", str(args.threads)]
    command += ["--ours"] if ours else []
    # Waiting OpenMP threads would otherwise count as CPU seconds, on both sides.
    environment = {**os.environ, "OMP_WAIT_POLICY": "PASSIVE"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if done.returncode:
        sys.exit(done.stderr)
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--backbones", default=",".join(BACKBONES))
    parser.add_argument("--steps", type=int, default=1)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--device", help="cpu or cuda; by default both where there is a GPU")
    parser.add_argument("--case", choices=[*BACKBONES], help=argparse.SUPPRESS)
    parser.add_argument("--ours", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.case:
        found = measure(args.case, args.ours, args.device, args.steps, args.threads)
        print(json.dumps(found))
        return
    import torch

    devices = [args.device] if args.device else ["cpu"]
    if not args.device and torch.cuda.is_available():
        devices.append("cuda")
    for device in devices:
        print(f"\n{device}, {SIZE_PX}x{SIZE_PX}, {NUM_LABELS} labels, {args.threads} threads")
        print(f"{'case':24}{'CPU s':>9}{'wall s':>9}{'GiB':>8}{'images/s':>10}{'of peak':>9}")
        for backbone in args.backbones.split(","):
            rows = {
                name: in_own_process(backbone, name == "ours", device, args)
                for name in ("habits", "ours")
            }
            for name, row in rows.items():
                share = f"{row['peak_share']:.0%}" if "peak_share" in row else ""
                print(
                    f"{backbone + ' ' + name:24}{row['cpu_s']:9.2f}{row['wall_s']:9.2f}"
                    f"{row['peak_gib']:8.2f}{row['images_per_s']:10.2f}{share:>9}",
                    flush=True,
                )
            ratios = {
                key: rows["habits"][key] / rows["ours"][key]
                for key in ("cpu_s", "wall_s", "peak_gib")
            }
            print(
                f"{backbone + ' habits / ours':24}{ratios['cpu_s']:8.1f}x{ratios['wall_s']:8.1f}x"
                f"{ratios['peak_gib']:7.1f}x",
                flush=True,
            )
            if device == "cpu":
                cpu_target, memory_target = TARGETS[backbone]
                reached = ratios["cpu_s"] >= cpu_target and (
                    memory_target is None or ratios["peak_gib"] >= memory_target
                )
                wanted = f"{cpu_target}x CPU" + (
                    f", {memory_target}x memory" if memory_target else ""
                )
                print(f"{'wanted: ' + wanted:50}{'reached' if reached else 'MISSED'}", flush=True)


if __name__ == "__main__":
    main()
