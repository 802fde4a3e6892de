"""The fetcher against a real server on this machine."""

from __future__ import annotations

import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from mmembed import fetch
from mmembed.errors import ReadError
from mmembed.fetch import Fetcher, is_public
from mmembed.types import Media

BODY = bytes(range(256)) * 100
FETCHER = Fetcher(timeout=5, megabytes=1, allow_private_hosts=True)

Answer = Callable[[BaseHTTPRequestHandler], None]


def answer(status: int = 200, body: bytes = BODY, length: int | None = None, **headers: str) -> Answer:
    def give(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(status)
        for name, value in headers.items():
            handler.send_header(name.replace("_", "-"), value)
        if "Content_Length" not in headers:
            handler.send_header("Content-Length", str(len(body) if length is None else length))
        handler.end_headers()
        handler.wfile.write(body)

    return give


def drip(handler: BaseHTTPRequestHandler) -> None:
    """A byte now and then, for ever."""
    handler.send_response(200)
    handler.end_headers()
    try:
        while True:
            handler.wfile.write(b"x")
            time.sleep(0.05)
    except OSError:
        handler.close_connection = True


def drip_headers(handler: BaseHTTPRequestHandler) -> None:
    """A header now and then, for ever."""
    try:
        handler.wfile.write(b"HTTP/1.1 200 OK\r\nX-Wait: ")
        while True:
            handler.wfile.write(b"x")
            time.sleep(0.05)
    except OSError:
        handler.close_connection = True


def endless(handler: BaseHTTPRequestHandler) -> None:
    """As much as one will take, without a length."""
    handler.send_response(200)
    handler.end_headers()
    try:
        while True:
            handler.wfile.write(bytes(1 << 16))
    except OSError:
        handler.close_connection = True


class Site:
    """A web site: answers by path, and what was asked for."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.answers: dict[str, Answer] = {}
        self.asked: list[tuple[str, dict[str, str]]] = []

    def url(self, path: str, host: str = "127.0.0.1") -> str:
        return f"http://{host}:{self.port}{path}"


@pytest.fixture
def site() -> Iterator[Site]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            made.asked.append((self.path, dict(self.headers)))
            made.answers.get(self.path, answer(404, b"none"))(self)

        def log_message(self, format: str, *arguments: object) -> None:
            """Nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        made = Site(server.server_address[1])
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        yield made
        server.shutdown()


def test_a_body_is_fetched_by_a_program_that_says_its_name(site: Site) -> None:
    site.answers["/a%20b?c=d%C3%A9"] = answer()
    assert FETCHER.fetch(site.url("/a b?c=dé")) == BODY
    [(_, headers)] = site.asked
    assert headers["User-Agent"].startswith("mmembed/")
    assert headers["Accept-Encoding"] == "identity"
    assert headers["Host"] == f"127.0.0.1:{site.port}"


def test_redirects_are_followed_also_to_relative_places_but_not_for_ever(site: Site) -> None:
    site.answers |= {"/a": answer(302, b"", Location="/b"), "/b": answer(301, b"", Location=site.url("/c"))}
    site.answers |= {"/c": answer(), "/loop": answer(307, b"", Location="/loop")}
    assert FETCHER.fetch(site.url("/a")) == BODY
    with pytest.raises(ReadError, match=r"can't fetch .*/loop: it is redirected more than 5 times"):
        FETCHER.fetch(site.url("/loop"))
    assert len([path for path, _ in site.asked if path == "/loop"]) == 6


@pytest.mark.parametrize("place", ["file:///etc/passwd", "ftp://127.0.0.1/a", "gopher://127.0.0.1/"])
def test_a_redirect_to_another_kind_of_place_is_refused(site: Site, place: str) -> None:
    site.answers["/a"] = answer(302, b"", Location=place)
    with pytest.raises(ReadError, match=r"is no http\(s\) URL"):
        FETCHER.fetch(site.url("/a"))


@pytest.mark.parametrize("status", [204, 400, 403, 404, 410])
def test_what_the_server_refuses_is_told_with_its_number(site: Site, status: int) -> None:
    site.answers["/a"] = answer(status, b"")
    with pytest.raises(ReadError, match=f"the server answers {status}"):
        FETCHER.fetch(site.url("/a"))
    assert len(site.asked) == 1


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetch, "_PAUSE_SECONDS", 0.01)


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("status", [429, 500, 502, 503, 504])
def test_a_server_that_fails_is_asked_a_second_time(site: Site, status: int) -> None:
    answers = iter([answer(status, b""), answer()])
    site.answers["/a"] = lambda handler: next(answers)(handler)
    assert FETCHER.fetch(site.url("/a")) == BODY
    site.answers["/b"] = answer(status, b"")
    with pytest.raises(ReadError, match=f"the server answers {status}"):
        FETCHER.fetch(site.url("/b"))
    assert [path for path, _ in site.asked] == ["/a", "/a", "/b", "/b"]


@pytest.mark.usefixtures("quick")
def test_nobody_there_is_one_line(site: Site) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/a"
        with pytest.raises(ReadError, match=r"can't fetch .*/a: .*refused") as caught:
            FETCHER.fetch(url)
    assert "\n" not in str(caught.value)


def test_a_body_above_the_limit_is_refused_with_and_without_a_length(site: Site) -> None:
    site.answers |= {"/told": answer(length=1_000_001), "/fits": answer(body=bytes(1_000_000)), "/endless": endless}
    assert len(FETCHER.fetch(site.url("/fits"))) == 1_000_000
    with pytest.raises(ReadError, match="its 1,000,001 bytes are more than 1 MB"):
        FETCHER.fetch(site.url("/told"))
    with pytest.raises(ReadError, match="it has more than 1 MB"):
        FETCHER.fetch(site.url("/endless"))


def test_a_body_that_is_cut_off_is_none(site: Site) -> None:
    site.answers["/a"] = answer(length=len(BODY) + 10)
    with pytest.raises(ReadError, match="it was cut off after 25,600 of 25,610 bytes|IncompleteRead"):
        FETCHER.fetch(site.url("/a"))


@pytest.mark.parametrize("answer", [drip, drip_headers])
def test_a_server_that_drips_is_left_in_time(site: Site, answer: Answer) -> None:
    site.answers["/drip"] = answer
    start = time.monotonic()
    with pytest.raises(ReadError, match="it took more than 0.4 seconds"):
        replace(FETCHER, timeout=0.4).fetch(site.url("/drip"))
    assert time.monotonic() - start < 3


@pytest.mark.parametrize("tag", ["noai", "noimageai", "all, NOINDEX", "mmembed: noimageindex", "nofollow,noai"])
def test_an_owner_who_objects_is_heard(site: Site, tag: str) -> None:
    site.answers["/a"] = answer(X_Robots_Tag=tag)
    with pytest.raises(ReadError, match="its owner objects by the header X-Robots-Tag"):
        FETCHER.fetch(site.url("/a"))


@pytest.mark.parametrize("tag", ["all", "otherbot: noai", "nosnippet", "unavailable_after: 2030-01-01"])
def test_what_is_meant_for_others_is_no_objection(site: Site, tag: str) -> None:
    site.answers["/a"] = answer(X_Robots_Tag=tag)
    assert FETCHER.fetch(site.url("/a")) == BODY


def test_a_packed_body_is_refused(site: Site) -> None:
    site.answers["/a"] = answer(Content_Encoding="gzip")
    with pytest.raises(ReadError, match="packs the body as gzip"):
        FETCHER.fetch(site.url("/a"))


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "127.1", "2130706433", "0x7f000001", "0.0.0.0"])
def test_this_machine_is_refused_by_any_of_its_names(site: Site, host: str) -> None:
    site.answers["/a"] = answer()
    with pytest.raises(ReadError, match="no public address: allow that with --allow-private-hosts"):
        Fetcher(timeout=5).fetch(site.url("/a", host))
    assert not site.asked


def test_a_redirect_to_this_machine_is_refused(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first hop counts as public here; the second one is not."""
    site.answers |= {"/a": answer(302, b"", Location=site.url("/b", "localhost")), "/b": answer()}
    monkeypatch.setattr(fetch, "is_public", lambda address: len(site.asked) == 0)
    with pytest.raises(ReadError, match="its host localhost is .*no public address"):
        Fetcher(timeout=5).fetch(site.url("/a"))
    assert [path for path, _ in site.asked] == ["/a"]


def test_a_name_with_one_private_address_is_refused_and_resolved_once(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def resolve(host: str, port: int, **options: object) -> list[object]:
        asked.append(host)
        return [(socket.AF_INET, 1, 6, "", (address, port)) for address in ("93.184.215.14", "10.0.0.1")]

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    with pytest.raises(ReadError, match="its host rebind.example is 10.0.0.1"):
        Fetcher(timeout=5).fetch("http://rebind.example/a")
    assert asked == ["rebind.example"]


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1", "10.1.2.3", "172.16.0.1", "192.168.1.1", "169.254.169.254", "0.0.0.0", "100.64.0.1", "224.0.0.1",
        "240.0.0.1", "255.255.255.255", "::1", "::", "fe80::1%eth0", "fc00::1", "ff02::1", "::ffff:127.0.0.1",
        "::ffff:10.0.0.1", "2002:7f00:1::", "64:ff9b::7f00:1", "64:ff9b::a00:1",
    ],
)  # fmt: skip
def test_private_addresses_are_known_in_all_their_clothes(address: str) -> None:
    assert not is_public(address)


@pytest.mark.parametrize(
    "address", ["93.184.215.14", "8.8.8.8", "2606:2800:21f:cb07:6820:80da:af6b:8b2c", "64:ff9b::808:808"]
)
def test_public_addresses_are_public(address: str) -> None:
    assert is_public(address)


def test_a_host_that_can_not_prove_its_name_is_refused(tmp_path: Path) -> None:
    key, certificate = tmp_path / "key.pem", tmp_path / "cert.pem"
    words = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1", "-subj", "/CN=localhost"]
    subprocess.run([*words, "-keyout", str(key), "-out", str(certificate)], check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)

    class Quiet(BaseHTTPRequestHandler):
        do_GET = answer()

    with ThreadingHTTPServer(("127.0.0.1", 0), Quiet) as server:
        server.socket = context.wrap_socket(server.socket, server_side=True)
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        with pytest.raises(ReadError, match="certificate verify failed"):
            FETCHER.fetch(f"https://localhost:{server.server_address[1]}/")
        server.shutdown()


def test_media_are_fetched_ahead_and_come_in_order(site: Site) -> None:
    def slow(handler: BaseHTTPRequestHandler) -> None:
        time.sleep(0.2)
        answer(body=b"slow")(handler)

    site.answers |= {"/slow": slow} | {f"/{number}": answer(body=b"%d" % number) for number in range(40)}
    urls = [Media(site.url("/slow"))] + [Media(site.url(f"/{number}")) for number in range(40)]
    local = Media(content="here")
    found = list(FETCHER.prefetched([local, *urls, Media(site.url("/missing")), local]))
    assert found[0] is local and found[-1] is local
    assert [item.content for item in found[1:-2] if isinstance(item, Media)] == [
        b"slow",
        *(b"%d" % n for n in range(40)),
    ]
    assert isinstance(found[-2], ReadError) and "404" in str(found[-2])
    assert found[1] == replace(urls[0], content=b"slow")


def test_no_more_than_a_few_are_fetched_ahead(site: Site) -> None:
    site.answers |= {f"/{number}": answer(body=b"x") for number in range(200)}
    media = FETCHER.prefetched(Media(site.url(f"/{number}")) for number in range(200))
    next(media)
    time.sleep(0.5)
    assert len(site.asked) <= fetch.THREADS + 2
    media.close()  # type: ignore[attr-defined]


def test_where_no_url_occurs_no_thread_is_started() -> None:
    before = threading.active_count()
    assert len(list(Fetcher().prefetched(Media(content=str(number)) for number in range(50)))) == 50
    assert threading.active_count() == before
