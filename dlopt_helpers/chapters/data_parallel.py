"""Data-parallel training by hand: one process for each share of a batch, started by ``torchrun``.

    torchrun --standalone --nproc-per-node 2 -m dlopt_helpers.chapters.data_parallel OUT

trains in each of ``WAYS`` and writes the weights of every process to the folder ``OUT``. With as many GPUs as
processes it uses them and NCCL, else processors and Gloo.
"""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import parameters_to_vector

from dlopt_helpers.lab.data import digits
from dlopt_helpers.lab.models import mlp
from dlopt_helpers.lab.training import batches

STEPS, BATCH, RATE = 30, 64, 0.1
WAYS = ["by hand", "DDP", "summed", "same examples", "no broadcast", "uneven, plain mean", "uneven, weighted"]
UNEVEN = 48  # of 64 examples, in the first of two processes


def share(batch, way, rank, processes):
    """Return the part of a batch's indices that a process works on.

    Example:
      >>> share(np.arange(6), "by hand", rank=1, processes=2)
      array([1, 3, 5])
    """
    if way == "same examples":  # the bug: nobody told the processes apart
        return batch[: len(batch) // processes]
    if way.startswith("uneven"):
        return np.array_split(batch, [UNEVEN])[rank] if processes == 2 else batch[rank::processes]
    return batch[rank::processes]


def average(parameters, processes, weight):
    """Replace each gradient by the mean over the processes; ``weight`` is 1 for equal shares."""
    for p in parameters:
        p.grad *= weight / processes
        dist.all_reduce(p.grad)  # the sum over all processes, in each of them


def train(way, rank=0, processes=1, rate=RATE, batch_size=BATCH, device="cpu"):
    """Train for ``STEPS`` steps and return the weights as one vector.

    With one process this is ordinary training, the reference.
    """
    data = digits()
    x, y = torch.as_tensor(data.x_train, dtype=torch.float32), torch.as_tensor(data.y_train)
    model = mlp(inputs=64, seed=rank if way == "no broadcast" else 0).to(device)
    if way == "DDP" and processes > 1:
        model = DistributedDataParallel(model)
    optimizer = torch.optim.SGD(model.parameters(), rate)
    for batch in batches(len(x), BATCH, STEPS, seed=0):
        own = share(batch[:batch_size], way, rank, processes)
        optimizer.zero_grad()
        cross_entropy(model(x[own].to(device)), y[own].to(device)).backward()
        if processes > 1 and way != "DDP":
            by = {"summed": processes, "uneven, weighted": processes * len(own) / batch_size}
            average(model.parameters(), processes, by.get(way, 1))
        optimizer.step()
    return parameters_to_vector(model.parameters()).detach().cpu().numpy()


def launch(processes=2, seconds=240):
    """Start the processes on this machine and return their weights, ``{way: array of a row a process}``.

    Raises:
      RuntimeError: if they fail; the message holds the end of what they wrote.

    Example:
      >>> launch(processes=1)["by hand"].shape
      (1, 17610)
    """
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--local-addr=127.0.0.1"]
        command += [f"--nproc-per-node={processes}", "-m", __name__, folder]
        done = subprocess.run(
            command, env=_surroundings(), capture_output=True, text=True, timeout=seconds, check=False
        )
        if done.returncode:
            raise RuntimeError(f"torchrun ended with {done.returncode}: {done.stderr[-2_000:]}")
        found = [np.load(Path(folder) / f"{rank}.npz") for rank in range(processes)]
        return {way: np.stack([each[way] for each in found]) for way in WAYS}


def _surroundings():
    """Return the environment of the processes: one thread each, and loopback alone."""
    root = str(Path(__file__).parents[2])
    path = os.pathsep.join(filter(None, [os.environ.get("PYTHONPATH"), root]))
    more = {"GLOO_SOCKET_IFNAME": "lo"} if sys.platform == "linux" else {}
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path, **more}


def main(folder):
    """Train in every way, as one of the processes."""
    local, here = int(os.environ["LOCAL_RANK"]), int(os.environ["LOCAL_WORLD_SIZE"])
    gpus = torch.cuda.is_available() and torch.cuda.device_count() >= here
    device = f"cuda:{local}" if gpus else "cpu"
    if gpus:
        torch.cuda.set_device(device)
    torch.set_num_threads(1)
    dist.init_process_group("nccl" if gpus else "gloo")
    rank, processes = dist.get_rank(), dist.get_world_size()
    weights = {way: train(way, rank, processes, device=device) for way in WAYS}
    np.savez(Path(folder) / f"{rank}.npz", **weights)
    dist.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1])
