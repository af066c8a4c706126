"""How often the client of a served model ends otherwise than in an answer or one line, when its server is hostile.

    python benchmarks/hostile_server.py [--tries 5000] [--first 0]

Each try starts a server on loopback that answers one question with the bytes of ``tests/hostile_replies.py`` for its
seed: JSON with values replaced, left out, doubled or nested; JSON with bytes changed; megabytes of small values; deep
nesting; compression bombs; any status with any header; lengths that lie, chunks that break, HTTP that is none. The
question is asked at most twice. A try fails if anything but `RlifError` is raised, if its message is not one printable
line, if the API key stands in the message or in the answer, or if the answer has a value that it cannot have.

The larger campaign than that of the tests; docs/reliability.md has its numbers.
"""

import argparse
import os
import resource
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from hostile_replies import KEY, KINDS, RawServer, hostile_reply, kind_of
from rlif.errors import RlifError
from rlif.evals.backends.openai_client import KEY_VARIABLE, Client, Server
from rlif.evals.backends.openai_protocol import Ask, Reply
from rlif.types import Sampling

ASKS = (Ask("p, sample 0", ({"role": "user", "content": "6*7="},), 0), Ask("p, sample 0", "6*7=", 0))


def attempt(seed: int) -> str:
    """What became of one try: "answer", "line", or why it failed."""
    reply = hostile_reply(seed)

    def say(request: bytes) -> Iterator[bytes | float]:
        yield reply

    with RawServer(say) as server:
        client = Client(Server(server.url, "m", retries=1, first_wait=0.001, timeout=20.0))
        try:
            ((_, answer),) = client.answers([ASKS[seed % 2]], Sampling(max_new_tokens=64, stop=("\n\n",)))
        except RlifError as error:
            message = str(error)
            if KEY in message:
                return "the key in a message"
            return "line" if message.isprintable() and len(message) < 700 else "a message that is not one line"
        except Exception as error:
            return f"a traceback: {type(error).__name__}"
    return _problem(answer)


def _problem(answer: Reply) -> str:
    if KEY in answer.text or KEY in str(answer.model):
        return "the key in an answer"
    logprobs = answer.logprobs or ()
    possible = 0 <= answer.n_tokens < 1 << 31 and 0 <= answer.thoughts <= len(answer.text)
    possible &= answer.stop in ("eos", "stop_string", "length") and all(-9999.0 < value <= 0.0 for value in logprobs)
    answer.text.encode()  # half a character would raise
    return "answer" if possible else "an answer that cannot be"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tries", type=int, default=5000)
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    options = parser.parse_args()
    os.environ[KEY_VARIABLE] = KEY
    started, ends, failed = time.monotonic(), Counter[tuple[str, str]](), []
    for seed in range(options.first, options.first + options.tries):
        end = attempt(seed)
        ends[kind_of(seed), end if end in ("answer", "line") else "failed"] += 1
        if end not in ("answer", "line"):
            failed.append(f"seed {seed} ({kind_of(seed)}): {end}")
    print("| replies | tries | an answer | one line | failed |\n|---|---|---|---|---|")
    for kind in KINDS:
        ends.update({("all", end): ends[kind, end] for end in _ENDS})
    for kind in (*KINDS, "all"):
        counts = [ends[kind, end] for end in _ENDS]
        print(f"| {kind} | {sum(counts):,} | " + " | ".join(f"{count:,}" for count in counts) + " |")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    print(
        f"\n{time.monotonic() - started:.0f} s; at most {peak / 1e6:.0f} MB in memory, server and libraries among them"
    )
    print("\n".join(failed))
    sys.exit(bool(failed))


_ENDS = ("answer", "line", "failed")

if __name__ == "__main__":
    main()
