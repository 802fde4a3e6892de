"""What other tests take for granted of the server that stands for Google Cloud Storage."""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest
from gcs_server import BUCKET, gcs_server

ROOT = f"gs://{BUCKET}"


@pytest.fixture(scope="module", autouse=True)
def server() -> Iterator[None]:
    with gcs_server() as environment, pytest.MonkeyPatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, value)
        yield


def write(url: str, data: bytes) -> None:
    from apache_beam.io.filesystems import FileSystems

    with FileSystems.create(url) as file:
        file.write(data)


def read(url: str, start: int = 0, size: int = -1) -> bytes:
    from apache_beam.io.filesystems import FileSystems

    with FileSystems.open(url) as file:
        file.seek(start)
        return bytes(file.read(size))


def names(pattern: str) -> list[str]:
    from apache_beam.io.filesystems import FileSystems

    return [found.path for found in FileSystems.match([pattern])[0].metadata_list]


@pytest.mark.parametrize("size", [0, 1, 1000, (16 << 20) + 1])  # the last one comes in two parts
def test_files_of_any_size_and_parts_of_them(size: int) -> None:
    data = random.Random(size).randbytes(size)
    url = f"{ROOT}/sizes/{size}"
    write(url, data)
    assert read(url) == data
    assert read(url, size // 2, 10) == data[size // 2 :][:10]


def test_listing_renaming_and_deleting() -> None:
    from apache_beam.io.filesystems import FileSystems

    files = [f"{ROOT}/many/{number:03}" for number in range(101)]  # one more than one request deletes
    for url in files:
        write(url, url.encode())
    assert names(f"{ROOT}/many/*") == files
    assert names(f"{ROOT}/nothing/*") == []

    FileSystems.rename([files[0]], [f"{ROOT}/other/a b"])
    assert not FileSystems.exists(files[0])
    assert read(f"{ROOT}/other/a b") == files[0].encode()

    FileSystems.delete([f"{ROOT}/many/*"])
    assert names(f"{ROOT}/many/**") == []
    assert names(f"{ROOT}/other/**") == [f"{ROOT}/other/a b"]


def test_an_object_is_replaced() -> None:
    write(f"{ROOT}/again", b"first")
    write(f"{ROOT}/again", b"second")
    assert read(f"{ROOT}/again") == b"second"
