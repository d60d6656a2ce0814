"""Several processes for one script, started by torchelastic, as ``torchrun`` and ``fabric run`` do."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

__all__ = ["launch", "launched_already", "process_count"]


def process_count(options: Mapping[str, Any]) -> int:
    """Return how many processes this node needs for the Trainer's ``devices``, as Lightning counts them.

    >>> process_count({"devices": 2, "accelerator": "cpu"}), process_count({})
    (2, 1)
    """
    devices = options.get("devices", 1)
    strategy = str(options.get("strategy", "auto"))
    if any(own in strategy for own in ("spawn", "fork", "notebook")):
        return 1  # Lightning makes copies of this process, in which all is attached already
    if isinstance(devices, int):
        return devices
    from lightning.pytorch.accelerators import CPUAccelerator, CUDAAccelerator

    cuda = options.get("accelerator", "auto") in ("auto", "gpu", "cuda") and CUDAAccelerator.is_available()
    if devices == "auto":
        return CUDAAccelerator.auto_device_count() if cuda else CPUAccelerator.auto_device_count()
    return len([part for part in devices.split(",") if part.strip()])


def launched_already() -> bool:
    """Whether a launcher has started this process as one of several: torchrun, SLURM, MPI and the like."""
    from lightning.fabric.plugins.environments.lsf import LSFEnvironment
    from lightning.fabric.plugins.environments.mpi import MPIEnvironment
    from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
    from lightning.fabric.plugins.environments.torchelastic import TorchElasticEnvironment

    launchers = (TorchElasticEnvironment, SLURMEnvironment, LSFEnvironment, MPIEnvironment)
    return any(launcher.detect() for launcher in launchers)


def launch(
    target: Sequence[str], processes: int, *, nodes: int, node_rank: int, address: str, port: int
) -> int:
    """Run ``target`` in ``processes`` processes on this node, and return the exit status.

    Args:
        target: what follows ``python -m lightning_reg.cli.script``.
        processes: how many.
        nodes: how many nodes there are; each runs this.
        node_rank: which of them this is.
        address: where the first node is.
        port: its port for the others to meet at.
    """
    from torch.distributed import run
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // processes)))
    meeting = (
        ["--standalone"]  # any free port
        if nodes == 1
        else [
            f"--nnodes={nodes}",
            f"--node-rank={node_rank}",
            f"--master-addr={address}",
            f"--master-port={port}",
        ]
    )
    command = [*meeting, f"--nproc-per-node={processes}", "-m", "lightning_reg.cli.script", *target]
    try:
        run.run(run.parse_args(command))  # type: ignore[no-untyped-call]
    except ChildFailedError as error:
        _, failure = error.get_first_failure()
        return failure.exitcode if failure.exitcode > 0 else 128 - failure.exitcode
    return 0
