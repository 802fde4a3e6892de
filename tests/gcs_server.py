"""A server of Google Cloud Storage on this machine, for tests of buckets."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from services import free_port, serving

BUCKET = "tests"

# Without any, Beam asks a server of Google's for them, five times, and goes on half a minute later; those of a service
# account need a server for their token. This token is valid as it is.
CREDENTIALS = {
    "type": "authorized_user",
    "client_id": "none",
    "client_secret": "none",
    "refresh_token": "none",
    "quota_project_id": "none",
    "token": "none",
    "expiry": "2100-01-01T00:00:00Z",
}


@contextmanager
def gcs_server(bucket: str = BUCKET) -> Iterator[dict[str, str]]:
    """Runs one with a bucket, in memory; gives the environment in which Beam and google-cloud-storage find it.

    All that Beam's file system does works: files of any size, parts of them, listing by prefix, renaming, deleting many
    at once. What differs from the real one, in gcp-storage-emulator 2026.7.19:

    - Conditions are ignored: `if_generation_match=0` overwrites, where the real one answers 412.
    - Objects whose names hold %, ? or # are written and listed but can't be read.
    - A list comes as one page. Requests are answered one after the other, each in some milliseconds.
    """
    port = free_port()
    command = [sys.executable, "-m", "gcp_storage_emulator", "start", "--quiet", "--in-memory"]
    command += ["--host=localhost", f"--port={port}", f"--default-bucket={bucket}"]
    with TemporaryDirectory() as folder:
        credentials = Path(folder, "credentials.json")
        credentials.write_text(json.dumps(CREDENTIALS), "utf-8")
        with serving(command, port, os.environ, Path(folder)):
            yield {
                "STORAGE_EMULATOR_HOST": f"http://localhost:{port}",
                "GOOGLE_APPLICATION_CREDENTIALS": str(credentials),
                "GOOGLE_CLOUD_PROJECT": "none",
            }


def upload(folder: Path, url: str) -> None:
    """The files below a folder but for hidden ones, which are locks; the environment is that of a server."""
    from apache_beam.io.filesystems import FileSystems

    for path in folder.rglob("*"):
        if path.is_file() and not path.name.startswith("."):
            with FileSystems.create(f"{url}/{path.relative_to(folder).as_posix()}") as file:
                file.write(path.read_bytes())


def download(url: str) -> dict[str, bytes]:
    """The objects below a URL, by their names there."""
    from apache_beam.io.filesystems import FileSystems

    found = [file.path for file in FileSystems.match([f"{url}/**"])[0].metadata_list]
    return {path.removeprefix(f"{url}/"): FileSystems.open(path).read() for path in found}
