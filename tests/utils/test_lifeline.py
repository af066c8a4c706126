"""Connections that break when a process ends without a goodbye; and what torchrun tells a process."""

import socket
import subprocess
import sys
import threading
from collections.abc import Callable

import pytest

from rlif.errors import RlifError
from rlif.training import launch
from rlif.utils import terminal
from rlif.utils.lifeline import Hub, Lifeline, called
from rlif.utils.torchrun import Place, launched


def lifelines(others: int) -> tuple[Lifeline, list[Lifeline]]:
    """A hub's, and those of the others."""
    hub = Hub("secret")
    found: list[Lifeline] = []
    callers = [
        threading.Thread(target=lambda: found.append(called("127.0.0.1", hub.port, "secret"))) for _ in range(others)
    ]
    for caller in callers:
        caller.start()
    gathered = hub.gathered(others)
    for caller in callers:
        caller.join()
    return gathered, found


def lost(lines: list[Lifeline]) -> list[threading.Event]:
    events = [threading.Event() for _ in lines]
    for line, event in zip(lines, events, strict=True):
        line.watch(event.set)
    return events


@pytest.mark.parametrize("fallen", [0, 1])
def test_one_that_hangs_up_without_a_word_is_missed_by_all(fallen: int) -> None:
    hub, (first, second) = lifelines(2)
    alive = [hub, second] if fallen else [first, second]
    events = lost(alive)
    (first if fallen else hub).cut()
    assert all(event.wait(30.0) for event in events)


def test_who_says_goodbye_is_not_missed() -> None:
    hub, others = lifelines(2)
    events = lost([hub, *others])
    others[0].close()
    hub.close()
    others[1].close()
    assert not any(event.wait(0.2) for event in events)


@pytest.mark.parametrize("word", [b"wrong!", b"sec", b""])
def test_a_stranger_is_not_taken_for_one_of_them(word: bytes) -> None:
    hub = Hub("secret")
    with socket.create_connection(("127.0.0.1", hub.port)) as stranger:
        stranger.sendall(word)
        stranger.shutdown(socket.SHUT_WR)
        own = called("127.0.0.1", hub.port, "secret")
        gathered = hub.gathered(1)
        assert stranger.recv(1) == b""
    (event,) = lost([gathered])
    own.cut()
    assert event.wait(30.0)


def test_an_exception_is_raised_in_another_thread_wherever_it_is() -> None:
    began, ended = threading.Event(), threading.Event()

    def work() -> None:
        began.set()
        try:
            while True:
                pass
        except ZeroDivisionError:
            ended.set()

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    assert began.wait(30.0)
    launch.raise_in(thread.ident or 0, ZeroDivisionError)
    assert ended.wait(30.0)


PLACE = {"TORCHELASTIC_RUN_ID": "7", "RANK": "2", "WORLD_SIZE": "4", "LOCAL_RANK": "0"}


@pytest.mark.parametrize(
    ("environment", "place"),
    [
        ({}, None),
        ({"RANK": "2", "WORLD_SIZE": "4", "LOCAL_RANK": "0"}, None),  # of another launcher: none of our affair
        ({**PLACE, "WORLD_SIZE": "1"}, None),
        (PLACE, Place(2, 4, 0, 0)),
        ({**PLACE, "TORCHELASTIC_RESTART_COUNT": "3"}, Place(2, 4, 0, 3)),
    ],
)
def test_the_place_of_a_process_is_what_torchrun_says(
    environment: dict[str, str], place: Place | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in (*PLACE, "TORCHELASTIC_RESTART_COUNT"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert launched() == place


def test_a_damaged_place_is_refused_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {**PLACE, "WORLD_SIZE": "many"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(RlifError, match="unset it, or start the command with torchrun"):
        launched()


def test_a_hushed_process_prints_nothing_until_it_has_to_speak(capsys: pytest.CaptureFixture[str]) -> None:
    terminal.hush()
    print("lost", file=sys.stderr)
    terminal.note("lost, too")
    terminal.hush()  # twice is once
    terminal.speak()
    terminal.note("heard")
    terminal.speak()
    captured: Callable[[], tuple[str, str]] = capsys.readouterr
    assert captured() == ("", "heard\n")


SETTLED = """
import sys, threading
from rlif.training import launch

company = object.__new__(launch._Company)
company._thread, company._lock = threading.get_ident(), threading.Lock()
company._over = company._told_of_loss = False
sys.setprofile(lambda *event: None)
company._settle()
print("settled")
"""


def test_a_run_ends_under_a_profiler() -> None:
    """CPython 3.11 looks for an exception that was taken back at every call, and under a profiler never goes on."""
    done = subprocess.run([sys.executable, "-c", SETTLED], capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout == "settled\n"
