"""The processes of a run, its ranks: how they share the work of a step, and what they agree on.

Data parallelism, seen from the training loop: nothing. Each rank samples a block of a step's prompts and is handed all
completions, scores all of them, and runs the update on its share. Gradients are summed before the optimizer's step. Of
every weight's fp32 master, and of AdamW's moments for it, a rank keeps one n-th (ZeRO-1, arXiv 1910.02054) and sends
the others what it made of it. The first rank owns the folder, and what it says is done.

Random numbers are keyed by (seed, step, prompt, sample), so that the ranks need no coordination, and the batch is that
of one process.

`Ranks` is a process alone: it shares nothing and agrees with itself. `Group` is one of several.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import accumulate
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional

from rlif.errors import RlifError, brief
from rlif.types import Prompt, Rollouts, TokenSignals
from rlif.utils.interrupts import Stop

T = TypeVar("T")

_BUCKET = 1 << 24
"""Most numbers that are sent at once: many small weights go together, and no copy of all of them is made."""


class Ranks:
    """A process alone. Every method that `Group` overrides must be called by all ranks, in the same order."""

    rank, size = 0, 1

    @property
    def first(self) -> bool:
        """Whether this rank owns the folder."""
        return self.rank == 0

    def block(self, items: Sequence[T]) -> Sequence[T]:
        """This rank's share of items, in one piece; those of all ranks in order are all items."""
        return items[self.rank * len(items) // self.size : (self.rank + 1) * len(items) // self.size]

    def balanced(self, items: Sequence[T], weights: Sequence[int]) -> list[T]:
        """This rank's share of items, in one piece, such that all shares weigh about the same."""
        share = sum(weights) / self.size or 1.0
        middles = [
            before + weight / 2 for before, weight in zip(accumulate(weights, initial=0.0), weights, strict=False)
        ]
        owners = [min(int(middle / share), self.size - 1) for middle in middles]
        return [item for item, owner in zip(items, owners, strict=True) if owner == self.rank]

    def gather(self, value: T) -> list[T]:
        """What each rank gave, in their order."""
        return [value]

    def split(
        self, rows: Sequence[int], work: Callable[[Sequence[int]], T], weights: Sequence[int] | None = None
    ) -> list[T]:
        """`rlif.utils.splitting.Split`: each rank does the work on its share of the rows, and has what all made."""
        return self.gather(work(self.block(rows) if weights is None else self.balanced(rows, weights)))

    def agreed(self, value: T) -> T:
        """What the first rank gave."""
        return value

    def told(self, make: Callable[[], T]) -> T:
        """What ``make`` returns, which the first rank alone calls; the others wait."""
        return make()

    def heard(self, stop: Stop) -> Stop:
        """Asks whether any rank is to stop."""
        return stop

    def together(self, own: Rollouts | None, prompts: Sequence[Prompt]) -> Rollouts:
        """The completions of all ``prompts``; ``own`` are those of this rank's block, None if it has none."""
        assert own is not None
        return own

    def part(self, whole: Tensor) -> Tensor:
        """What this rank keeps of a tensor that is the same on all of them."""
        return whole

    def whole(self, part: Tensor, like: Tensor) -> Tensor:
        """A tensor again, in the shape of ``like``, from the parts that the ranks keep of it."""
        return part

    def summed(self, wholes: list[Tensor]) -> list[Tensor]:
        """This rank's parts of the sums of tensors over all ranks. The list is emptied on the way."""
        return wholes

    def fill(self, wholes: Sequence[Tensor], parts: Sequence[Tensor]) -> None:
        """Write into tensors what the ranks keep of them, in the tensors' own type."""
        for whole, part in zip(wholes, parts, strict=True):
            whole.copy_(part)

    def norm(self, parts: Iterable[Tensor], order: float = 2.0) -> Tensor:
        """The norm of all tensors that the ranks keep parts of, as one vector."""
        return nn.utils.get_total_norm(parts, order)

    def either(self, flags: list[bool]) -> list[bool]:
        """For each place whether it is true on any rank."""
        return flags

    def copied(self, tensors: Iterable[Tensor]) -> None:
        """Overwrite tensors by those of the first rank."""

    def spread(self, tensors: Mapping[str, Tensor], device: torch.device) -> Mapping[str, Tensor]:
        """This rank's parts of the tensors that the first rank has by name; numbers stay whole."""
        return tensors

    def kept(self, whole: Tensor) -> Tensor:
        """A tensor that all ranks put together, where it is to be written from; on others nothing of it."""
        return whole


ALONE = Ranks()


class Group(Ranks):
    """One of several ranks; made by `rlif.training.launch.joined`.

    Tensors go by the backend of their device (gloo on a CPU, NCCL on CUDA), everything else by gloo. A rank that has
    gone makes each call of another one raise ``lost``.
    """

    def __init__(self, rank: int, size: int) -> None:
        self.rank, self.size = rank, size
        self.lost: RlifError | None = None

    def gather(self, value: T) -> list[T]:
        found: list[Any] = [None] * self.size
        with self._talking():
            dist.all_gather_object(found, value)
        found[self.rank] = value
        return found

    def agreed(self, value: T) -> T:
        found = [value if self.first else None]
        with self._talking():
            dist.broadcast_object_list(found, src=0)
        return value if self.first else found[0]  # type: ignore[return-value]

    def told(self, make: Callable[[], T]) -> T:
        return self.agreed(make() if self.first else None)  # type: ignore[return-value]

    def heard(self, stop: Stop) -> Stop:
        return lambda: max(self.gather(stop()))

    def together(self, own: Rollouts | None, prompts: Sequence[Prompt]) -> Rollouts:
        parts = self.gather(None if own is None else _to_send(own))
        return _joined([part for part in parts if part is not None], prompts)

    def part(self, whole: Tensor) -> Tensor:
        return self._rows(whole)[self.rank].clone()

    def whole(self, part: Tensor, like: Tensor) -> Tensor:
        found = part.new_empty(like.shape)
        self.fill([found], [part])
        return found

    def summed(self, wholes: list[Tensor]) -> list[Tensor]:
        parts: list[Tensor] = []
        for bucket in _buckets(wholes):
            sent = torch.cat([self._rows(wholes[place]) for place in bucket], dim=1)
            widths = [self._width(wholes[place]) for place in bucket]
            for place in bucket:
                wholes[place] = wholes[place].new_empty(0)
            with self._talking():
                dist.all_reduce(sent)
            parts += sent[self.rank].clone().split(widths)
        wholes.clear()
        return parts

    def fill(self, wholes: Sequence[Tensor], parts: Sequence[Tensor]) -> None:
        for bucket in _buckets(wholes):
            own = torch.cat([parts[place].to(wholes[place].dtype) for place in bucket])
            found = own.new_empty(self.size, len(own))
            with self._talking():
                dist.all_gather(list(found), own)
            pieces = found.split([len(parts[place]) for place in bucket], dim=1)
            for place, piece in zip(bucket, pieces, strict=True):
                whole = wholes[place]
                whole.copy_(piece.reshape(-1)[: whole.numel()].view(whole.shape))

    def norm(self, parts: Iterable[Tensor], order: float = 2.0) -> Tensor:
        own = nn.utils.get_total_norm(parts, order)
        norms = self.gather(own.item())
        # In float64, whose squares of float32 cannot overflow, and in the ranks' order, so that all have the same sum.
        found = max(norms) if order == math.inf else math.sqrt(sum(norm * norm for norm in norms))
        return own.new_tensor(math.nan if any(map(math.isnan, norms)) else found)

    def either(self, flags: list[bool]) -> list[bool]:
        return [any(column) for column in zip(*self.gather(flags), strict=True)]

    def copied(self, tensors: Iterable[Tensor]) -> None:
        for tensor in tensors:
            with self._talking():
                dist.broadcast(tensor, src=0)

    def spread(self, tensors: Mapping[str, Tensor], device: torch.device) -> Mapping[str, Tensor]:
        kinds = self.agreed([(name, tensor.shape, tensor.dtype) for name, tensor in tensors.items()])
        found = {}
        for name, shape, dtype in kinds:
            whole = tensors[name].to(device) if self.first else torch.empty(shape, dtype=dtype, device=device)
            self.copied([whole])
            found[name] = self.part(whole) if shape else whole
        return found

    def kept(self, whole: Tensor) -> Tensor:
        return whole.cpu() if self.first else whole.new_empty(0)

    def _width(self, whole: Tensor) -> int:
        return -(-whole.numel() // self.size)

    def _rows(self, whole: Tensor) -> Tensor:
        """A row of numbers for each rank, all as long: zeros fill the last."""
        flat, width = whole.detach().reshape(-1), self._width(whole)
        return functional.pad(flat, (0, self.size * width - len(flat))).view(self.size, width)

    @contextmanager
    def _talking(self) -> Iterator[None]:
        try:
            yield
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:  # what gloo and NCCL say of a peer that is gone
            self.lost = self.lost or has_gone(brief(str(error), 100))
            raise self.lost from error


def has_gone(why: str) -> RlifError:
    """The error of the ranks that are left when one has ended without a word."""
    return RlifError(
        f"another rank of this run has gone without a word ({why}): killed, out of memory, or its machine; the last "
        "checkpoint is whole: start the same ranks, or another number of them, with --resume DIR"
    )


def _buckets(tensors: Sequence[Tensor]) -> Iterator[list[int]]:
    """Places of tensors that are sent together: of one type, at most `_BUCKET` numbers unless one alone has more."""
    bucket: list[int] = []
    for place, tensor in enumerate(tensors):
        size = sum(tensors[one].numel() for one in bucket)
        if bucket and (size + tensor.numel() > _BUCKET or tensors[bucket[0]].dtype != tensor.dtype):
            yield bucket
            bucket = []
        bucket.append(place)
    if bucket:
        yield bucket


def _to_send(rollouts: Rollouts) -> Rollouts:
    """Without the prompts, which everybody has; each tensor alone in its memory, for it is sent with all of that."""
    return replace(
        rollouts,
        prompts=(),
        tokens=rollouts.tokens.clone(),
        sampler_logprobs=rollouts.sampler_logprobs.clone(),
        signals=TokenSignals(*(values.clone() for values in rollouts.signals)),
    )


def _joined(parts: Sequence[Rollouts], prompts: Sequence[Prompt]) -> Rollouts:
    """Blocks of completions as one batch, as wide as its longest."""
    width = max(part.tokens.shape[1] for part in parts)

    def stacked(tensors: Iterable[Tensor]) -> Tensor:
        return torch.cat([functional.pad(one, (0, width - one.shape[1])) for one in tensors])

    return replace(
        parts[0],
        prompts=tuple(prompts),
        tokens=stacked(part.tokens for part in parts),
        mask=stacked(part.mask for part in parts),
        sampler_logprobs=stacked(part.sampler_logprobs for part in parts),
        signals=TokenSignals(*map(stacked, zip(*(part.signals for part in parts), strict=True))),
        texts=tuple(text for part in parts for text in part.texts),
        stop_reasons=tuple(reason for part in parts for reason in part.stop_reasons),
    )
