from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from dataset_builder import build, random_rows
from s3_server import s3_server

from mmembed.errors import DatasetError, UsageError
from mmembed.reader import open_dataset


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("data") / "out", random_rows(40, ["image", "text"], 6), until="project").folder


@pytest.fixture(scope="module")
def url(out: Path) -> Iterator[str]:
    """The data set on an S3 server of this machine; one file of `damaged` ends too soon."""
    with s3_server() as environment, pytest.MonkeyPatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, value)
        import boto3

        client = boto3.client("s3")
        client.create_bucket(Bucket="reading")
        for path in out.rglob("*"):
            if path.is_file():
                name = path.relative_to(out).as_posix()
                data = path.read_bytes()
                client.put_object(Bucket="reading", Key=f"whole/{name}", Body=data)
                short = data[:-1] if name.endswith("image/part-00004.parquet") else data
                client.put_object(Bucket="reading", Key=f"damaged/{name}", Body=short)
        yield "s3://reading"


@pytest.mark.parametrize("shuffle", [False, True])
def test_a_bucket_is_read_as_a_folder_is(out: Path, url: str, shuffle: bool) -> None:
    there, here = (
        open_dataset(place, ("image", "text"), ["embedding", "id"], shuffle=shuffle, batch_size=7)
        for place in (f"{url}/whole", out)
    )
    state = there.state_dict()
    for found, expected in zip(there, here, strict=True):
        assert found["id"] == expected["id"]
        np.testing.assert_array_equal(found["text.embedding"], expected["text.embedding"])
    here.load_state_dict(state)  # a run may go on where the data lie elsewhere


def test_a_damaged_object_is_named(url: str) -> None:
    with pytest.raises(DatasetError, match=f"{url}/damaged/embeddings/image/part-00004.parquet has another size"):
        open_dataset(f"{url}/damaged", "image")


def test_a_folder_of_a_bucket_that_holds_no_data_set(url: str) -> None:
    with pytest.raises(UsageError, match=f"{url}/nothing holds no data set"):
        open_dataset(f"{url}/nothing")
    with pytest.raises(UsageError, match="must lie in a folder of this machine"):
        open_dataset(f"{url}/whole", "image", neighbors="text")
