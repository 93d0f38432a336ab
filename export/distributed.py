"""Several processes that train one model: `torchrun --nproc-per-node N -m export.cli train ...`.

Every process draws the same random numbers and takes its own part of each batch, so that a run of N processes follows
the loss curve of one process at the same total batch. A checkpoint holds nothing that depends on N.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import distributed

from thinwire.errors import ThinwireError


class GroupError(ThinwireError):
    """The processes cannot train together; the message names the fix."""

    reason = "BAD_GROUP"


@dataclass(frozen=True)
class Group:
    """rank: of this process, 0 writes; world: how many there are."""

    rank: int = 0
    world: int = 1

    @property
    def first(self) -> bool:
        return self.rank == 0

    def part(self, batch: int) -> slice:
        """This process' part of a batch of all."""
        own = batch // self.world
        return slice(self.rank * own, (self.rank + 1) * own)

    def noise(self, draw: Callable[[torch.Tensor], torch.Tensor], like: torch.Tensor) -> torch.Tensor:
        """This process' part (B, ...) of what `draw`, such as `torch.rand_like`, gives for the batch of all.

        Each process has the same generator: without this, all would add the same noise to their images.
        """
        if self.world == 1:
            return draw(like)
        return draw(torch.cat([like.detach()] * self.world))[self.part(self.world * len(like))]

    def average_gradients(self, parameters: Iterable[torch.nn.Parameter]) -> None:
        """In place, in one message."""
        if self.world == 1:
            return
        gradients = [each.grad for each in parameters if each.grad is not None]
        flat = torch.cat([each.flatten() for each in gradients])
        distributed.all_reduce(flat)
        flat /= self.world
        for each, mean in zip(gradients, flat.split([each.numel() for each in gradients])):
            each.copy_(mean.view_as(each))

    def mean(self, values: Sequence[float]) -> list[float]:
        if self.world == 1:
            return list(values)
        tensor = torch.tensor(values, dtype=torch.float64)
        distributed.all_reduce(tensor, group=_control())
        return (tensor / self.world).tolist()

    def agreed(self, value: float) -> float:
        """The first process' value: clocks differ."""
        if self.world == 1:
            return value
        tensor = torch.tensor([value], dtype=torch.float64)
        distributed.broadcast(tensor, 0, group=_control())
        return tensor.item()

    def same_start(self, modules: Iterable[torch.nn.Module]) -> None:
        """All begin with the first process' weights."""
        if self.world > 1:
            for module in modules:
                for value in (*module.parameters(), *module.buffers()):
                    distributed.broadcast(value.data, 0)

    def wait(self) -> None:
        if self.world > 1:
            distributed.barrier(group=_control())


ALONE = Group()
_CONTROL: list = []


def _control():
    """Small messages go between CPUs, whatever the gradients go by."""
    if not _CONTROL:
        _CONTROL.append(distributed.new_group(backend="gloo") if distributed.get_backend() != "gloo" else None)
    return _CONTROL[0]


def join_group(device: str, batch: int) -> tuple[Group, str]:
    """The group that torchrun's environment describes, and this process' device. One process alone is a group.

    Raises `GroupError` when the batch cannot be shared out.
    """
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if world == 1:
        return Group(), device
    if batch % world:
        raise GroupError(f"a batch of {batch} cannot be shared by {world} processes: give --batch, a multiple of it")
    if device == "cuda":
        device = f"cuda:{os.environ.get('LOCAL_RANK', '0')}"
        torch.cuda.set_device(device)
    if not distributed.is_initialized():
        distributed.init_process_group("nccl" if device.startswith("cuda") else "gloo")
    _control()
    return Group(distributed.get_rank(), world), device
