"""Two gloo processes with half a batch each against one BatchNorm2d with the whole batch."""

import socket
from pathlib import Path

import pytest
import torch
from torch import distributed as dist
from torch import nn
from torch.multiprocessing.spawn import spawn

from pipeline.training.worker.batchnorm import CpuSyncBatchNorm2d, synchronise

CHANNELS = 3

OPTIONS = {
    "default": {},
    "bare": {"affine": False, "track_running_stats": False},
    "slow": {"momentum": 0.3, "eps": 0.1},
}


def whole_batch() -> torch.Tensor:
    """(6, 3, 5, 7) float32; the halves differ in mean and spread."""
    generator = torch.Generator().manual_seed(0)
    batch = torch.randn(6, CHANNELS, 5, 7, generator=generator)
    batch[3:] = batch[3:] * 4 + torch.tensor([3.0, -1.0, 0.5])[:, None, None]
    return batch


def new_norm(**options) -> nn.BatchNorm2d:
    norm = nn.BatchNorm2d(CHANNELS, **options)
    if norm.affine:
        nn.init.constant_(norm.weight, 1.5)
        nn.init.constant_(norm.bias, 0.25)
    return norm


def pass_twice(norm: nn.Module, batch: torch.Tensor) -> dict[str, torch.Tensor]:
    """Two steps' worth of passes; the gradients are those of a sum over the samples."""
    # Not symmetric: a batch norm hides the gradient of its mean from a plain sum.
    weight = torch.linspace(-1, 1, 35).view(5, 7)
    norm(batch * 0.5 + 1)
    leaf = batch.clone().requires_grad_()
    out = norm(leaf)
    (out.square() * weight + (3 * out).sin()).sum().backward()
    found = {"output": out.detach(), "input_grad": leaf.grad}
    found |= {f"{name}_grad": p.grad for name, p in norm.named_parameters()}
    return found | {name: buffer.clone() for name, buffer in norm.named_buffers()}


def run_worker(rank: int, port: int, folder: str) -> None:
    torch.set_num_threads(1)
    address = f"tcp://127.0.0.1:{port}"
    dist.init_process_group("gloo", init_method=address, rank=rank, world_size=2)
    half = whole_batch()[3 * rank : 3 * rank + 3]
    for name, options in OPTIONS.items():
        norm = synchronise(new_norm(**options), torch.device("cpu"))
        assert type(norm) is CpuSyncBatchNorm2d
        torch.save(pass_twice(norm, half), Path(folder) / f"{name}-{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def results(tmp_path_factory) -> Path:
    """What each of the two workers got, in a file by option and rank."""
    folder = tmp_path_factory.mktemp("batchnorm")
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]
    spawn(run_worker, args=(port, str(folder)), nprocs=2)
    return folder


@pytest.mark.parametrize("options", OPTIONS)
def test_two_workers_equal_one_with_the_double_batch(results, options):
    one, two = (torch.load(results / f"{options}-{rank}.pt", weights_only=True) for rank in (0, 1))
    expected = pass_twice(new_norm(**OPTIONS[options]), whole_batch())
    assert expected.keys() == one.keys() == two.keys()
    for name, value in expected.items():
        if name in ("output", "input_grad"):
            found = torch.cat([one[name], two[name]])
        elif name.endswith("_grad"):
            found = one[name] + two[name]  # DDP adds them up.
        else:
            assert torch.equal(one[name], two[name])
            found = one[name]
        torch.testing.assert_close(found, value, rtol=1e-4, atol=1e-4, msg=lambda m, n=name: n + m)
    assert expected["output"].std() > 0.1
    if options == "default":
        assert expected["num_batches_tracked"] == 2


def test_names_and_values_stay_when_a_network_is_synchronised():
    network = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Sequential(nn.BatchNorm2d(4)))
    before = {name: value.clone() for name, value in network.state_dict().items()}
    assert synchronise(network, torch.device("cpu")) is network
    after = network.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name], before[name]) for name in before)
    assert [type(m) for m in network.modules()].count(CpuSyncBatchNorm2d) == 2


def test_evaluation_uses_the_running_statistics():
    plain, synced = new_norm(), synchronise(new_norm(), torch.device("cpu"))
    batch = whole_batch()
    for norm in (plain, synced):
        norm.running_mean += 0.5
        norm.eval()
    assert torch.equal(synced(batch), plain(batch))
