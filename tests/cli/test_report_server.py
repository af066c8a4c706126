"""`rlif report --serve`: one page, to this machine alone, as fresh as its folders."""

import http.client
import json
import threading
from collections.abc import Iterator
from http.server import HTTPServer
from pathlib import Path

import pytest

from rlif.cli.report_server import HOST, server
from rlif.errors import RlifError


@pytest.fixture
def served(tmp_path: Path) -> Iterator[tuple[HTTPServer, Path, list[int]]]:
    made: list[int] = []

    def make() -> bytes:
        made.append(1)
        text = (tmp_path / "metrics.jsonl").read_text()
        if "damaged" in text:
            raise RlifError("metrics.jsonl, line 1: damaged")
        return f"<p>{text}".encode()

    (tmp_path / "metrics.jsonl").write_text("first")
    with server([tmp_path], 0, make) as one:
        thread = threading.Thread(target=one.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield one, tmp_path / "metrics.jsonl", made
        one.shutdown()
        thread.join()


def asked(one: HTTPServer, path: str = "/", host: str | None = None) -> tuple[int, str]:
    connection = http.client.HTTPConnection(HOST, one.server_address[1], timeout=10)
    connection.request("GET", path, headers={"Host": host} if host else {})
    response = connection.getresponse()
    return response.status, response.read().decode()


def test_the_page_is_made_when_its_files_change(served: tuple[HTTPServer, Path, list[int]]) -> None:
    one, metrics, made = served
    assert asked(one) == (200, "<p>first")
    assert asked(one) == (200, "<p>first")
    assert len(made) == 1
    metrics.write_text(json.dumps("second look"))
    assert asked(one) == (200, '<p>"second look"')
    assert len(made) == 2
    metrics.write_text("damaged")
    assert asked(one) == (503, "metrics.jsonl, line 1: damaged")
    metrics.write_text("whole again")
    assert asked(one) == (200, "<p>whole again")


def test_only_this_machine_is_answered_and_only_one_page(served: tuple[HTTPServer, Path, list[int]]) -> None:
    one, _, made = served
    assert one.server_address[0] == "127.0.0.1"
    for host in ("example.org", "example.org:80", "127.0.0.1.example.org"):
        assert asked(one, host=host)[0] == 403
    for path in ("/metrics.jsonl", "/../metrics.jsonl", "/index.html"):
        assert asked(one, path)[0] == 404
    assert made == []
    assert asked(one, host=f"localhost:{one.server_address[1]}")[0] == 200


def test_a_port_that_is_taken_is_refused(served: tuple[HTTPServer, Path, list[int]]) -> None:
    with pytest.raises(RlifError, match="cannot be used"):
        server([], int(served[0].server_address[1]), lambda: b"")
