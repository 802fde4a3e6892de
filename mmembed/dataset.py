"""The manifest `dataset.json`: what OUT/ holds, from which configuration, and what is stale."""

from __future__ import annotations

import datetime
import hashlib
import json
import os
import platform
import re
import threading
import time
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

import pyarrow as pa

import mmembed
from mmembed.errors import DatasetError, UsageError, VersionError
from mmembed.files import Place, listed, size
from mmembed.forgotten import Forgotten
from mmembed.remote import RemotePath, is_web
from mmembed.shards import TEMPORARY_SUFFIX, inside, read_checked, read_table, write_bytes, write_json
from mmembed.types import Space

FORMAT_VERSION = 2
MANIFEST = "dataset.json"
LOCK, REMOTE_LOCK = ".lock", ".writing"
"""Of a folder of this machine, and of a remote one: that a folder was copied there says nothing of who writes."""

CARD = "README.md"
EVALUATION = "evaluation.json"
REPORT = "report.html"
EVALUATED = (CARD, EVALUATION, REPORT)
"""What the evaluation writes."""

_OWN = re.compile(
    r"((records|errors|dropped|stamps|(features|embeddings)/[^/]+)/part-\d{5,}\.parquet"
    r"|scratch/.+"
    r"|maps/([^/]+\.safetensors|fit\.json|groups\.json|moments/block-\d{5}\.safetensors)"
    r"|index/([^/]+\.(faiss|arrow|npy|tuned\.safetensors)|index\.json|parts/.+))"
)

LOCK_SECONDS = 120
"""How long a lock on a remote file system counts after it was last written."""

_CHUNK_BYTES = 1 << 22

STAGES = ("extract", "fit", "project", "index", "evaluate")


@dataclass(frozen=True)
class File:
    """A file as the manifest knows it; `rows` is None where it holds no table."""

    bytes: int
    sha256: str
    rows: int | None = None


@dataclass(frozen=True)
class Stage:
    """What a stage left: the fingerprint of all that went in, and what it has to say (counts, spaces)."""

    fingerprint: str
    summary: Mapping[str, Any]


@dataclass(frozen=True)
class Dataset:
    """A built data set: the folder and what its manifest says.

    Attributes:
        root: the folder, of this machine or a remote file system.
        input: the manifest of raw records, as an absolute path.
        config: the whole resolved configuration, JSON values.
        stages: by name, those that are complete.
        files: by path relative to the folder; every file but the manifest itself.
        history: what was done, and when, the oldest first.
        forgotten: records that are left out for good.
    """

    root: Place
    input: str = ""
    config: Mapping[str, Any] = field(default_factory=dict)
    stages: Mapping[str, Stage] = field(default_factory=dict)
    files: Mapping[str, File] = field(default_factory=dict)
    history: Sequence[Mapping[str, Any]] = ()
    forgotten: Forgotten = Forgotten()

    @classmethod
    def open(cls, root: Place) -> Dataset:
        """Read the manifest.

        Raises:
            UsageError: there is none.
            DatasetError: it is damaged, or of another format version.
        """
        path = root / MANIFEST
        try:
            # Absolute, for workers may have another working directory.
            return cls.parse(path.read_bytes(), root.absolute(), str(path))
        except (FileNotFoundError, NotADirectoryError) as error:
            raise UsageError(
                f"{root} holds no data set ({path}: {error.strerror}); make one with `mmembed build INPUT {root}`"
            ) from error
        except OSError as error:
            raise UsageError(f"can't read {path}: {error.strerror}") from error

    @classmethod
    def parse(cls, data: bytes, root: Place, path: str) -> Dataset:
        """The data set that a manifest describes.

        Args:
            path: of the manifest, for messages.

        Raises:
            DatasetError: it is damaged, of another format version, or names a file outside of the data set.
        """
        try:
            content = json.loads(data)
        except ValueError as error:
            raise DatasetError(
                f"{path} is no valid JSON ({error}): build the data set again into an empty folder"
            ) from error
        version = content.get("format_version") if isinstance(content, dict) else None
        if version != FORMAT_VERSION:
            raise VersionError(
                f"{path} has format version {version!r}, this mmembed {mmembed.__version__} reads {FORMAT_VERSION}: "
                "build the data set again into an empty folder, or here with --overwrite"
            )
        try:
            return cls(
                root,
                content["input"],
                content["config"],
                {name: _stage(**stage) for name, stage in content["stages"].items()},
                {inside(name): File(**file) for name, file in content["files"].items()},
                tuple(content["history"]),
                Forgotten.from_json(content.get("forgotten", {})),
            )
        except (KeyError, TypeError, AttributeError) as error:
            raise DatasetError(
                f"{path} lacks what a manifest needs ({error}): build the data set again into an empty folder"
            ) from error

    @classmethod
    def open_or_new(cls, root: Place, overwrite: bool = False) -> Dataset:
        """The data set in a folder; an empty one if the folder is empty, missing, or holds a killed first run.

        Args:
            overwrite: a data set of another version is removed first; what it has forgotten stays so.

        Raises:
            UsageError: the folder can't be made, or holds something else.
            VersionError: the data set is of another version.
        """
        make_folder(root)
        try:
            if (root / MANIFEST).exists():
                try:
                    return cls.open(root)
                except VersionError:
                    if not overwrite:
                        raise
                    return _emptied(root)
            _refuse_others(root)
        except OSError as error:
            raise UsageError(f"can't build into {root}: {error.strerror}") from error
        return cls(root.absolute())

    @property
    def folder(self) -> Path:
        """The root, where it is a folder of this machine.

        Raises:
            UsageError: it is on a remote file system.
        """
        if isinstance(self.root, RemotePath):
            raise UsageError(f"{self.root} is not on this machine: copy it here first, and name the copy")
        return self.root

    def moved(self, input: str, extract: Mapping[str, Any]) -> Dataset:
        """This data set with its input, or its models, at another place, written to disk; what was made from it
        stays.

        Args:
            extract: the configuration of its extraction.
        """
        config = {**self.config, "extract": extract}
        if (input, config) == (self.input, self.config):
            return self
        dataset = replace(self, input=input, config=config)
        dataset.save()
        return dataset

    def begin(self, stage: str) -> Dataset:
        """This data set before a stage, written to disk: whatever happens until its commit, nobody takes what the
        stage and those after it left earlier for what is there now. Their files stay, and serve where they fit."""
        if stage not in self.stages and not self._later(stage):
            return self
        self._remove_evaluated()
        dataset = replace(self, **self._before(stage))
        dataset.save()
        return dataset

    def forgetting(self, ids: Iterable[str]) -> Dataset:
        """This data set with more records that are to be forgotten, and without the stages that have learned from them,
        written to disk at once: nobody finds what they left, and whoever comes next must remove it first
        (`mmembed.forget.purge`). Maps of another data set have learned nothing from them."""
        self._remove_evaluated()
        maps = self.config.get("fit", {}).get("maps")
        again = [name for name in STAGES[1:] if name in self.stages or name in self.forgotten.again]
        kept = self._before("fit" if maps else "extract", itself=True)
        dataset = replace(self, **kept, forgotten=self.forgotten.with_pending(ids, again))
        dataset.save()
        return dataset

    def _remove_evaluated(self) -> None:
        for path in EVALUATED:
            if path in self.files:
                (self.root / path).unlink(missing_ok=True)

    def _later(self, stage: str) -> list[str]:
        return [name for name in STAGES[STAGES.index(stage) + 1 :] if name in self.stages]

    def _before(self, stage: str, itself: bool = False) -> dict[str, Any]:
        """Stages and files of the stages before one, and perhaps its own."""
        names = STAGES[: STAGES.index(stage) + itself]
        stages = {name: self.stages[name] for name in names if name in self.stages}
        folders = [folder for done in stages.values() for folder in done.summary["folders"]]
        files = {path: file for path, file in self.files.items() if path.split("/")[0] in folders}
        return {"stages": stages, "files": files}

    def commit(self, stage: str, value: Stage, files: Mapping[str, File], did: str, **changes: Any) -> Dataset:
        """This data set with a stage done, and those after it not, written to disk.

        Args:
            did: what the stage did, for the history.
        """
        earlier = self._before(stage)
        kept = earlier["files"]
        dataset = replace(
            self,
            stages={**earlier["stages"], stage: value},
            files=dict(sorted({**kept, **files}.items())),
            history=self.with_history(stage, did),
            **changes,
        )
        dataset.save()
        return dataset

    def with_history(self, stage: str, did: str) -> tuple[Mapping[str, Any], ...]:
        """The history, and what was done now."""
        return (*self.history, {"time": _now(), "stage": stage, "did": did})

    def with_later_of(self, before: Dataset) -> Dataset:
        """This data set with the later stages that it had before the last one was done again, written to disk, if that
        one gave the same: they say themselves what they need again."""
        stage = list(self.stages)[-1]
        if stage not in before.stages or before._before(stage, itself=True)["files"] != self.files:
            return self
        again = ("evaluate",)  # whose files `begin` has removed
        stages = {name: value for name, value in before.stages.items() if name not in again}
        files = {path: file for path, file in before.files.items() if path not in EVALUATED}
        dataset = replace(self, stages={**stages, stage: self.stages[stage]}, files=files)
        dataset.save()
        return dataset

    def save(self) -> None:
        """Write the manifest, atomically."""
        content = {
            "format_version": FORMAT_VERSION,
            "mmembed_version": mmembed.__version__,
            "input": self.input,
            "config": self.config,
            "stages": {name: asdict(stage) for name, stage in self.stages.items()},
            "history": list(self.history),
            "files": {
                name: {key: value for key, value in asdict(file).items() if value is not None}
                for name, file in self.files.items()
            },
        }
        if self.forgotten:
            content["forgotten"] = self.forgotten.to_json()
        write_json(self.root / MANIFEST, content, plain=True)

    def is_done(self, stage: str, fingerprint: str) -> bool:
        """Whether a stage was done with these inputs, and its files are there in their full size."""
        done = self.stages.get(stage)
        return done is not None and done.fingerprint == fingerprint and not self.damaged(done.summary["folders"])

    def damaged(self, folders: Collection[str]) -> list[str]:
        """Files below some top folders that are missing or have another size; contents are not read."""
        names = [path for path in self.files if path.split("/")[0] in folders]
        sizes = self.root.sizes() if isinstance(self.root, RemotePath) else {n: size(self.root / n) for n in names}
        return [path for path in names if sizes.get(path) != self.files[path].bytes]

    def stage(self, name: str) -> Stage:
        """A stage that is done.

        Raises:
            UsageError: it has not been run.
        """
        if name not in self.stages:
            raise UsageError(
                f"the stage {name} of {self.root} has not been run: run `mmembed {name}`, or `mmembed build` for all"
            )
        return self.stages[name]

    def below(self, folder: str) -> dict[str, File]:
        """The files below a folder, in the order of their names."""
        return {path: file for path, file in self.files.items() if path.startswith(folder + "/")}

    def read(self, path: str) -> bytes:
        """The bytes of a file, checked against the manifest.

        Raises:
            DatasetError: it is not in the manifest, missing or changed.
        """
        if path not in self.files:
            raise DatasetError(f"{self.root / path} is not in the manifest: build the data set again")
        return read_checked(self.root / path, self.files[path].sha256)

    def tables(self, folder: str) -> Iterator[tuple[str, pa.Table]]:
        """The Parquet files below a folder one after the other, checked."""
        for path in self.below(folder):
            yield path, read_table(self.read(path))

    def modalities(self, stage: str) -> dict[str, Space]:
        """The modalities that a stage left vectors of, and their spaces."""
        spaces: Mapping[str, Mapping[str, Any]] = self.stage(stage).summary["spaces"]
        return {name: Space(**space) for name, space in spaces.items()}


def make_folder(root: Place) -> None:
    """Make the folder of a data set, if it isn't there.

    Raises:
        UsageError: it can't be made, or not be written.
    """
    check_root(root)
    if isinstance(root, RemotePath):  # which needs no making
        return
    try:
        root.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"can't build into {root}: {error.strerror}") from error
    if not os.access(root, os.R_OK | os.W_OK | os.X_OK):
        raise UsageError(f"can't build into {root}: this user may not read and write in it")


@cache  # each time it would be a request
def check_root(root: Place) -> None:
    """Raise UsageError for a place where no data set can lie, or that can't be asked."""
    if not isinstance(root, RemotePath):
        return
    if is_web(root.location):
        raise UsageError(f"can't build into {root}: give a folder, or a URL of a bucket (gs://, s3://)")
    if root.location.startswith("hdfs://"):
        raise UsageError(f"can't build into {root}: of hdfs Beam lists one folder, and not those in it")
    try:
        root.is_dir()
    except OSError as error:
        raise UsageError(f"can't build into {root}: {error.strerror}") from error


@contextmanager
def locked(root: Place) -> Iterator[None]:
    """Nobody else writes into a data set meanwhile. The lock goes with the process, however that ends; a remote one
    is a file that is written again and again, and counts for LOCK_SECONDS.

    Raises:
        UsageError: somebody else does.
    """
    if isinstance(root, RemotePath):
        with _locked_remotely(root / REMOTE_LOCK):
            yield
        return
    import fcntl

    with (root / LOCK).open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.seek(0)
            raise UsageError(
                f"another mmembed (process {file.read().strip() or 'unknown'}) is writing into {root}: "
                "wait for it, or choose another folder"
            ) from error
        file.truncate(0)
        file.write(f"{os.getpid()} on {platform.node()}\n")
        file.flush()
        try:
            yield
        finally:  # workers have the open file too
            fcntl.flock(file, fcntl.LOCK_UN)


@contextmanager
def _locked_remotely(lock: RemotePath) -> Iterator[None]:
    found = lock.found()
    if found and time.time() - found.modified < LOCK_SECONDS:
        who = lock.read_text("utf-8").strip()
        raise UsageError(
            f"another mmembed (process {who}) is writing into {lock.parent}: wait for it, or choose another folder; if "
            f"it was killed, try again in {LOCK_SECONDS} seconds"
        )
    ended = threading.Event()
    owner = f"{os.getpid()} on {platform.node()}\n".encode()

    def hold() -> None:
        while not ended.wait(LOCK_SECONDS / 4):
            with suppress(OSError):  # the next one may get through
                write_bytes(lock, owner, plain=True)

    write_bytes(lock, owner, plain=True)
    with ThreadPoolExecutor(1) as pool:
        holding = pool.submit(hold)
        try:
            yield
        finally:
            ended.set()
            holding.result()
            with suppress(OSError):  # it is forgotten in time
                lock.unlink()


def describe(root: Place, path: str, rows: int | None = None) -> File:
    """A file on disk as the manifest is to know it."""
    digest, size = hashlib.sha256(), 0
    with (root / path).open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
            size += len(chunk)
    return File(size, digest.hexdigest(), rows)


def _refuse_others(root: Place, but: Collection[str] = ()) -> None:
    """Raise UsageError for a folder that holds files which are not ours."""
    names = (relative(root, path) for path in listed(root) if not is_own(root, path))
    if other := next((name for name in names if name not in but), None):
        raise UsageError(f"{root} is no data set and not empty (it holds {other}): choose another folder")


def _emptied(root: Place) -> Dataset:
    """A data set of another version without its files; what it has forgotten stays in its manifest."""
    own = (MANIFEST, *EVALUATED)
    _refuse_others(root, but=own)
    content = json.loads((root / MANIFEST).read_bytes())
    found = content.get("forgotten", {}) if isinstance(content, dict) else {}
    dataset = Dataset(root.absolute(), forgotten=Forgotten.from_json(found))
    if dataset.forgotten:
        dataset.save()
    for path in listed(root):
        if relative(root, path) != MANIFEST:
            path.unlink()
    if not dataset.forgotten:
        (root / MANIFEST).unlink()
    return dataset


def relative(root: Place, path: Place) -> str:
    """The path of a file of a data set, as its manifest has it."""
    return path.relative_to(root).as_posix()  # type: ignore[arg-type]  # both are of one kind


def is_own(root: Place, path: Place) -> bool:
    """Whether a file below a data set has a name that stages write: no other is ever removed."""
    name = relative(root, path)
    return bool(_OWN.fullmatch(name)) or name.endswith(TEMPORARY_SUFFIX) or name in (LOCK, REMOTE_LOCK)


def _stage(fingerprint: str, summary: Mapping[str, Any]) -> Stage:
    """A stage of a manifest, which may come from anybody: its modalities become names of folders and files."""
    for name in (*summary["folders"], *summary.get("spaces", ())):
        if "/" in inside(name):
            raise DatasetError(f"the data set names {name!r}, which is no name of a folder or modality: don't use it")
    return Stage(fingerprint, summary)


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
