"""Media behind http(s) URLs: fetched within a limit of time and size, from public hosts, unless their owner objects."""

from __future__ import annotations

import http.client
import ipaddress
import socket
import ssl
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cache, partial
from urllib.parse import SplitResult, urljoin, urlsplit

import mmembed
from mmembed.errors import ReadError
from mmembed.files import is_web, open_binary, read_part
from mmembed.types import Media, Part

MAX_REDIRECTS = 5
"""More is a loop, or somebody who hides where a URL leads."""

THREADS = 16
"""Fetches at the same time in one process: hosts answer slowly, and each is asked for one thing at a time anyway."""

OPT_OUT = frozenset({"noai", "noimageai", "noindex", "noimageindex"})
"""Directives of `X-Robots-Tag` by which an owner objects to a use like this one; those that img2dataset honours."""

_AGENT = "mmembed"
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_AGAIN = frozenset({429, 500, 502, 503, 504})
_PAUSE_SECONDS = 1.0
_BLOCK = 1 << 16
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
            except (_TryAgain, ConnectionError, http.client.BadStatusLine):
                if time.monotonic() + _PAUSE_SECONDS >= end:
                    raise
                time.sleep(_PAUSE_SECONDS)
                return self._follow(url, end)
        except TimeoutError as error:
            raise ReadError(f"can't fetch {url}: it took more than {self.timeout:g} seconds") from error
        except _Refused as error:
            raise ReadError(f"can't fetch {url}: {error}") from error
        except (OSError, http.client.HTTPException, ValueError) as error:
            if time.monotonic() >= end:  # the connection was shut because of that
                raise ReadError(f"can't fetch {url}: it took more than {self.timeout:g} seconds") from error
            reason = " ".join(str(error).split()) or type(error).__name__
            raise ReadError(f"can't fetch {url}: {reason}") from error

    def prefetched(self, media: Iterable[Media]) -> Iterator[Media | ReadError]:
        """Media in order, those behind URLs with their content; a few are fetched ahead, in threads.

        Remote files are read once here instead of wherever they are opened. Members of remote archives are read one
        after the other, as they lie there. What can't be had gives its error. The content of at most THREADS URLs is in
        memory beside the current one.
        """
        ahead: deque[Callable[[], Media | ReadError]] = deque()
        pool: ThreadPoolExecutor | None = None
        try:
            for item in media:
                if not item.is_remote:
                    ahead.append(lambda item=item: item)  # type: ignore[misc]
                elif item.part:
                    ahead.append(_content(partial(self._read_part, item.part), item))
                else:
                    pool = pool or ThreadPoolExecutor(THREADS)
                    fetch = self.fetch if is_web(item.location) else self._read_remote
                    ahead.append(_content(pool.submit(fetch, item.location).result, item))
                while len(ahead) > (THREADS if pool else 0):
                    yield ahead.popleft()()
            while ahead:
                yield ahead.popleft()()
        finally:
            if pool:
                pool.shutdown(wait=False, cancel_futures=True)

    def _read_remote(self, location: str) -> bytes:
        limit = self.megabytes * 1_000_000
        try:
            with open_binary(location) as file:
                content = file.read(limit + 1)
        except ReadError:
            raise
        except Exception as error:  # the client of each file system has errors of its own
            raise ReadError(f"can't read {location}: {' '.join(str(error).split())}") from error
        if len(content) > limit:
            raise ReadError(f"can't read {location}: it has more than {self.megabytes} MB (--fetch-megabytes)")
        return content

    def _read_part(self, part: Part) -> bytes:
        if part.bytes > self.megabytes * 1_000_000:
            raise ReadError(f"its {part.bytes:,} bytes are more than {self.megabytes} MB (--fetch-megabytes)")
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
            raise _Refused(f"{url} is no http(s) URL")
        connection = self._connect(parts, end)
        guard = threading.Timer(
            end - time.monotonic(), _shut, [connection.sock]
        )  # a socket's own time is for each read
        guard.daemon = True
        guard.start()
        try:
            target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
            headers = {"User-Agent": f"{_AGENT}/{mmembed.__version__}", "Accept-Encoding": "identity"}
            connection.request("GET", _quoted(target), headers=headers)
            response = connection.getresponse()
            if response.status in _REDIRECTS and (location := response.getheader("Location")):
                return location
            if response.status in _AGAIN:
                raise _TryAgain(f"the server answers {response.status} {response.reason}")
            if response.status != 200:
                raise _Refused(f"the server answers {response.status} {response.reason}")
            _check_consent(response.headers.get_all("X-Robots-Tag") or [])
            if (coding := response.getheader("Content-Encoding", "identity")) != "identity":
                raise _Refused(f"the server packs the body as {coding}, though it was asked not to")
            return self._body(response, end)
        finally:
            guard.cancel()
            connection.close()

    def _body(self, response: http.client.HTTPResponse, end: float) -> bytes:
        limit = self.megabytes * 1_000_000
        size = response.length  # None where the server doesn't say
        if size is not None and size > limit:
            raise _Refused(f"its {size:,} bytes are more than {self.megabytes} MB (--fetch-megabytes)")
        blocks, read = [], 0
        while block := response.read1(_BLOCK):
            blocks.append(block)
            read += len(block)
            if read > limit:
                raise _Refused(f"it has more than {self.megabytes} MB (--fetch-megabytes)")
        if time.monotonic() >= end:
            raise TimeoutError
        if size is not None and read < size:
            raise _Refused(f"it was cut off after {read:,} of {size:,} bytes")
        return b"".join(blocks)

    def _connect(self, parts: SplitResult, end: float) -> http.client.HTTPConnection:
        """A connection whose socket leads to an address that was checked: no name is resolved a second time."""
        host, tls = str(parts.hostname), parts.scheme.lower() == "https"
        port = parts.port or (443 if tls else 80)
        left = end - time.monotonic()
        if left <= 0:
            raise TimeoutError
        connection = http.client.HTTPConnection(host, port, timeout=left)
        raw = _open_socket(self._addresses(host, port), left)
        connection.sock = _tls_context().wrap_socket(raw, server_hostname=host) if tls else raw
        if tls:
            connection.default_port = 443
        return connection

    def _addresses(self, host: str, port: int) -> list[tuple[int, tuple[str, int]]]:
        """The addresses of a host, as (family, address); all must be public."""
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        addresses = [(int(family), (str(address[0]), port)) for family, _, _, _, address in found]
        private = [address for _, (address, _) in addresses if not is_public(address)]
        if private and not self.allow_private_hosts:
            raise _Refused(f"its host {host} is {private[0]}, no public address: allow that with --allow-private-hosts")
        return addresses


class _Refused(Exception):
    """Why a URL is not fetched; the message is for the user."""


class _TryAgain(_Refused):
    """The server may answer a second time."""


def is_public(address: str) -> bool:
    """Whether an IP address is one of the public internet, also where an IPv6 address wraps one of IPv4."""
    ip = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(ip, ipaddress.IPv6Address):
        inner = ip.ipv4_mapped or ip.sixtofour or (ip.teredo or (None, None))[1]
        if inner is None and ip in _NAT64:
            inner = ipaddress.IPv4Address(ip.packed[-4:])
        if inner is not None:
            return is_public(str(inner))
    return ip.is_global and not ip.is_multicast and not ip.is_reserved


def _check_consent(tags: Iterable[str]) -> None:
    """Raise where an owner objects: to all, or to this program by its name."""
    for tag in tags:
        agent, colon, directives = tag.rpartition(":")
        if colon and agent.strip().lower() != _AGENT:
            continue
        if objection := OPT_OUT & {word.strip().lower() for word in directives.split(",")}:
            raise _Refused(f"its owner objects by the header X-Robots-Tag: {', '.join(sorted(objection))}")


def _shut(opened: socket.socket) -> None:
    """End a connection that takes too long: whoever reads from it sees its end."""
    with suppress(OSError):  # it has ended by itself
        opened.shutdown(socket.SHUT_RDWR)


def _open_socket(addresses: list[tuple[int, tuple[str, int]]], timeout: float) -> socket.socket:
    """A socket to the first of some addresses that answers."""
    last: OSError = OSError("the host has no address")
    for family, address in addresses:
        opened = socket.socket(family, socket.SOCK_STREAM)
        try:
            opened.settimeout(timeout)
            opened.connect(address)
        except OSError as error:
            opened.close()
            last = error
            continue
        return opened
    raise last


@cache  # reading the certificates takes 20 ms
def _tls_context() -> ssl.SSLContext:
    return ssl.create_default_context()


def _quoted(target: str) -> str:
    """A path and query as a request may hold it: what is no ASCII, and blanks, by their percent codes."""
    return "".join(sign if "!" <= sign <= "~" else "".join(f"%{b:02X}" for b in sign.encode()) for sign in target)


def _content(read: Callable[[], bytes], media: Media) -> Callable[[], Media | ReadError]:
    """A call that gives a medium with its content, or why it has none."""

    def wait() -> Media | ReadError:
        try:
            return replace(media, content=read())
        except ReadError as error:
            return error

    return wait
