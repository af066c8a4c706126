"""`rlif report --serve`: the page over HTTP on this machine alone, made anew when the folders have changed."""

from collections.abc import Callable, Iterator, Sequence
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

from rlif.errors import Argument, RlifError

HOST = "127.0.0.1"
"""The loopback address: nobody else's machine reaches it."""
REFRESH = 60
"""Seconds after which a browser asks again. The address names the answer looked at, so the reader stays with it."""

_WATCHED = ("metrics.jsonl", "run.json", "recipe.yaml", "results.json", "eval.json", "results.parquet")


def server(folders: Sequence[Path], port: int, make: Callable[[], bytes]) -> HTTPServer:
    """A server of one page, which ``make`` makes. Raises `RlifError` if the port is taken.

    It answers GET / to whoever names this machine, and nothing else: a page of another site cannot ask under its own
    name.
    """
    kept: dict[str, object] = {}

    def page() -> bytes:
        now = tuple(_marks(folders))
        if kept.get("marks") != now:
            kept.update(marks=now, page=make())
        return bytes(kept["page"])  # type: ignore[call-overload]

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if self.headers.get("Host", "").partition(":")[0] not in (HOST, "localhost"):
                self.send_error(403)
            elif self.path.partition("?")[0] != "/":
                self.send_error(404)
            else:
                self._send(page)

        def _send(self, page: Callable[[], bytes]) -> None:
            try:
                data = page()
            except RlifError as error:  # a file was being written, or is damaged: the next look may find it whole
                self.send_response(503)
                data = str(error).encode()
                self.send_header("Content-Type", "text/plain; charset=utf-8")
            else:
                self.send_response(200)
                self.send_header("Content-Type", "text/html; charset=utf-8")
            self.send_header("Refresh", str(REFRESH))
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *arguments: object) -> None:
            """Nothing is told of each request."""

    try:
        return HTTPServer((HOST, port), Handler)
    except OSError as error:
        raise RlifError(Argument("port"), f": {port} cannot be used ({error.strerror}); choose another") from error


def _marks(folders: Sequence[Path]) -> Iterator[tuple[str, int, int]]:
    """Names, sizes and times of the files that tell whether a folder has changed."""
    for folder in folders:
        for name in _WATCHED:
            for path in (folder / name, *sorted(folder.glob(f"*/{name}")), *sorted(folder.glob(f"runs/*/{name}"))):
                if path.is_file():
                    known = path.stat()
                    yield str(path), known.st_size, known.st_mtime_ns
