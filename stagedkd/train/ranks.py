"""Ranks: several processes that share one training (docs/decisions/0016).

Every rank runs both networks on its local clips of the batch. Features and logits are gathered, so that every rank
computes the losses of the whole batch, and the gradients of all ranks are added up.

Shape legend: b local clips of a rank, B clips of the whole batch.
"""

# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# The type stubs of torch, safetensors and Parsl are incomplete.
from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm  # pyright: ignore[reportPrivateUsage]

from stagedkd.data.draws import Stream, bits
from stagedkd.errors import TrainingError


@dataclass(frozen=True)
class Ranks:
    """The number of this process among `count` processes. `device` is where collectives need their tensors. The default
    is a single process, for which the methods do nothing."""

    number: int = 0
    count: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    @property
    def first(self) -> bool:
        """Whether this rank writes checkpoints, events and files."""
        return self.number == 0

    def local_slice(self, whole: int) -> slice:
        """The slice of this rank's clips among `whole` clips. Raises ValueError: they cannot be divided evenly."""
        if whole % self.count:
            raise ValueError(f"{whole} clips cannot be divided evenly among {self.count} processes")
        size = whole // self.count
        return slice(self.number * size, (self.number + 1) * size)

    def gather(self, local_b: Tensor) -> Tensor:
        """Gather the local tensors of all ranks, (B, ...), in the order of the batch.

        Its gradient is this rank's part of the incoming one, without communication: every rank computes the same loss
        of the whole batch, so that the gradients of all ranks, added up (`add_gradients`), are those of one process.
        """
        return local_b if self.count == 1 else _Gather.apply(local_b, self.number, self.count)  # pyright: ignore

    def gather_maps(self, maps_b: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Gather each feature map."""
        return {name: self.gather(feat_b) for name, feat_b in maps_b.items()}

    def add_gradients(self, parameters: Iterable[nn.Parameter], replicated: Iterable[nn.Parameter]) -> None:
        """Sum the gradients of all ranks in place. A parameter that only some ranks have used (the others dropped its
        layer) has a zero gradient on the others; one that no rank has used keeps None, as with one process.

        Args:
            parameters: all trained parameters, in the same order on all ranks.
            replicated: those of modules that received the whole batch on every rank, so that each rank already has the
                full gradient; their mean is taken.
        """
        if self.count == 1:
            return
        for parameter in replicated:
            if parameter.grad is not None:
                parameter.grad /= self.count
        trained = list(parameters)
        used = torch.tensor([p.grad is not None for p in trained], dtype=torch.int32, device=self.device)
        dist.all_reduce(used, dist.ReduceOp.MAX)
        grads: list[Tensor] = []
        used_anywhere: list[int] = used.tolist()
        for parameter, anywhere in zip(trained, used_anywhere, strict=True):
            if anywhere and parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            if parameter.grad is not None:
                grads.append(parameter.grad)
        for kind in dict.fromkeys((grad.dtype, grad.device) for grad in grads):
            group = [grad for grad in grads if (grad.dtype, grad.device) == kind]
            flat = torch.cat([grad.reshape(-1) for grad in group])
            dist.all_reduce(flat)
            parts: tuple[Tensor, ...] = cast(Any, flat).split([grad.numel() for grad in group])
            for grad, part in zip(group, parts, strict=True):
                grad.copy_(part.view_as(grad))

    def broadcast(self, value: Tensor) -> Tensor:
        """Give all ranks the first rank's value, for results whose last bits may differ between ranks."""
        if self.count == 1:
            return value
        sent = value.detach().to(self.device, copy=True).contiguous()
        dist.broadcast(sent, 0)
        return sent.to(value.device)

    def agree(self, local: bool) -> bool:
        """Give all ranks the first rank's answer, for questions about files that only the first rank writes."""
        return bool(self.broadcast(torch.tensor(int(local))))

    def wait(self) -> None:
        """Wait until all ranks have reached this call."""
        if self.count > 1:
            dist.barrier()

    def broadcast_states(self, *modules: nn.Module) -> None:
        """Give all ranks the first rank's parameters and buffers, since user code may draw from other generators."""
        if self.count == 1:
            return
        with torch.no_grad():
            for module in modules:
                for tensor in module.state_dict().values():
                    tensor.copy_(self.broadcast(tensor))

    @contextmanager
    def local_draws(self, device: torch.device, *parts: int) -> Generator[None]:
        """Inside, torch's generators are seeded by `parts` and the rank's number, so that dropout differs between
        ranks. Outside they stay equal on all ranks, since some losses draw. A single process uses its generators as
        they are."""
        if self.count == 1:
            yield
            return
        with torch.random.fork_rng([torch.cuda.current_device()] if device.type == "cuda" else []):
            torch.manual_seed(int(bits(*parts, Stream.RANK, self.number).item() >> np.uint64(1)))
            yield


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, local_b: Tensor, number: int, count: int) -> Tensor:
        ctx.number, ctx.size = number, len(local_b)
        whole_B = local_b.new_empty((count * len(local_b), *local_b.shape[1:]))
        dist.all_gather_into_tensor(whole_B, local_b.contiguous())
        return whole_B

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        return grads[0].narrow(0, ctx.number * ctx.size, ctx.size), None, None


def convert_batchnorms(network: nn.Module, device: torch.device, ranks: Ranks) -> None:
    """On CUDA, convert the BatchNorms of a network in place, so that their statistics are those of the whole batch."""
    if ranks.count > 1 and device.type == "cuda":
        nn.SyncBatchNorm.convert_sync_batchnorm(network)


def refuse_batch_statistics(network: nn.Module, ranks: Ranks, where: str) -> None:
    """Refuse a network with a BatchNorm that would use the statistics of the local clips as those of the batch.

    Args:
        where: the phase or the network, for the message.
    Raises:
        TrainingError: there is such a BatchNorm.
    """
    names = list(_unsynchronised(network)) if ranks.count > 1 else []
    if names:
        more = f" and {len(names) - 1} more" if len(names) > 1 else ""
        message = f"{where}: BatchNorm {names[0]}{more} would use the statistics of one of {ranks.count} processes"
        hint = "SyncBatchNorm needs CUDA; on the CPU set gpus: 1, or use a network with GroupNorm"
        raise TrainingError(message, hint=hint)


def _unsynchronised(network: nn.Module) -> Iterator[str]:
    """The names of the BatchNorms that use the statistics of the local clips: in training, or always if they keep no
    running statistics."""
    for name, module in network.named_modules():
        if not isinstance(module, _BatchNorm) or (isinstance(module, nn.SyncBatchNorm) and module.training):
            continue
        if module.training or module.running_mean is None:
            yield name
