"""Algebra in a process of its own, so that it can be killed. Both ends of the pipe are in this file.

Computer algebra on a model's output is hostile ground: ``10^{10^{10}}`` would compute for ever or eat the memory, in C
code that no Python time-out interrupts. So math-verify lives in a worker process with a memory limit, and the parent
kills it when time is up. Parent and worker talk in lines of JSON: nothing is unpickled, and the worker imports
math-verify alone (a fork or a ``multiprocessing`` spawn would carry along the main script, and torch with it).
"""

import json
import logging
import math
import os
import re
import signal
import subprocess
import sys
import threading
import time
import traceback
import weakref
from collections.abc import Callable, Iterator
from fractions import Fraction
from functools import lru_cache
from itertools import permutations, product
from typing import IO, Any

from rlif.grading.rationals import Number, ends, read_number, stands_for

_LOG = logging.getLogger(__name__)

_BOOT = "import sys; sys.path[:] = sys.argv[3:]; from rlif.grading.math_worker import serve; serve()"
"""The worker sees the parent's import path and nothing else: not the folder it happens to be started in."""

_START_LIMIT = 120.0
"""Seconds a worker may take to import its algebra; a busy disk is not an answer's fault."""

_LIMIT_SIGNALS = {"SIGKILL", "SIGALRM", "SIGABRT", "SIGSEGV", "SIGBUS"}
"""What an exhausted limit looks like from outside: our kill or the kernel's, the alarm, native code out of memory."""


class MathWorker:
    """Asks math-verify whether two expressions are equivalent, within limits. Starts with the first question.

    Not for use by several threads at once.
    """

    def __init__(self, time_limit: float, memory_limit: int) -> None:
        self._time_limit = time_limit
        self._memory_limit = memory_limit
        self._process: subprocess.Popen[bytes] | None = None
        self._stop: Callable[[], object] = _nothing

    def equivalent(self, gold: str, answer: str) -> bool | None:
        """Whether two pieces of LaTeX (without ``$``) mean the same; None if the algebra cannot tell.

        It cannot if it reaches a limit, or if it refuses what it is given (5:00 is 5/0 to it); both are logged. Raises
        RuntimeError if the worker does not start or dies of anything but a limit.
        """
        request = json.dumps({"gold": gold, "answer": answer}).encode() + b"\n"
        try:
            process = self._running()
            begun = time.monotonic()
            reply = _exchange(process, request, self._time_limit)
            if not reply.endswith(b"\n"):
                self._check_death(process)
                return None
            if time.monotonic() - begun >= self._time_limit:
                self.close()  # the answer came in the same moment as the kill
            return self._understood(json.loads(reply))
        except BaseException:
            self.close()  # whatever the old worker still says would be taken for the next answer
            raise

    def close(self) -> None:
        """Kill the worker, if there is one. The next question starts another."""
        self._stop()
        self._process = None

    def _running(self) -> subprocess.Popen[bytes]:
        if self._process is not None and self._process.poll() is None:
            return self._process
        self.close()
        limits = (str(self._time_limit), str(self._memory_limit))
        self._process = process = subprocess.Popen(
            [sys.executable, "-W", "ignore", "-c", _BOOT, *limits, *sys.path],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        self._stop = weakref.finalize(self, _kill, process)  # also when nobody closes it, and at exit
        if not _exchange(process, b"", _START_LIMIT):
            raise RuntimeError(f"the grading worker did not start ({_ending(process)})")
        return process

    def _check_death(self, process: subprocess.Popen[bytes]) -> None:
        """A worker that died of a limit is replaced; any other death is an error."""
        ending = _ending(process)
        if ending not in _LIMIT_SIGNALS:
            raise RuntimeError(f"the grading worker died ({ending})")
        _LOG.info("an answer was left undecided: its algebra reached a limit (%s)", ending)
        self.close()

    def _understood(self, reply: dict[str, Any]) -> bool | None:
        if "undecided" in reply:
            _LOG.info("an answer was left undecided: %s", reply["undecided"])
        if reply.get("limit"):
            self.close()  # what filled the memory may still be there
        verdict: bool | None = reply.get("equivalent")
        return verdict


def _nothing() -> None:
    """Stops a worker that was never started."""


def _exchange(process: subprocess.Popen[bytes], line: bytes, limit: float) -> bytes:
    """Send a line and wait for the answering one. Empty if the process died, or had to be killed after ``limit`` s."""
    assert process.stdin is not None
    assert process.stdout is not None
    timer = threading.Timer(limit, process.kill)
    timer.start()
    try:
        process.stdin.write(line)
        process.stdin.flush()
        return process.stdout.readline()
    except BrokenPipeError:
        return b""
    finally:
        timer.cancel()


def _ending(process: subprocess.Popen[bytes]) -> str:
    """How a process that closed its end of the pipe ended: a signal's name or an exit code."""
    code = process.wait()
    return signal.Signals(-code).name if code < 0 else f"exit code {code}"


def _kill(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.communicate()  # closes the pipes, whatever was left in them, and reaps


# The other end: from here on, code that runs in the worker.


def serve() -> None:
    """The worker's main loop: a question a line, an answer a line, until the parent is gone."""
    time_limit, memory_limit = float(sys.argv[1]), int(sys.argv[2])
    with os.fdopen(os.dup(1), "w") as replies:
        os.dup2(2, 1)  # whatever a library prints must not mix with the replies
        for signum in (signal.SIGINT, signal.SIGTERM):
            signal.signal(signum, signal.SIG_IGN)  # the parent decides what stops; its end ends us
        _limit_memory(memory_limit)
        equivalent = _algebra()
        _reply(replies, {"ready": True})
        for line in sys.stdin.buffer:
            if sys.platform != "win32":
                signal.alarm(math.ceil(time_limit) + 1)  # should the parent die before it can kill us
            _reply(replies, _answer(equivalent, **json.loads(line)))
            if sys.platform != "win32":
                signal.alarm(0)


def _limit_memory(size: int) -> None:
    if sys.platform == "linux":  # elsewhere the system does not enforce it, and time is the only limit
        import resource

        hard = resource.getrlimit(resource.RLIMIT_AS)[1]
        resource.setrlimit(resource.RLIMIT_AS, (size if hard == resource.RLIM_INFINITY else min(size, hard), hard))


def _reply(replies: IO[str], reply: dict[str, object]) -> None:
    replies.write(json.dumps(reply) + "\n")
    replies.flush()


def _answer(equivalent: Callable[[str, str], bool], gold: str, answer: str) -> dict[str, object]:
    try:
        return {"equivalent": equivalent(gold, answer)}
    except (MemoryError, RecursionError) as error:
        return {"undecided": f"its algebra reached a limit ({type(error).__name__})", "limit": True}
    except Exception:  # of the algebra's making, for what a model wrote: no reason to end a run
        return {"undecided": f"the algebra refused it\n{traceback.format_exc()}"}


def _algebra() -> Callable[[str, str], bool]:
    import math_verify
    from latex2sympy2_extended.math_normalization import NormalizationConfig

    logging.getLogger("math_verify").setLevel(logging.CRITICAL)  # it warns that its own time-outs are off: they are
    # LaTeX only. The library's other reader looks for any number in what it cannot parse: `2 \cup i(3` would equal 2.
    # Its units stay off, they are taken off before it sees an answer: `10t + 12` would lose a t, `2s` would equal 2.
    reading = NormalizationConfig(units=False, malformed_operators=True, nits=True)
    latex = [math_verify.LatexExtractionConfig(normalization_config=reading)]

    def parse(text: str) -> list[Any]:
        text = _IMAGINARY.sub(" i", text)
        return math_verify.parse(f"${text}$", latex, parsing_timeout=None, raise_on_error=True)

    parse_gold = lru_cache(maxsize=1024)(parse)  # each is compared with the answers of a whole group

    def equivalent(gold: str, answer: str) -> bool:
        truths, claims = _with_turns(parse_gold(gold), parse(answer))
        if all(isinstance(truth, str) for truth in truths):
            raise ValueError("math-verify cannot read the ground truth")  # which is nothing against the answer
        if (near := _stands_for_it(truths[0], answer)) is not None:
            return near
        exact = [_exact(claim, _decimals(answer), truths[0]) for claim in claims]
        truths = [_exact(truth, _decimals(gold), claims[0] if claims else truth) for truth in truths]
        same = math_verify.verify(
            truths,
            exact,
            allow_set_relation_comp=any(map(_is_solved, exact)),
            timeout_seconds=None,
            raise_on_error=True,
        )
        return bool(same) and all(_is_near(truth, claim) for truth, claim in product(truths[:1], exact[:1]))

    if not equivalent(r"\frac{1}{2}", "0.5") or equivalent("x + 1", "x + 2"):
        raise RuntimeError("math-verify fails at 1/2 = 0.5; reinstall the version that rlif asks for")
    return equivalent


_IMAGINARY = re.compile(r"(?<=[0-9}])i(?![A-Za-z])")
"""math-verify takes the i of 2i for a variable unless it stands alone, and then 2i is not 2·i."""


def _with_turns(truths: list[Any], claims: list[Any]) -> tuple[list[Any], list[Any]]:
    r"""Both as they are, or with i as the imaginary unit if it stands in an exponent of e: ``e^{i\pi}`` is -1."""
    from sympy import I, exp

    read = [one for one in (*truths, *claims) if not isinstance(one, str)]
    powers = [power for one in read for power in one.atoms(exp)]
    meaning = {name: I for power in powers for name in power.free_symbols if name.name == "i"}
    if not meaning:
        return truths, claims
    first, second = (
        [one if isinstance(one, str) else one.xreplace(meaning) for one in side] for side in (truths, claims)
    )
    return first, second


def _is_solved(claim: Any) -> bool:
    """Whether an inequality says where its variable lies: ``-2 < x < 1`` is an interval, ``x^2 > 4`` the question."""
    from sympy import Symbol
    from sympy.core.relational import Relational

    relations = claim.args if type(claim).__name__ == "And" else (claim,)
    return all(
        isinstance(relation, Relational)
        and any(isinstance(one, Symbol) and not other.free_symbols for one, other in permutations(relation.args))
        for relation in relations
    )


def _is_near(truth: Any, claim: Any) -> bool:
    """Two numbers agree beyond doubt. math-verify looks at fifteen decimals: 2^-98 would be 2^-97, and 0."""
    from sympy import Eq, Expr

    if isinstance(truth, Eq) and isinstance(claim, Eq) and truth.lhs != claim.lhs:
        return True
    numbers = [side.rhs if isinstance(side, Eq) else side for side in (truth, claim)]
    if not all(isinstance(number, Expr) and number.is_number for number in numbers):
        return True
    if numbers[0].is_zero:
        return numbers[1].is_zero is not False
    left, right = (number.evalf(30) for number in numbers)
    return bool(abs(left - right) <= abs(left) / 10**12)


# Decimals. math-verify rounds both sides to six places: 5.6842105 is not 108/19, and 1.0000001 is 1. Here a decimal
# stands for a number without an end if it is that number rounded (rlif.grading.rationals), and is itself exactly in all
# else.

_DECIMAL = re.compile(r"(?<![0-9.])[0-9]*\.[0-9]+(?:\\ldots)?")
_LOOSE_SPACE = re.compile(r"(?<![0-9,]) | (?![0-9])")


def _decimals(text: str) -> dict[float, Number]:
    """The decimals that stand in a text, by what they are after parsing."""
    numbers = (read_number(found) for found in _DECIMAL.findall(text))
    return {float(number.value): number for number in numbers if number is not None}


def _stands_for_it(truth: Any, answer: str) -> bool | None:
    """Whether an answer that is one decimal stands for a ground truth that is one number; None: not for us to say."""
    from sympy import Expr

    decimal = read_number(_LOOSE_SPACE.sub("", answer))
    if decimal is None or decimal.place is None or not isinstance(truth, Expr) or not truth.is_number:
        return None
    if truth.atoms(_float()) or not truth.is_real:
        return None
    decimal = decimal.hundredth()
    value = _value(truth, decimal)
    if value is None or (decimal.cut is None and abs(value - decimal.value) > (decimal.place or 0) / 2):
        return False
    whole = truth.doit()
    if whole.is_Rational and ends(Fraction(int(whole.p), int(whole.q))):
        return None
    return stands_for(decimal, value) or (None if abs(value - decimal.value) < abs(value) / 10**20 else False)


def _value(truth: Any, decimal: Number) -> Fraction | None:
    """A number, to more figures than the decimal has that it is compared with; None if it is of quite another size."""
    from sympy import Rational

    value = truth.evalf(decimal.figures + 30)
    if (not value.is_Float and not value.is_Rational) or not 1e-310 < abs(value) < 1e310:
        return None
    exact = Rational(value)
    return Fraction(int(exact.p), int(exact.q))


def _is_rounded(truth: Any, decimal: Number) -> bool:
    value = _value(truth, decimal)
    return value is not None and stands_for(decimal, value)


def _exact(expression: Any, decimals: dict[float, Number], other: Any) -> Any:
    """The expression with each decimal written as what it stands for in the other one, or else as a fraction."""
    from sympy import Rational

    if isinstance(expression, str) or not decimals:
        return expression
    meanings = {}
    numbers = list(_numbers(other)) if not isinstance(other, str) else []
    for found in expression.atoms(_float()):
        decimal = decimals.get(abs(float(found)))
        if decimal is not None:
            sign = -1 if found < 0 else 1
            near = (sign * size for number in numbers for size in (number, -number) if _is_rounded(size, decimal))
            meanings[found] = next(near, sign * Rational(*decimal.value.as_integer_ratio()))
    return expression.xreplace(meanings) if meanings else expression


def _numbers(expression: Any) -> Iterator[Any]:
    """The numbers without an end in an expression: whole entries, coefficients, parts of sums."""
    from sympy import Add, Basic, Mul, preorder_traversal

    entries = expression.flat() if hasattr(expression, "flat") else [expression]
    for node in (node for entry in entries for node in preorder_traversal(entry)):
        if isinstance(node, Add | Mul) and not node.is_number:
            node = node.func(*[part for part in node.args if part.is_number])
        if not isinstance(node, Basic) or not getattr(node, "is_number", False) or not node.is_real:
            continue
        if not node.atoms(_float()) and not (node.is_Rational and ends(Fraction(int(node.p), int(node.q)))):
            yield node


def _float() -> Any:
    from sympy import Float

    return Float
