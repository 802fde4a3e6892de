"""Media behind http(s) URLs: fetched within a limit of time and size, from public hosts, unless their owner objects."""

from __future__ import annotations

import http.client
import io
import ipaddress
import re
import socket
import ssl
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cache, partial
from queue import Empty, SimpleQueue
from typing import Any
from urllib.parse import SplitResult, urljoin, urlsplit

import mmembed
from mmembed.errors import ReadError
from mmembed.files import open_binary, read_part
from mmembed.remote import is_web
from mmembed.types import Media, Part

MAX_REDIRECTS = 5
"""More is a loop, or somebody who hides where a URL leads."""

THREADS = 16
"""Fetches at the same time in one process: hosts answer slowly, and each is asked for one thing at a time anyway."""

MEGABYTES_AHEAD = 64
"""Of bodies that are fetched before their turn, at most, in 10^6 bytes; each may have its THREADS-th part."""

OPT_OUT = frozenset({"noai", "noimageai", "noindex", "noimageindex"})
"""Directives of `X-Robots-Tag` by which an owner objects to a use like this one; those that img2dataset honours."""

_AGENT = "mmembed"
_WITH_VALUES = frozenset({"unavailable_after", "max-snippet", "max-image-preview", "max-video-preview"})
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_AGAIN = frozenset({429, 500, 502, 503, 504})
_PAUSE_SECONDS = 1.0
_BLOCK = 1 << 16
_MESSAGE_SIGNS = 300
_NAT64 = ipaddress.ip_network("64:ff9b::/96")


@dataclass(frozen=True)
class Fetcher:
    """Fetches what http(s) URLs name.

    Attributes:
        timeout: seconds for all that one URL takes, redirects and a second try among it.
        megabytes: the largest body, in 10^6 bytes.
        allow_private_hosts: whether URLs may lead to this machine and to private networks.
    """

    timeout: float = 30.0
    megabytes: int = 100
    allow_private_hosts: bool = False

    def fetch(self, url: str) -> bytes:
        """The body behind a URL.

        Redirects are followed, each checked as the first. A server that fails or asks to wait is tried once more.

        Raises:
            ReadError: it can't be had, is too large, takes too long, lies on a host that is not public, or its owner
                objects to such uses; the message says which.
        """
        end = time.monotonic() + self.timeout
        try:
            try:
                return self._follow(url, end)
            except (_TryAgain, ConnectionError):
                if time.monotonic() + _PAUSE_SECONDS >= end:
                    raise
                time.sleep(_PAUSE_SECONDS)
                return self._follow(url, end)
        except _TooLarge as error:
            raise _TooLargeError(f"can't fetch {_shown(url)}: {error}") from error
        except _Refused as error:
            raise ReadError(f"can't fetch {_shown(url)}: {error}") from error
        except (OSError, http.client.HTTPException, ValueError) as error:
            late = isinstance(error, TimeoutError) or time.monotonic() >= end  # what is late, the guard has shut
            reason = f"it took more than {self.timeout:g} seconds" if late else _reason(error)
            raise ReadError(f"can't fetch {_shown(url)}: {reason}") from error

    def prefetched(self, media: Iterable[Media]) -> Iterator[Media | ReadError]:
        """Media in order, those behind URLs with their content; a few are fetched ahead, in threads.

        Remote files are read once here instead of wherever they are opened. Members of remote archives are read one
        after the other, as they lie there. What can't be had gives its error. The bodies that wait for their turn have
        MEGABYTES_AHEAD in all: one that is larger than its part of that is left, and fetched when its turn has come.
        """
        ahead: deque[Callable[[], Media | ReadError]] = deque()
        pool: ThreadPoolExecutor | None = None
        hasty = replace(self, megabytes=min(self.megabytes, MEGABYTES_AHEAD // THREADS))
        try:
            for item in media:
                if not item.is_remote:
                    ahead.append(lambda item=item: item)  # type: ignore[misc]
                elif item.part:
                    ahead.append(_content(partial(self._read_part, item.part), item))
                else:
                    pool = pool or ThreadPoolExecutor(THREADS)
                    coming = pool.submit(hasty._load, item.location)
                    ahead.append(_content(partial(self._in_turn, coming, item.location), item))
                while len(ahead) > (THREADS if pool else 0):
                    yield ahead.popleft()()
            while ahead:
                yield ahead.popleft()()
        finally:
            if pool:
                pool.shutdown(wait=False, cancel_futures=True)

    def _in_turn(self, coming: Future[bytes], location: str) -> bytes:
        try:
            return coming.result()
        except _TooLargeError:
            return self._load(location)

    def _load(self, location: str) -> bytes:
        return self.fetch(location) if is_web(location) else self._read_remote(location)

    def _read_remote(self, location: str) -> bytes:
        limit = self.megabytes * 1_000_000
        try:
            with open_binary(location) as file:
                if (size := file.seek(0, io.SEEK_END)) > limit:
                    raise _TooLargeError(f"can't read {location}: {_above(size, self.megabytes)}")
                file.seek(0)
                return file.read()
        except ReadError:
            raise
        except Exception as error:  # the client of each file system has errors of its own
            raise ReadError(f"can't read {location}: {_reason(error)}") from error

    def _read_part(self, part: Part) -> bytes:
        if part.bytes > self.megabytes * 1_000_000:
            raise ReadError(_above(part.bytes, self.megabytes))
        return read_part(*part)

    def _follow(self, url: str, end: float) -> bytes:
        for _ in range(MAX_REDIRECTS + 1):
            answer = self._ask(url, end)
            if isinstance(answer, bytes):
                return answer
            url = urljoin(url, answer)
        raise _Refused(f"it is redirected more than {MAX_REDIRECTS} times")

    def _ask(self, url: str, end: float) -> bytes | str:
        """The body behind a URL, or where it is redirected to."""
        parts = urlsplit(url)
        if not is_web(url) or not parts.hostname:
            raise _Refused(f"{_shown(url)[:_MESSAGE_SIGNS]} is no http(s) URL")
        if "@" in parts.netloc:
            raise _Refused("it holds a user's name or password, which would stand in the outputs: take them out")
        connection = self._connect(parts, end)
        # A socket's own time is for each read, so that a server which drips would never end.
        guard = threading.Timer(max(0, end - time.monotonic()), _shut, [connection.sock])
        guard.daemon = True
        guard.start()
        try:
            target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
            headers = {"User-Agent": f"{_AGENT}/{mmembed.__version__}", "Accept-Encoding": "identity"}
            connection.request("GET", _quoted(target.encode()), headers=headers)
            response = connection.getresponse()
            if response.status in _REDIRECTS and (location := response.getheader("Location")):
                return _quoted(location.encode("latin-1"))  # as http.client has decoded what may be UTF-8
            if response.status != 200:
                refusal = _TryAgain if response.status in _AGAIN else _Refused
                words = http.client.responses.get(response.status, "")  # not the server's: it may say anything
                raise refusal(f"the server answers {response.status} {words}".rstrip())
            _check_consent(response.headers.get_all("X-Robots-Tag") or [])
            coding = response.getheader("Content-Encoding") or "identity"
            if coding.strip().lower() != "identity":
                raise _Refused(f"the server packs the body as {coding[:40]}, though it was asked not to")
            return self._body(response, end)
        finally:
            guard.cancel()
            connection.close()

    def _body(self, response: http.client.HTTPResponse, end: float) -> bytes:
        limit = self.megabytes * 1_000_000
        size = response.length  # None where the server doesn't say
        if size is not None and size > limit:
            raise _TooLarge(_above(size, self.megabytes))
        blocks: list[bytes] = []
        read = 0
        try:
            while block := response.read1(_BLOCK):
                blocks.append(block)
                read += len(block)
                if read > limit:
                    raise _TooLarge(_above(None, self.megabytes))
        except http.client.IncompleteRead as error:
            if time.monotonic() < end:
                raise _Refused(f"it was cut off after {read:,} bytes") from error
        if time.monotonic() >= end:
            raise TimeoutError
        if size is not None and read < size:
            raise _Refused(f"it was cut off after {read:,} of {size:,} bytes")
        return b"".join(blocks)

    def _connect(self, parts: SplitResult, end: float) -> http.client.HTTPConnection:
        """A connection whose socket leads to an address that was checked: no name is resolved a second time."""
        host, tls = str(parts.hostname), parts.scheme == "https"
        connection = http.client.HTTPConnection(host, parts.port or (443 if tls else 80))
        connection.sock = _open_socket(self._addresses(host, connection.port, end), end)
        if tls:
            connection.sock = _tls_context().wrap_socket(connection.sock, server_hostname=host)
            connection.default_port = 443
        connection.sock.settimeout(_left(end))
        return connection

    def _addresses(self, host: str, port: int, end: float) -> list[tuple[int, tuple[str, int]]]:
        """The addresses of a host, as (family, address); all must be public."""
        found = _resolved(host, port, end)
        addresses = [(int(family), (str(address[0]), port)) for family, _, _, _, address in found]
        private = [address for _, (address, _) in addresses if not is_public(address)]
        if private and not self.allow_private_hosts:
            raise _Refused(f"its host {host} is {private[0]}, no public address: allow that with --allow-private-hosts")
        return addresses


class _Refused(Exception):
    """Why a URL is not fetched; the message is for the user."""


class _TryAgain(_Refused):
    """The server may answer a second time."""


class _TooLarge(_Refused):
    """The body has more bytes than are allowed."""


class _TooLargeError(ReadError):
    """The same to those who ask for a URL."""


def is_public(address: str) -> bool:
    """Whether an IP address is one of the public internet, also where an IPv6 address wraps one of IPv4."""
    ip = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(ip, ipaddress.IPv6Address):
        inner = ip.ipv4_mapped or ip.sixtofour or (ip.teredo or (None, None))[1]
        if inner is None and ip in _NAT64:
            inner = ipaddress.IPv4Address(ip.packed[-4:])
        if inner is not None:
            return is_public(str(inner))
        if ip.is_site_local:  # fec0::/10, once what fc00::/7 is now
            return False
    return ip.is_global and not ip.is_multicast and not ip.is_reserved


def _check_consent(tags: Iterable[str]) -> None:
    """Raise where an owner objects: to all, or to this program by its name, which holds up to the next name."""
    for tag in tags:
        agent = ""
        for word in tag.lower().split(","):
            name, colon, rest = (part.strip() for part in word.partition(":"))
            if colon and " " not in name and name not in _WITH_VALUES:  # blanks: the middle of a date
                agent, word = name, rest
            if agent in ("", "*", _AGENT) and (directive := word.strip()) in OPT_OUT:
                raise _Refused(f"its owner objects by the header X-Robots-Tag: {directive}")


def _left(end: float) -> float:
    """The seconds that are left."""
    if (seconds := end - time.monotonic()) <= 0:
        raise TimeoutError
    return seconds


def _resolved(host: str, port: int, end: float) -> list[tuple[Any, ...]]:
    """What `socket.getaddrinfo` says of a host. It knows no limit of time, so it may be left behind in its thread."""
    answers: SimpleQueue[list[tuple[Any, ...]] | Exception] = SimpleQueue()

    def ask() -> None:
        try:
            answers.put(list(socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)))
        except Exception as error:  # raised again where it is waited for
            answers.put(error)

    threading.Thread(target=ask, daemon=True).start()
    try:
        found = answers.get(timeout=_left(end))
    except Empty:
        raise TimeoutError from None
    if isinstance(found, Exception):
        raise found
    return found


def _shut(opened: socket.socket) -> None:
    """End a connection that takes too long: whoever reads from it sees its end."""
    with suppress(OSError):  # it has ended by itself
        opened.shutdown(socket.SHUT_RDWR)


def _open_socket(addresses: list[tuple[int, tuple[str, int]]], end: float) -> socket.socket:
    """A socket to the first of some addresses that answers; each gets its part of the time that is left."""
    last: OSError = OSError("the host has no address")
    for number, (family, address) in enumerate(addresses):
        opened = socket.socket(family, socket.SOCK_STREAM)
        try:
            opened.settimeout(_left(end) / (len(addresses) - number))
            opened.connect(address)
            opened.settimeout(_left(end))
        except OSError as error:
            opened.close()
            last = error
            continue
        return opened
    raise last


@cache  # reading the certificates takes 20 ms
def _tls_context() -> ssl.SSLContext:
    return ssl.create_default_context()


def _quoted(target: bytes) -> str:
    """A path and query as a request may hold it: what is no ASCII, and blanks, by their percent codes."""
    return "".join(chr(byte) if 0x21 <= byte <= 0x7E else f"%{byte:02X}" for byte in target)


def _shown(url: str) -> str:
    """A URL as a message can hold it: one line of UTF-8, without a password."""
    return " ".join(re.sub(r"//[^/?#]*@", "//…@", url).encode("utf-8", "backslashreplace").decode().split())


def _reason(error: Exception) -> str:
    """Why something failed, in one line of no more signs than anyone reads; some of it may be the server's."""
    said = (isinstance(error, OSError) and error.strerror) or str(error) or type(error).__name__
    return " ".join(said.split())[:_MESSAGE_SIGNS]


def _above(size: int | None, megabytes: int) -> str:
    had = "it has" if size is None else f"its {size:,} bytes are"
    return f"{had} more than {megabytes} MB (--fetch-megabytes)"


def _content(read: Callable[[], bytes], media: Media) -> Callable[[], Media | ReadError]:
    """A call that gives a medium with its content, or why it has none."""

    def wait() -> Media | ReadError:
        try:
            return replace(media, content=read())
        except ReadError as error:
            return ReadError(str(error))  # of whatever kind it is: only waiting for a turn depends on that

    return wait
