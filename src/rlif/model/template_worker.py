"""Chat templates in a process of its own, so that they can be killed. Both ends of the pipe are in this file.

A chat template is a program that came with a model: it may loop for ever, or ask for gigabytes, in C code that no
Python time-out interrupts. So every conversation is first rendered by a worker whose processor time and memory the
system limits; a machine that stalls is no template's fault, so the clock on the wall is asked last. What the worker
makes is thrown away: the exact text is transformers' own, made in this process once it is known to be harmless. Parent
and worker talk in lines of JSON; the worker imports jinja2 alone.
"""

import json
import os
import select
import signal
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import lru_cache
from typing import Any

_BOOT = "import sys; sys.path[:] = sys.argv[3:]; from rlif.model.template_worker import serve; serve()"
_START_LIMIT = 120.0
"""Seconds a worker may take to start; a busy disk is not a template's fault."""

TIME_LIMIT = 5.0
"""Seconds of processor time for one conversation; templates in use take thousandths."""
WALL_LIMIT = 60.0
"""Seconds to wait for an answer, however little of them the worker was let run; then one other worker is asked."""
MEMORY_LIMIT = 1 << 29
"""Bytes of address space for the whole worker, which needs a tenth of it (enforced on Linux)."""
MOST_CHARACTERS = 1_000_000
"""What a template may write beyond ten times the conversation: longer prompts than any model reads."""


class WorkerError(RuntimeError):
    """No worker can be started: the machine's fault, not a template's."""


class TemplateWorker:
    """Says whether a chat template ends, in time and memory. Starts with the first question.

    Threads take turns: a worker answers one question at a time.
    """

    def __init__(
        self, time_limit: float = TIME_LIMIT, memory_limit: int = MEMORY_LIMIT, wall_limit: float = WALL_LIMIT
    ) -> None:
        self._time_limit, self._memory_limit, self._wall_limit = time_limit, memory_limit, wall_limit
        self._process: subprocess.Popen[bytes] | None = None
        self._stop: Callable[[], object] = _nothing
        self._lock = threading.Lock()

    def complaint(
        self, template: str, messages: Sequence[Mapping[str, str]], variables: Mapping[str, Any]
    ) -> str | None:
        """Which limit the template breaks with these messages, as the end of a sentence; None if it keeps them all.

        A template that ends with an error of its own keeps them. Raises `WorkerError` if no worker starts.
        """
        request = {"template": template, "messages": [dict(one) for one in messages], "variables": dict(variables)}
        with self._lock:
            try:
                line = json.dumps(request).encode() + b"\n"
                reply, broken = self._asked(line)
                if broken not in (None, self._takes_time()):
                    reply, broken = self._asked(
                        line
                    )  # whatever else ended it, or held it up, may have come from outside
                if broken is not None:
                    return broken
                answer = json.loads(reply)
                if answer.get("memory"):
                    self.close()  # what filled it may still be there
                    return self._needs_memory()
                if answer.get("random"):
                    return "draws words at random"
            except BaseException:
                self.close()  # whatever the worker still says would be taken for the next answer
                raise
        most = MOST_CHARACTERS + 10 * sum(len(one.get("content") or "") for one in messages)
        length = int(answer.get("length", 0))
        return f"makes {length:,} characters of a short conversation" if length > most else None

    def close(self) -> None:
        """Kill the worker, if there is one. The next question starts another."""
        self._stop()
        self._process, self._stop = None, _nothing

    def _asked(self, line: bytes) -> tuple[bytes, str | None]:
        """The answer, or which limit was broken; the worker is gone then."""
        process = self._running()
        reply = _exchange(process, line, self._wall_limit)
        if reply.endswith(b"\n"):
            return reply, None
        code = process.poll()
        self.close()
        if code is None:
            return b"", f"has not ended after {self._wall_limit:g} s on the clock, twice"
        return b"", self._takes_time() if code == -signal.SIGPROF else self._needs_memory()

    def _takes_time(self) -> str:
        return f"takes longer than {self._time_limit:g} s"

    def _needs_memory(self) -> str:
        return f"needs more than {self._memory_limit >> 20} MB"

    def _running(self) -> subprocess.Popen[bytes]:
        if self._process is not None and self._process.poll() is None:
            return self._process
        self.close()
        limits = (str(self._time_limit), str(self._memory_limit))
        try:
            self._process = process = subprocess.Popen(
                [sys.executable, "-W", "ignore", "-c", _BOOT, *limits, *sys.path],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                bufsize=0,
            )
        except OSError as error:  # no process, no memory, no files left
            raise WorkerError(str(error)) from error
        self._stop = weakref.finalize(self, _kill, process)  # also when nobody closes it, and at exit
        if not _exchange(process, b"", _START_LIMIT):
            raise WorkerError("it ended, or said nothing, before the first question")
        return process


_WORKERS: dict[int, TemplateWorker] = {}


def worker() -> TemplateWorker:
    """The one worker of this process; a forked child starts its own."""
    return _WORKERS.setdefault(os.getpid(), TemplateWorker())


def _nothing() -> None:
    """Stops a worker that was never started."""


def _exchange(process: subprocess.Popen[bytes], line: bytes, limit: float) -> bytes:
    """Send a line and read the answering one; without its end if the process died, or was silent for ``limit`` s."""
    assert process.stdin is not None
    assert process.stdout is not None
    until, reply = time.monotonic() + limit, b""
    try:
        while line:  # unbuffered: a pipe takes a part at a time
            line = line[process.stdin.write(line) :]
        while not reply.endswith(b"\n"):
            ready, _, _ = select.select([process.stdout], [], [], max(0.0, until - time.monotonic()))
            part = process.stdout.read(1 << 16) if ready else b""
            if not ready:
                return reply
            if not part:
                break
            reply += part
        else:
            return reply
    except BrokenPipeError:
        reply = b""
    with suppress(subprocess.TimeoutExpired):
        process.wait(limit)  # its end of the pipe is closed: it is dead, or about to be
    return reply


def _kill(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.communicate()  # closes the pipes, whatever was left in them, and reaps


# The other end: from here on, code that runs in the worker.


def serve() -> None:
    """The worker's main loop: a conversation a line, an answer a line, until the parent is gone."""
    time_limit, memory_limit = float(sys.argv[1]), int(sys.argv[2])
    for signum in (signal.SIGINT, signal.SIGTERM):
        signal.signal(signum, signal.SIG_IGN)  # the parent decides what stops; its end ends us
    signal.signal(signal.SIGPROF, signal.SIG_DFL)  # ends the process, in C code too and should the parent be dead
    compiled = _compiler()
    _limit_memory(memory_limit)
    _reply({"ready": True})
    for line in sys.stdin.buffer:
        signal.setitimer(signal.ITIMER_PROF, time_limit)
        answer = _answer(compiled, **json.loads(line))
        signal.setitimer(signal.ITIMER_PROF, 0)
        _reply(answer)


class _RandomError(Exception):
    """A template whose prompts no run could repeat."""


def _limit_memory(size: int) -> None:
    if sys.platform == "linux":  # elsewhere the system does not enforce it, and time is the only limit
        import resource

        hard = resource.getrlimit(resource.RLIMIT_AS)[1]
        resource.setrlimit(resource.RLIMIT_AS, (size if hard == resource.RLIM_INFINITY else min(size, hard), hard))


def _reply(reply: dict[str, object]) -> None:
    sys.stdout.write(json.dumps(reply) + "\n")
    sys.stdout.flush()


def _answer(
    compiled: Callable[[str], Any], template: str, messages: list[dict[str, str]], variables: dict[str, Any]
) -> dict[str, object]:
    try:
        return {"length": len(compiled(template).render(messages=messages, **variables))}
    except MemoryError:
        return {"memory": True}
    except _RandomError:
        return {"random": True}
    except Exception:  # of the template's making: it will be raised again where it is reported
        return {"length": 0}


def _compiler() -> Callable[[str], Any]:
    """From a template to what renders it, as transformers does (`transformers.utils.chat_template_utils`).

    Raises `_RandomError` for one that draws at random: jinja's filter ``random`` and its function ``lipsum``.
    """
    import jinja2.ext
    from jinja2.exceptions import TemplateError
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(jinja2.ext.Extension):
        """Marks what an assistant says; it changes nothing in the text."""

        tags = {"generation"}  # noqa: RUF012  (jinja's own)

        def parse(self, parser: Any) -> Any:
            number = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return jinja2.nodes.CallBlock(self.call_method("_said"), [], [], body).set_lineno(number)

        def _said(self, caller: Callable[[], str]) -> str:
            return caller()

    def raise_exception(message: str) -> None:
        raise TemplateError(message)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, jinja2.ext.loopcontrols]
    )
    environment.filters["tojson"] = lambda value, ensure_ascii=False, **options: json.dumps(
        value, ensure_ascii=ensure_ascii, **options
    )
    environment.globals["raise_exception"] = raise_exception
    environment.globals["strftime_now"] = time.strftime

    @lru_cache(maxsize=8)
    def compiled(template: str) -> Any:
        kinds: Any = (jinja2.nodes.Filter, jinja2.nodes.Name)
        names = [node.name for node in environment.parse(template).find_all(kinds)]
        if not {"random", "lipsum"}.isdisjoint(names):
            raise _RandomError
        return environment.from_string(template)

    return compiled
