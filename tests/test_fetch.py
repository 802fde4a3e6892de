"""The fetcher against a real server on this machine."""

from __future__ import annotations

import ipaddress
import pickle
import socket
import ssl
import struct
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

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


def raw(data: bytes) -> Answer:
    """These bytes, whatever they are, and the end of the connection."""

    def give(handler: BaseHTTPRequestHandler) -> None:
        handler.wfile.write(data)
        handler.close_connection = True

    return give


def reset(handler: BaseHTTPRequestHandler) -> None:
    """The end of the connection by a reset, in place of an answer."""
    handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    handler.connection.close()
    handler.close_connection = True


def one_after_the_other(*answers: Answer) -> Answer:
    left = iter(answers)
    return lambda handler: next(left)(handler)


class Site:
    """A web site: answers by path, and what was asked for."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.answers: dict[str, Answer] = {}
        self.asked: list[tuple[str, dict[str, str]]] = []

    def url(self, path: str, host: str = "127.0.0.1") -> str:
        return f"http://{host}:{self.port}{path}"


class Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: object, client_address: object) -> None:
        """Clients leave as they like."""


@contextmanager
def serving(tls: ssl.SSLContext | None = None) -> Iterator[Site]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            made.asked.append((self.path, dict(self.headers)))
            made.answers.get(self.path, answer(404, b"none"))(self)

        def log_message(self, format: str, *arguments: object) -> None:
            """Nothing."""

    with Server(("127.0.0.1", 0), Handler) as server:
        if tls:
            server.socket = tls.wrap_socket(server.socket, server_side=True)
        made = Site(server.server_address[1])
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        yield made
        server.shutdown()


@pytest.fixture
def site() -> Iterator[Site]:
    with serving() as made:
        yield made


def test_a_fetcher_can_be_sent_to_a_worker() -> None:
    assert pickle.loads(pickle.dumps(FETCHER)) == FETCHER


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


def test_five_redirects_are_followed_and_six_are_not(site: Site) -> None:
    site.answers |= {f"/{n}": answer(302, b"", Location=f"/{n - 1}") for n in range(1, 7)} | {"/0": answer()}
    assert FETCHER.fetch(site.url("/5")) == BODY
    with pytest.raises(ReadError, match="redirected more than 5 times"):
        FETCHER.fetch(site.url("/6"))


@pytest.mark.parametrize("place", ["/caf\xc3\xa9 x", "/caf%C3%A9%20x", "/caf\xc3\xa9%20x#part"])
def test_a_redirect_to_a_place_in_raw_utf_8_is_followed(site: Site, place: str) -> None:
    site.answers |= {"/a": raw(f"HTTP/1.1 302 x\r\nLocation: {place}\r\n\r\n".encode("latin-1"))}
    site.answers |= {"/caf%C3%A9%20x": answer(), "/b": answer(302, b"", Location=f"HTTP://127.0.0.1:{site.port}/a")}
    assert FETCHER.fetch(site.url("/b")) == BODY


def test_environment_names_no_proxy(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "https_proxy", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    site.answers["/a"] = answer()
    assert FETCHER.fetch(site.url("/a")) == BODY


def test_a_url_with_a_password_is_refused_and_the_password_not_repeated(site: Site) -> None:
    site.answers |= {"/a": answer(302, b"", Location=site.url("/b", "me:secret@127.0.0.1")), "/b": answer()}
    for url in (site.url("/b", "me:secret@127.0.0.1"), site.url("/a")):
        with pytest.raises(ReadError, match="it holds a user's name or password") as caught:
            FETCHER.fetch(url)
        assert "secret" not in str(caught.value)
    assert [path for path, _ in site.asked] == ["/a"]


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
    site.answers["/a"] = one_after_the_other(answer(status, b""), answer())
    assert FETCHER.fetch(site.url("/a")) == BODY
    site.answers["/b"] = answer(status, b"")
    with pytest.raises(ReadError, match=f"the server answers {status}"):
        FETCHER.fetch(site.url("/b"))
    assert [path for path, _ in site.asked] == ["/a", "/a", "/b", "/b"]


@pytest.mark.usefixtures("quick")
def test_a_connection_that_is_reset_is_opened_a_second_time(site: Site) -> None:
    site.answers["/a"] = one_after_the_other(reset, answer())
    assert FETCHER.fetch(site.url("/a")) == BODY
    site.answers["/b"] = reset
    with pytest.raises(ReadError, match=r"can't fetch .*/b: "):
        FETCHER.fetch(site.url("/b"))
    assert [path for path, _ in site.asked] == ["/a", "/a", "/b", "/b"]


def test_there_is_no_second_try_where_no_time_is_left_for_it(site: Site) -> None:
    site.answers["/a"] = answer(503, b"")
    with pytest.raises(ReadError, match="the server answers 503 Service Unavailable"):
        replace(FETCHER, timeout=0.9).fetch(site.url("/a"))
    assert len(site.asked) == 1


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


CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nabcde\r\n"


def test_a_body_in_chunks_is_put_together(site: Site) -> None:
    site.answers["/a"] = raw(CHUNKED + b"3;of=three\r\nfgh\r\n0\r\n\r\n")
    assert FETCHER.fetch(site.url("/a")) == b"abcdefgh"


def test_a_body_without_a_length_goes_to_the_end_of_the_connection(site: Site) -> None:
    site.answers["/a"] = raw(b"HTTP/1.0 200 OK\r\n\r\n" + BODY)
    assert FETCHER.fetch(site.url("/a")) == BODY


def test_a_body_that_is_longer_than_it_says_ends_where_it_says(site: Site) -> None:
    site.answers["/a"] = answer(length=100)
    assert FETCHER.fetch(site.url("/a")) == BODY[:100]


def test_a_body_that_is_cut_off_is_none(site: Site) -> None:
    site.answers["/a"] = answer(length=len(BODY) + 10)
    with pytest.raises(ReadError, match=r"it was cut off after 25,600 of 25,610 bytes"):
        FETCHER.fetch(site.url("/a"))
    for end in (b"", b"5\r\nfg", b"3\r\nfgh\r\n", b"no number\r\n"):
        site.answers["/chunks"] = raw(CHUNKED + end)
        with pytest.raises(ReadError, match=r"it was cut off after \d bytes"):
            FETCHER.fetch(site.url("/chunks"))


@pytest.mark.parametrize(
    "head",
    [
        b"X: y\r\n" * 101,
        b"X: " + bytes(70_000),
        b"HTTP/1.1 100 Continue\r\n\r\n" * 3 + b"\0",
        b"SSH-2.0" * 1000 + b"\r\n",
    ],
)
def test_heads_that_are_none_are_refused_in_one_short_line(site: Site, head: bytes) -> None:
    site.answers["/a"] = raw((b"" if b"0 C" in head or b"SSH" in head else b"HTTP/1.1 200 OK\r\n") + head)
    with pytest.raises(ReadError, match=r"can't fetch .*/a: ") as caught:
        FETCHER.fetch(site.url("/a"))
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400


HEADS = st.lists(
    st.sampled_from(
        [b"Content-Length: 3", b"Content-Length: -1", b"Content-Length: x", b"Transfer-Encoding: chunked",
         b" folded", b"Location: http://[::1", b"Location: //\xff/", b"Location: http://a:99999/",
         b"X-Robots-Tag: :,:", b"\xff: \0"]
    ),
    max_size=4,
)  # fmt: skip


@pytest.fixture
def no_other_host(monkeypatch: pytest.MonkeyPatch) -> None:
    """Names of other hosts are not resolved."""
    resolve = socket.getaddrinfo

    def resolve_own(host: str, *rest: Any, **more: Any) -> Any:
        if host != "127.0.0.1":
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return resolve(host, *rest, **more)

    monkeypatch.setattr(socket, "getaddrinfo", resolve_own)


@pytest.mark.usefixtures("quick", "no_other_host")
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(status=st.sampled_from([200, 204, 301, 304, 404, 999, 0]), heads=HEADS, body=st.binary(max_size=40))
def test_whatever_a_server_says_it_is_a_body_or_an_error(
    site: Site, status: int, heads: list[bytes], body: bytes
) -> None:
    site.answers["/a"] = raw(b"\r\n".join([b"HTTP/1.1 %d x" % status, *heads, b"", body]))
    try:
        assert FETCHER.fetch(site.url("/a")) in body or b"Transfer-Encoding: chunked" in heads
    except ReadError as error:
        assert "\n" not in str(error)


@pytest.mark.parametrize("answer", [drip, drip_headers])
def test_a_server_that_drips_is_left_in_time(site: Site, answer: Answer) -> None:
    site.answers["/drip"] = answer
    start = time.monotonic()
    with pytest.raises(ReadError, match="it took more than 0.4 seconds"):
        replace(FETCHER, timeout=0.4).fetch(site.url("/drip"))
    assert time.monotonic() - start < 3


def test_a_host_whose_name_is_not_resolved_in_time_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: time.sleep(3))
    start = time.monotonic()
    with pytest.raises(ReadError, match=r"can't fetch http://slow.example/a: it took more than 0.3 seconds"):
        Fetcher(timeout=0.3).fetch("http://slow.example/a")
    assert time.monotonic() - start < 2


def test_a_host_without_an_address_is_told_as_such(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(*_: object, **__: object) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    with pytest.raises(ReadError, match=r"can't fetch http://nowhere.example/a: Name or service not known$"):
        Fetcher(timeout=5).fetch("http://nowhere.example/a")


@pytest.mark.parametrize(
    "url", ["http://", "http:///a", "http://a..b/", "http://[::1/", "http:///\na", "http:///\udcff"]
)
def test_what_is_no_url_is_one_line(url: str) -> None:
    with pytest.raises(ReadError, match="can't fetch ") as caught:
        FETCHER.fetch(url)
    assert "\n" not in str(caught.value) and str(caught.value).encode()


@pytest.mark.parametrize(
    "tag",
    [
        "noai", "noimageai", "all, NOINDEX", "mmembed: noimageindex", "nofollow,noai", "otherbot: all, mmembed: noai",
        "MMEmbed: nofollow, noai", "noai, unavailable_after: Sun, 25 Jun 2030 15:00:00 PST", "*: noai",
        "unavailable_after: Sunday, 25-Jun-30 15:00:00 PST, noai", "max-snippet: 5, noindex",
    ],
)  # fmt: skip
def test_an_owner_who_objects_is_heard(site: Site, tag: str) -> None:
    site.answers["/a"] = answer(X_Robots_Tag=tag)
    with pytest.raises(ReadError, match="its owner objects by the header X-Robots-Tag: no"):
        FETCHER.fetch(site.url("/a"))


def test_an_objection_in_the_second_of_several_headers_is_heard(site: Site) -> None:
    site.answers["/a"] = raw(b"HTTP/1.1 200 OK\r\nX-Robots-Tag: all\r\nx-robots-tag: noai\r\n\r\nbody")
    with pytest.raises(ReadError, match="its owner objects"):
        FETCHER.fetch(site.url("/a"))


@pytest.mark.parametrize(
    "tag", ["all", "otherbot: noai", "otherbot: all, noai", "nosnippet", "unavailable_after: 2030-01-01", "noairplane"]
)
def test_what_is_meant_for_others_is_no_objection(site: Site, tag: str) -> None:
    site.answers["/a"] = answer(X_Robots_Tag=tag)
    assert FETCHER.fetch(site.url("/a")) == BODY


def test_a_packed_body_is_refused(site: Site) -> None:
    site.answers["/a"] = answer(Content_Encoding="gzip")
    with pytest.raises(ReadError, match="packs the body as gzip"):
        FETCHER.fetch(site.url("/a"))


@pytest.mark.parametrize("coding", ["identity", "Identity", ""])
def test_a_body_that_says_that_it_is_not_packed_is_taken(site: Site, coding: str) -> None:
    site.answers["/a"] = answer(Content_Encoding=coding)
    assert FETCHER.fetch(site.url("/a")) == BODY


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1", "localhost", "LOCALHOST", "127.1", "2130706433", "0x7f000001", "0177.0.0.1", "0.0.0.0", "0",
        "[::1]", "[::]", "[::ffff:127.0.0.1]", "[::ffff:7f00:1]", "[64:ff9b::7f00:1]", "[2002:7f00:1::]", "10.0.0.1",
        "169.254.169.254", "192.168.0.1", "[fe80::1]", "[fd00:ec2::254]", "[fec0::1]",
    ],
)  # fmt: skip
def test_this_machine_and_its_network_are_refused_by_any_of_their_names(site: Site, host: str) -> None:
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


def test_the_connection_leads_to_the_address_that_was_checked(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """A second question would be answered by another address."""
    resolve = socket.getaddrinfo
    answers = iter(["127.0.0.1", "127.0.0.2"])
    monkeypatch.setattr(socket, "getaddrinfo", lambda _, *rest, **more: resolve(next(answers), *rest, **more))
    site.answers["/a"] = answer()
    assert FETCHER.fetch(site.url("/a", "rebind.example")) == BODY
    assert next(answers) == "127.0.0.2"
    assert site.asked[0][1]["Host"] == f"rebind.example:{site.port}"


def test_the_next_address_is_tried_where_one_does_not_answer(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    site.answers["/a"] = answer()
    both = [(socket.AF_INET, 1, 6, "", (address, site.port)) for address in ("127.0.0.9", "127.0.0.1")]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: both)
    assert FETCHER.fetch(site.url("/a", "two.example")) == BODY


def test_an_address_that_never_answers_leaves_time_for_the_next(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    site.answers["/a"] = answer()
    both = [(socket.AF_INET, 1, 6, "", (address, site.port)) for address in ("127.0.0.2", "127.0.0.1")]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: both)
    with socket.create_server(("127.0.0.2", site.port), backlog=0), ExitStack() as waiting:
        for _ in range(4):  # they fill its queue, and the system answers nobody else
            client = waiting.enter_context(socket.socket())
            client.setblocking(False)
            client.connect_ex(("127.0.0.2", site.port))
        start = time.monotonic()
        assert replace(FETCHER, timeout=1).fetch(site.url("/a", "two.example")) == BODY
        assert time.monotonic() - start > 0.4


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
        "::ffff:10.0.0.1", "2002:7f00:1::", "64:ff9b::7f00:1", "64:ff9b::a00:1", "fec0::1", "::7f00:1", "64:ff9b:1::1",
    ],
)  # fmt: skip
def test_private_addresses_are_known_in_all_their_clothes(address: str) -> None:
    assert not is_public(address)


@pytest.mark.parametrize(
    "address", ["93.184.215.14", "8.8.8.8", "2606:2800:21f:cb07:6820:80da:af6b:8b2c", "64:ff9b::808:808"]
)
def test_public_addresses_are_public(address: str) -> None:
    assert is_public(address)


@given(st.ip_addresses(v=4))
def test_an_address_is_as_public_as_the_one_that_it_wraps(ip: ipaddress.IPv4Address) -> None:
    whole = int(ip)
    wraps = [(0xFFFF << 32) | whole, (0x0064FF9B << 96) | whole, (0x2002 << 112) | (whole << 80)]
    for wrap in wraps:
        assert is_public(str(ipaddress.IPv6Address(wrap))) == is_public(str(ip))


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, ssl.SSLContext]:
    """A certificate of localhost that it signed itself, and what a server of that name needs."""
    folder = tmp_path_factory.mktemp("tls")
    key, proof = folder / "key.pem", folder / "cert.pem"
    words = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1", "-subj", "/CN=localhost"]
    words += ["-addext", "subjectAltName=DNS:localhost", "-keyout", str(key), "-out", str(proof)]
    subprocess.run(words, check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(proof, key)
    return proof, context


def test_a_host_that_can_not_prove_its_name_is_refused(certificate: tuple[Path, ssl.SSLContext]) -> None:
    with serving(certificate[1]) as secure, pytest.raises(ReadError, match="certificate verify failed"):
        FETCHER.fetch(f"https://localhost:{secure.port}/a")
    assert not secure.asked


def test_a_host_proves_the_name_in_the_url_and_no_other(
    certificate: tuple[Path, ssl.SSLContext], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fetch, "_tls_context", lambda: ssl.create_default_context(cafile=certificate[0]))
    with serving(certificate[1]) as secure:
        secure.answers |= {"/a": answer(), "/drip": drip, "/cut": answer(length=len(BODY) + 1)}
        assert FETCHER.fetch(f"https://localhost:{secure.port}/a") == BODY
        assert secure.asked[0][1]["Host"] == f"localhost:{secure.port}"
        with pytest.raises(ReadError, match="certificate verify failed"):
            FETCHER.fetch(f"https://127.0.0.1:{secure.port}/a")
        with pytest.raises(ReadError, match="it took more than 0.4 seconds"):
            replace(FETCHER, timeout=0.4).fetch(f"https://localhost:{secure.port}/drip")
        with pytest.raises(ReadError, match="it was cut off"):
            FETCHER.fetch(f"https://localhost:{secure.port}/cut")


def test_a_host_that_never_ends_its_greeting_is_left_in_time() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:  # the system accepts, nobody answers
        for scheme in ("http", "https"):
            start = time.monotonic()
            with pytest.raises(ReadError, match="it took more than 0.3 seconds"):
                replace(FETCHER, timeout=0.3).fetch(f"{scheme}://127.0.0.1:{silent.getsockname()[1]}/a")
            assert time.monotonic() - start < 2


def test_a_host_that_knows_no_tls_is_one_line(site: Site) -> None:
    with pytest.raises(ReadError, match=r"can't fetch https://.*/a: ") as caught:
        FETCHER.fetch(f"https://127.0.0.1:{site.port}/a")
    assert "\n" not in str(caught.value)


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


def test_a_slow_host_does_not_stall_those_after_it(site: Site) -> None:
    def slow(handler: BaseHTTPRequestHandler) -> None:
        time.sleep(0.5)
        answer(body=b"slow")(handler)

    site.answers |= {f"/{number}": slow for number in range(10)}
    start = time.monotonic()
    assert len(list(FETCHER.prefetched(Media(site.url(f"/{number}")) for number in range(10)))) == 10
    assert time.monotonic() - start < 10 * 0.5 * 0.8


def test_a_body_too_large_to_be_fetched_ahead_is_fetched_in_its_turn(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fetch, "MEGABYTES_AHEAD", fetch.THREADS)  # a megabyte each
    large, small, too_large = bytes(1_500_000), bytes(1_000_000), bytes(2_000_001)
    bodies = {"/large": large, "/small": small, "/too-large": too_large}
    site.answers |= {path: answer(body=body) for path, body in bodies.items()}
    site.answers["/untold"] = raw(b"HTTP/1.1 200 OK\r\n\r\n" + large)
    paths = ["/large", "/small", "/too-large", "/untold"]
    found = list(replace(FETCHER, megabytes=2).prefetched(Media(site.url(path)) for path in paths))
    assert [item.content for item in found if isinstance(item, Media)] == [large, small, large]
    assert type(found[2]) is ReadError and "2,000,001 bytes are more than 2 MB" in str(found[2])
    asked = [path for path, _ in site.asked]
    assert [asked.count(path) for path in paths] == [2, 1, 2, 2]


def test_nothing_more_is_asked_for_when_nobody_waits(site: Site) -> None:
    def slow(handler: BaseHTTPRequestHandler) -> None:
        time.sleep(0.1)
        answer(body=b"x")(handler)

    site.answers |= {f"/{number}": slow for number in range(100)}
    media: Any = FETCHER.prefetched(Media(site.url(f"/{number}")) for number in range(100))
    next(media)
    media.close()
    time.sleep(0.3)
    asked = len(site.asked)
    time.sleep(0.3)
    assert len(site.asked) == asked <= 2 * fetch.THREADS


def test_where_no_url_occurs_no_thread_is_started() -> None:
    before = threading.active_count()
    assert len(list(Fetcher().prefetched(Media(content=str(number)) for number in range(50)))) == 50
    assert threading.active_count() == before
