"""How the processes that torchrun started become the ranks of a run, and how they end: together, with one word.

Whatever ends one of them ends all: an exception, a signal, a kill. Who fails says why on its own stderr, the first rank
before all others; the rest stays silent. A rank that computes is told by `rlif.utils.lifeline`, one that waits for the
others by its broken connection to them; why, it has asked by then: the first rank keeps what was said, and goes last.
"""

import ctypes
import json
import os
import secrets
import signal
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import timedelta
from itertools import count
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.distributed_c10d import PrefixStore
from torch.distributed.rendezvous import rendezvous

from rlif.config import Recipe
from rlif.errors import Argument, RlifError, ToldElsewhereError, brief, shown
from rlif.training.parallel import ALONE, Group, Ranks, has_gone
from rlif.utils import terminal
from rlif.utils.interrupts import STOP_SIGNALS, AtOnce, Interrupted
from rlif.utils.lifeline import Hub, Lifeline, called
from rlif.utils.torchrun import Place, launched

_START = timedelta(minutes=5)
_STEP = timedelta(hours=6)
"""How long ranks wait for each other: at the start, and within a run, where one may write a large checkpoint."""
_MANNERS = 2.0
"""Seconds in which the first rank may speak before another does: most errors are those of all ranks."""


class _Loss(BaseException):
    """Raised in the thread that trains, wherever it is, when another rank is gone."""


_joins = count()
"""How often this process has met the others: all ranks count alike."""

_here: Ranks | None = None
"""The ranks that this process has joined."""


@contextmanager
def joined() -> Iterator[Ranks]:
    """The ranks of this process: those that torchrun started, or one alone. Joined twice, they are the same.

    Raises `RlifError` if the ranks do not find each other; in a rank whose run ends for what another one has said,
    `ToldElsewhereError`.
    """
    global _here
    place = launched()
    if _here is not None or place is None:
        yield _here or ALONE
        return
    if dist.is_initialized():
        raise RlifError("this process has a process group already; let rlif make its own: train before you make one")
    company = _Company(place)
    if place.rank:
        terminal.hush()
    _here = company.ranks
    try:
        company.watch()
        yield company.ranks
        company.part_ways()
    except BaseException as error:
        try:
            company.fail(error)
        except _Loss as late:
            company.fail(late)
    finally:
        _here = None
        with suppress(Exception):
            dist.destroy_process_group()
        terminal.speak()


class _Company:
    """What the ranks have beside `Ranks`: where one says why it ends, and connections that show that it does."""

    def __init__(self, place: Place) -> None:
        self._key = f"rlif/{place.attempt}/{next(_joins)}/"  # the store may outlive this run, and serve the next
        self._thread, self._lock = threading.get_ident(), threading.Lock()
        self._over = self._told_of_loss = False
        self._word: tuple[int, int, str] | None = None  # as `_claim` returns it, if another rank has said why it ends
        try:
            self._store, _, _ = next(rendezvous("env://", timeout=_START))
            self._lifeline = self._connect(place)
            store = PrefixStore(f"{self._key}group", self._store)
            dist.init_process_group(_backend(), store=store, rank=place.rank, world_size=place.size, timeout=_STEP)
        except (RuntimeError, OSError, ValueError) as error:
            terminal.speak()
            raise RlifError(
                f"rank {place.rank} does not find the others ({brief(str(error), 200)}); start all {place.size} ranks, "
                "with one --rdzv-endpoint that every machine reaches"
            ) from error
        self.ranks = Group(place.rank, place.size)

    def _connect(self, place: Place) -> Lifeline:
        if place.rank:
            port, token = json.loads(self._store.get(f"{self._key}hub"))
            return called(os.environ["MASTER_ADDR"], port, token)
        hub = Hub(token := secrets.token_hex(16))
        self._store.set(f"{self._key}hub", json.dumps([hub.port, token]))
        return hub.gathered(place.size - 1)

    def watch(self) -> None:
        """From here on the loss of another rank is raised as `_Loss`, wherever the run is."""
        self._lifeline.watch(self._on_loss)

    def part_ways(self) -> None:
        """The end of a run that went well: nobody leaves before all are done."""
        self.ranks.gather(None)
        self._settle()
        self._lifeline.close()

    def fail(self, error: BaseException) -> None:
        """Raise what this rank ends with: what it has to say, or that another one has said it."""
        for number in STOP_SIGNALS if threading.current_thread() is threading.main_thread() else ():
            signal.signal(number, _ignored)  # torchrun ends all when one has ended: no news from here on
        self._settle()
        if isinstance(error, _Loss):
            self.ranks.lost = self.ranks.lost or has_gone("its connection broke")
        found = self.ranks.lost or error
        rank, code, said = self._claim(found)
        self._lifeline.cut()
        if self.ranks.first:
            self._wait_for_the_others()
        if rank != self.ranks.rank:
            silent = Interrupted(error.signum) if isinstance(error, Interrupted) else None
            raise silent or ToldElsewhereError(rank, code, said) from error
        terminal.speak()
        if self.ranks.rank and isinstance(found, RlifError) and found is not self.ranks.lost:
            found.args = (f"rank {rank}: ", *found.args)
        raise found

    def _claim(self, error: BaseException) -> tuple[int, int, str]:
        """Who tells why the run ends: rank, exit code, words. The first that asks, but the first rank has the word."""
        own = (self.ranks.rank, _code(error), brief(str(error) or type(error).__name__))
        try:
            until = time.monotonic() + _MANNERS * bool(self.ranks.rank)
            while time.monotonic() < until and not self._store.check([f"{self._key}told"]):
                time.sleep(0.02)
            self._hear(self._store.compare_set(f"{self._key}told", "", json.dumps(own)))
        except RuntimeError:  # whoever kept the store is gone, too
            pass
        return self._word or own

    def _hear(self, told: bytes) -> None:
        """Keep what was said, and let the first rank know that it need not wait. RuntimeError without the store."""
        rank, code, said = json.loads(told)
        self._word = rank, code, said
        self._store.set(f"{self._key}heard/{self.ranks.rank}", "")

    def _wait_for_the_others(self) -> None:
        """Keep the store, which is the first rank's, until the others know who tells why; the dead never ask."""
        until = time.monotonic() + _MANNERS
        with suppress(RuntimeError):
            others = [f"{self._key}heard/{rank}" for rank in range(1, self.ranks.size)]
            while time.monotonic() < until and not self._store.check(others):
                time.sleep(0.02)

    def _on_loss(self) -> None:
        """Raise `_Loss` in the thread of the run, once; and ask why, for while that thread waits in gloo it hears of
        nothing until its connections break, and then the store may have gone with them."""
        with self._lock:
            if not (self._over or self._told_of_loss):
                self._told_of_loss = True
                raise_in(self._thread, _Loss)
        with suppress(RuntimeError):
            if self._store.check([f"{self._key}told"]):
                self._hear(self._store.get(f"{self._key}told"))

    def _settle(self) -> None:
        """From here on the loss of another rank is no news; one that was about to be raised is not.

        It is let come, for it cannot be taken back: to clear what is to be raised in a thread makes CPython 3.11 look
        for it at every function call, for ever under a debugger, a profiler or coverage.
        """
        while not self._over:
            try:
                with self._lock:
                    self._over = True
                for _ in range(2):  # what is to be raised comes at a jump backwards, if not before
                    pass
            except _Loss:
                pass


def raise_in(thread: int, error: type[BaseException]) -> None:
    """Raise an exception in a thread as soon as it executes Python again."""
    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread), ctypes.py_object(error))


def _ignored(signum: int, frame: Any) -> None:
    """A signal handler; SIG_IGN would be handed on to processes that are started."""


def _code(error: BaseException) -> int:
    if isinstance(error, Interrupted):
        return 128 + error.signum
    if isinstance(error, KeyboardInterrupt):
        return 128 + (error.args[0] if isinstance(error, AtOnce) else signal.SIGINT)
    return 2 if isinstance(error, RlifError | OSError) else 1


def _backend() -> str:
    return "cpu:gloo,cuda:nccl" if torch.cuda.is_available() and dist.is_nccl_available() else "gloo"


def check_start(ranks: Ranks, recipe: Recipe, needs: Mapping[str, Any]) -> None:
    """Before anything is loaded: raise `RlifError` unless all ranks have one recipe, whose prompts divide among them,
    and each a device of its own. Takes the device."""
    if ranks.size == 1:
        return
    told = _flat({**recipe.model_dump(mode="json"), "needs": dict(needs)})
    _check_same(ranks, {key: value for key, value in told.items() if key not in _CONTENT}, "the recipe")
    if recipe.rollout.engine == "vllm":
        raise RlifError(
            Argument("engine"), ": vllm samples in a run of one process; set it to native, or leave out torchrun"
        )
    if (prompts := recipe.rollout.prompts) % ranks.size:
        raise RlifError(
            Argument("prompts"),
            f": {prompts} do not divide among {ranks.size} ranks; give a multiple of {ranks.size}, or start another "
            "number of ranks (torchrun --nproc-per-node)",
        )
    _take_device(ranks, recipe.policy.device)


def check_loaded(ranks: Ranks, found: Mapping[str, Any]) -> None:
    """Raise `RlifError` unless all ranks have loaded the same; ``found``: by what it is called, digests of it."""
    if ranks.size > 1:
        _check_same(ranks, _flat(found), "what was loaded")


_CONTENT = (
    *("policy.model", "policy.model.merge.base", "policy.model.merge.instruct"),
    *("task.path", "task.eval_path", "probe.path", "probe.labels", "probe.similarity.model"),
)
"""Keys that name files: what is in them counts, wherever a machine keeps them."""


def _check_same(ranks: Ranks, own: Mapping[str, Any], what: str) -> None:
    first, *others = ranks.gather(dict(own))
    for rank, other in enumerate(others, start=1):
        for key in dict.fromkeys((*first, *other)):
            if first.get(key) != other.get(key):
                here, there = (shown(one.get(key), 40) for one in (first, other))
                raise RlifError(
                    f"{what} differs between ranks: {key} is {here} on rank 0 and {there} on rank {rank}; give every "
                    "rank the same recipe, model and data"
                )


def _take_device(ranks: Ranks, name: str) -> None:
    """Make this rank's GPU the current one, which ``auto`` and ``cuda`` mean. Raises `RlifError` if it has none."""
    place = launched()
    if name.startswith("cpu") or (name == "auto" and not torch.cuda.is_available()) or place is None:
        return
    if name not in ("auto", "cuda"):
        raise RlifError(
            Argument("device"), f": {name} for {ranks.size} ranks; give cpu, or cuda, of which each takes its own"
        )
    if place.local_rank >= (there := torch.cuda.device_count()):
        raise RlifError(
            Argument("device"),
            f": rank {ranks.rank} has no GPU of its own: {there} here, and it is number {place.local_rank + 1} on its "
            f"machine; start at most {there} (torchrun --nproc-per-node), or use cpu",
        )
    torch.cuda.set_device(place.local_rank)


def _flat(data: Mapping[str, Any], where: str = "") -> dict[str, Any]:
    """Nested sections as dotted keys."""
    found: dict[str, Any] = {}
    for key, value in data.items():
        found |= _flat(value, f"{where}{key}.") if isinstance(value, Mapping) and value else {f"{where}{key}": value}
    return found
