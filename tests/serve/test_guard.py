"""Who may ask, how much may be sent, and what browsers are told."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from unittest.mock import patch

import pytest
from fastapi import HTTPException
from fastapi.testclient import TestClient
from starlette.types import Message, Receive, Scope, Send

from mmembed.errors import UsageError
from mmembed.search import Searcher
from mmembed.serve.guard import HEADERS, Guard
from mmembed.serve.settings import Settings, is_loopback

Connect = Callable[..., TestClient]

TOKEN = "s3cret/+="
ROUTES = (
    "/",
    "/docs",
    "/openapi.json",
    "/static/page.js",
    "/api/info",
    "/api/search",
    "/metrics",
    "/media/image/a",
    "/no",
)


@pytest.mark.parametrize("host", ["localhost", "localhost:8000", "127.0.0.1:1", "[::1]:8000", "LOCALHOST"])
def test_this_machine_may_be_called_by_its_names(client: TestClient, host: str) -> None:
    assert client.get("/api/info", headers={"Host": host}).status_code == 200


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:8000", "localhost.evil.example", "127.0.0.1.nip.io", ""]
)
def test_a_name_that_leads_here_from_elsewhere_is_refused(client: TestClient, host: str) -> None:
    for path in ROUTES:
        assert client.get(path, headers={"Host": host}).status_code == 403


@pytest.mark.parametrize("origin", ["http://evil.example", "http://localhost:9999", "null", "http://[foo"])
def test_pages_of_others_may_not_post(client: TestClient, origin: str) -> None:
    for path in ("/api/search", "/api/explain"):
        assert client.post(path, data={"text": "a"}, headers={"Origin": origin}).status_code == 403
    assert (
        client.post("/api/search", data={"text": "a"}, headers={"Origin": "http://localhost:8000"}).status_code == 200
    )


@pytest.mark.parametrize("path", ROUTES)
@pytest.mark.parametrize("headers", [{}, {"Authorization": "Bearer wrong"}, {"Authorization": f"Basic {TOKEN}"}])
def test_without_the_token_nothing_is_answered(connect: Connect, path: str, headers: dict[str, str]) -> None:
    client = connect(host="0.0.0.0", token=TOKEN)
    response = client.get(path, headers=headers)
    assert response.status_code == 401 and response.headers["WWW-Authenticate"] == "Bearer"
    assert TOKEN not in response.text and "Set-Cookie" not in response.headers


def test_wrong_tokens_of_any_form_are_refused(connect: Connect) -> None:
    client = connect(token=TOKEN)
    for address in (
        "/?token=",
        "/?token=wrong",
        "/?token=wrong&token=",
        "/api/info?token=s3cret%2F%2B%3D",
        "/?token=%ff",
    ):
        assert client.get(address).status_code == 401
    for cookie in ("mmembed_token=wrong", "mmembed_token=", "mmembed_token", "=;;=", "mmembed_token=\xff"):
        headers = [(b"cookie", cookie.encode("latin-1"))]
        assert client.get("/api/info", headers=headers).status_code == 401


def test_the_token_opens_by_header_and_by_the_address_of_the_page(connect: Connect) -> None:
    client = connect(host="0.0.0.0", token=TOKEN)
    assert client.get("/healthz").status_code == 200
    assert client.get("/api/info", headers={"Authorization": f"Bearer {TOKEN}"}).status_code == 200
    assert (
        client.get("/api/info", headers={"Host": "any.example", "Authorization": f"bearer {TOKEN}"}).status_code == 200
    )
    response = client.get("/", params={"token": TOKEN, "text": "a"})
    assert response.status_code == 200 and "<html" in response.text
    cookie = response.headers["Set-Cookie"]
    assert "HttpOnly" in cookie and "SameSite=Strict" in cookie and "Path=/" in cookie
    assert client.get("/api/info").status_code == 200  # by the cookie
    assert "Set-Cookie" not in client.get("/").headers


def test_a_request_that_says_it_is_too_large_is_refused(connect: Connect) -> None:
    client = connect(max_upload=100_000)
    response = client.post("/api/search", files={"image": ("a", bytes(200_000))})
    assert response.status_code == 413 and "0.1 MB" in response.json()["detail"]
    assert client.post("/api/search", data={"text": "a"}).status_code == 200


def test_a_request_that_does_not_say_how_large_it_is_is_cut_off(connect: Connect) -> None:
    sent = 0

    def body() -> Iterator[bytes]:
        nonlocal sent
        yield b'--x\r\nContent-Disposition: form-data; name="image"; filename="a"\r\n\r\n'
        for _ in range(100):
            sent += 10_000
            yield bytes(10_000)

    client = connect(max_upload=100_000)
    headers = {"Content-Type": "multipart/form-data; boundary=x", "Transfer-Encoding": "chunked"}
    response = client.post("/api/search", content=body(), headers=headers)
    assert response.status_code == 413 and list(response.json()) == ["detail"]


def test_bodies_are_bounded_together_and_forgotten_with_their_answers() -> None:
    settings = Settings(max_upload=1000, uploads=2)
    codes: list[int] = []

    async def main() -> None:
        answer = asyncio.Event()

        async def app(scope: Scope, receive: Receive, send: Send) -> None:
            try:
                while (await receive())["more_body"]:
                    pass
                await answer.wait()
                codes.append(200)
            except HTTPException as error:
                codes.append(error.status_code)

        guard = Guard(app, settings)

        async def post(size: int) -> None:
            left = [size // 2, size - size // 2]

            async def receive() -> Message:
                return {"type": "http.request", "body": bytes(left.pop()), "more_body": bool(left)}

            async def send(message: Message) -> None:
                raise AssertionError(message)

            scope = {"type": "http", "method": "POST", "path": "/", "headers": [(b"host", b"localhost")]}
            await guard(scope, receive, send)

        waiting = [asyncio.create_task(post(guard.most)) for _ in range(2)]
        await asyncio.sleep(0)
        await post(2)
        assert codes == [503] and guard.held == 2 * guard.most
        answer.set()
        await asyncio.gather(*waiting)
        await post(2)
        await post(guard.most + 1)
        assert codes == [503, 200, 200, 200, 413] and guard.held == 0

    asyncio.run(main())


@pytest.mark.parametrize("path", ["/", "/docs", "/api/info", "/api/search", "/no/such", "/healthz", "/static/page.js"])
def test_every_answer_tells_browsers_to_be_careful(client: TestClient, path: str) -> None:
    headers = client.get(path).headers
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert headers["X-Frame-Options"] == "DENY"
    assert headers["Referrer-Policy"] == "no-referrer"
    assert headers["Cross-Origin-Resource-Policy"] == "same-origin"
    assert headers["Content-Security-Policy"].startswith("default-src 'none'")
    assert "unsafe-eval" not in headers["Content-Security-Policy"]


def test_an_answer_to_an_error_of_ours_too(client: TestClient) -> None:
    with patch.object(Searcher, "search_many", side_effect=ZeroDivisionError):
        response = client.get("/api/search", params={"text": "a"})
    assert response.status_code == 500
    for name, value in HEADERS.items():
        assert response.headers.get_list(name) == [value]


@pytest.mark.parametrize("host, here", [("127.0.0.1", True), ("127.8.8.8", True), ("::1", True), ("localhost", True)])
def test_loopback_is_known(host: str, here: bool) -> None:
    assert is_loopback(host) is here and Settings(host=host).hosts


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.0.7", "example.org", ""])
def test_elsewhere_a_token_is_needed(host: str) -> None:
    assert not is_loopback(host)
    with pytest.raises(UsageError, match="token"):
        Settings(host=host)
    assert not Settings(host=host, token="a").hosts


@pytest.mark.parametrize(
    "wrong", [{"port": -1}, {"port": 65536}, {"max_upload": 0}, {"threads": 0}, {"uploads": 0}, {"token": "a b"}]
)
def test_settings_check_themselves(wrong: dict[str, int]) -> None:
    with pytest.raises(UsageError):
        Settings(**wrong)  # type: ignore[arg-type]
