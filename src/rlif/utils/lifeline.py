"""Connections that only tell whether a process still lives: they break when it dies, whatever it dies of.

One process, the hub, holds a connection to each of the others. Nobody speaks on them until the end, when `close` says
goodbye. If one breaks without that word, the hub breaks the others, and so everybody knows within a moment, also those
that compute and ask nobody. A machine without power is missed after half a minute.
"""

import hmac
import socket
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress

_GOODBYE = b"."
_PATIENCE = 300.0  # seconds in which all have to come
_KEEPALIVE = {"TCP_KEEPIDLE": 10, "TCP_KEEPINTVL": 5, "TCP_KEEPCNT": 4}  # seconds, seconds, times


class Hub:
    """Where the others call: ``port`` of this machine, with ``token``, which keeps strangers out."""

    def __init__(self, token: str) -> None:
        ipv6 = socket.has_dualstack_ipv6()
        family = socket.AF_INET6 if ipv6 else socket.AF_INET
        self._listener = socket.create_server(("", 0), family=family, dualstack_ipv6=ipv6)
        self._token = token.encode()
        self.port: int = self._listener.getsockname()[1]

    def gathered(self, others: int) -> "Lifeline":
        """The lifeline, once so many others have called. Raises OSError (TimeoutError) if they do not."""
        lines: list[socket.socket] = []
        with self._listener:
            self._listener.settimeout(_PATIENCE)
            while len(lines) < others:
                line, _ = self._listener.accept()
                line.settimeout(_PATIENCE)
                with suppress(OSError):
                    if hmac.compare_digest(_read(line, len(self._token)), self._token):
                        lines.append(line)
                        continue
                line.close()
        return Lifeline(lines)


def called(host: str, port: int, token: str) -> "Lifeline":
    """The lifeline of one of the others. Raises OSError if nobody answers there."""
    line = socket.create_connection((host, port), timeout=_PATIENCE)
    line.sendall(token.encode())
    return Lifeline([line])


class Lifeline:
    """The connections of one process: the hub's to all others, or that to the hub."""

    def __init__(self, lines: Sequence[socket.socket]) -> None:
        self._lines, self._watched, self._hung_up = list(lines), False, False
        for line in self._lines:
            line.settimeout(None)
            line.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            for name, value in _KEEPALIVE.items():
                if hasattr(socket, name):
                    line.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)

    def watch(self, on_loss: Callable[[], None]) -> None:
        """Call ``on_loss``, in a thread of its own, when a connection breaks before the other side's goodbye."""
        self._watched = True
        for line in self._lines:
            threading.Thread(target=self._wait, args=(line, on_loss), name="lifeline", daemon=True).start()

    def _wait(self, line: socket.socket, on_loss: Callable[[], None]) -> None:
        with line, suppress(OSError):
            if line.recv(1) == _GOODBYE:
                return
        if not self._hung_up:
            on_loss()
            self.cut()

    def close(self) -> None:
        """Say goodbye and hang up."""
        self._hung_up = True  # a word to one that has hung up already resets the connection, its own goodbye unread
        for line in self._lines:
            with suppress(OSError):
                line.sendall(_GOODBYE)
        self.cut()

    def cut(self) -> None:
        """Hang up without a word: the others are to know that something went wrong."""
        self._hung_up = True
        for line in self._lines:
            with suppress(OSError):  # wakes the thread that waits on it and closes it
                line.shutdown(socket.SHUT_RDWR)
            if not self._watched:
                line.close()


def _read(line: socket.socket, count: int) -> bytes:
    found = b""
    while len(found) < count and (more := line.recv(count - len(found))):
        found += more
    return found
