"""`mmembed serve` as a user starts it."""

from __future__ import annotations

import re
import signal
import socket
from pathlib import Path

import httpx2 as httpx
import pytest
from command import complaint, mmembed, started


def test_it_says_where_it_is_and_ends_with_ctrl_c(small: Path) -> None:
    with started("serve", small, "--port", 0) as process:
        assert process.stdout
        line = process.stdout.readline()
        match = re.match(r"(http://127\.0\.0\.1:\d+/)  \(stop with Ctrl-C\)$", line)
        assert match, (line, process.stderr and process.stderr.read())
        assert httpx.get(f"{match[1]}healthz").json() == {"status": "ok"}
        assert httpx.get(f"{match[1]}api/search", params={"text": "red stars"}).json()["hits"]
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=20)
        assert process.returncode == 0 and not out and not err.strip()


def test_where_others_can_ask_it_makes_a_token(small: Path) -> None:
    with started("serve", small, "--port", 0, "--host", "0.0.0.0") as process:
        assert process.stdout
        match = re.match(r"http://\S+:(\d+)/\?token=(\S{20,})  ", process.stdout.readline())
        assert match
        address = f"http://127.0.0.1:{match[1]}/"
        assert httpx.get(f"{address}api/info").status_code == 401
        assert httpx.get(f"{address}api/info", headers={"Authorization": f"Bearer {match[2]}"}).status_code == 200
        assert httpx.get(f"{address}?token={match[2]}").status_code == 200


def test_what_can_not_be_served_is_one_line(small: Path, tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert f"can't listen at 127.0.0.1, port {port}" in complaint(mmembed("serve", small, "--port", port, expect=2))
    for words, said in (
        ((tmp_path / "none",), "none"),
        ((small, "--port", 70_000), "port is 70000"),
        ((small, "--host", "203.0.113.7"), "can't listen at 203.0.113.7"),
        ((small, "--max-upload-mb", 0), "max_upload is 0 bytes"),
        ((small, "--max-upload-mb", "nan"), "--max-upload-mb nan: must be a number of megabytes"),
        ((small, "--token", "a b"), "without blanks"),
    ):
        assert said in complaint(mmembed("serve", *words, expect=2))


@pytest.mark.parametrize("name", ["fastapi", "uvicorn", "prometheus_client", "fastapi_offline", "python_multipart"])
def test_a_missing_package_is_one_line(small: Path, name: str) -> None:
    program = f"import sys; sys.modules[{name!r}] = None; from mmembed.cli import main; sys.exit(main())"
    result = mmembed("serve", small, "--port", 0, expect=2, python=("-c", program))
    assert complaint(result) == f"mmembed: {name} is not installed: pip install 'mmembed[serve]'"
