"""One training by several processes, where `torchrun` has started the command more than once."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

PATIENCE = timedelta(days=7)
"""How long the others wait for the first, which finds and describes the cells."""


def is_team() -> bool:
    """Whether `torchrun` has started this command more than once."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


@contextmanager
def team() -> Iterator[int]:
    """A block that all processes work through together; gives this one's rank, 0 where it is alone.

    Each has the GPU of its own number where there are as many; between CPUs they speak over gloo.
    """
    if not is_team():
        yield 0
        return
    import torch
    from torch import distributed

    local = int(os.environ.get("LOCAL_RANK", "0"))
    on_gpus = torch.cuda.device_count() >= int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    if on_gpus:
        torch.cuda.set_device(local)
    distributed.init_process_group("cpu:gloo,cuda:nccl" if on_gpus else "gloo", timeout=PATIENCE)
    try:
        yield distributed.get_rank()
    finally:
        distributed.destroy_process_group()


def wait_for_all() -> None:
    """Go on when every process of the team has come this far."""
    if is_team():
        from torch import distributed

        distributed.barrier()
