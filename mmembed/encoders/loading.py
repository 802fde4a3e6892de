"""Models are loaded once a process, and files that make a space are known by their content."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Hashable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from mmembed.errors import MmembedError, UsageError

T = TypeVar("T")

_loaded: dict[Hashable, Any] = {}
_lock = threading.Lock()


def once(key: Hashable, load: Callable[[], T]) -> T:
    """What `load` gives, made at the first call with this key and then shared by all encoders, records and threads of
    the process."""
    with _lock:  # two threads of a worker that begin together must not hold a model each
        if key not in _loaded:
            _loaded[key] = load()
        found: T = _loaded[key]
        return found


def digest(paths: Iterable[Path], *values: Any) -> str:
    """A hash of the content of files and of values as they print: 16 hex digits of BLAKE2b.

    Raises:
        UsageError: a file can't be read.
    """
    hash = hashlib.blake2b(repr(values).encode(), digest_size=8)
    for path in paths:
        try:
            with path.open("rb") as file:
                hash.update(hashlib.file_digest(file, hashlib.blake2b).digest())
        except OSError as error:
            raise UsageError(f"can't read {path}: {error.strerror}") from error
    return hash.hexdigest()


_KINDS = {".json", ".txt", ".model", ".safetensors"}


def model_files(folder: Path) -> list[Path]:
    """What decides the features of a model of Hugging Face: its configurations, tokenizers and weights.

    Raises:
        UsageError: it has no weights in the one form that holds no program.
    """
    found = sorted(path for path in folder.rglob("*") if path.suffix in _KINDS and path.is_file())
    if not any(path.suffix == ".safetensors" for path in found):
        raise UsageError(f"{folder} has no *.safetensors; other forms hold pickled objects, which are not read")
    return found


def once_from(folder: str, weights: str, load: Callable[[Path], T]) -> T:
    """What `load` makes of the model in a folder, once a process, if its files are still those of a hash.

    Raises:
        UsageError: they are others than where the run began.
    """

    def checked() -> T:
        check_unchanged(folder, model_files(Path(folder)), weights)
        return load(Path(folder))

    return once((load, folder, weights), checked)


def check_unchanged(path: str | Path, files: Iterable[Path], weights: str) -> None:
    """Raise UsageError if the files of a model have not the hash that they had where the run began."""
    if digest(files) != weights:
        raise UsageError(f"the model {path} is another here than where the run began: give all workers the same")


@contextmanager
def failing(kind: type[MmembedError], what: str) -> Iterator[None]:
    """Whatever a library raises as an error of ours that says what failed; our own errors pass through."""
    try:
        yield
    except MmembedError:
        raise
    except Exception as error:  # libraries of models raise errors of any kind
        raise kind(f"{what}: {reason(error)}") from error


def reason(error: Exception) -> str:
    """What an error of a library says, in a line that is not too long."""
    return " ".join(str(error).split())[:300] or type(error).__name__


def options_of(spec: str) -> tuple[str, dict[str, str]]:
    """A spec without its scheme, as path and options: "m.onnx?pooling=cls&output=x".

    Raises:
        UsageError: an option is not of the form key=value.
    """
    path, _, query = spec.partition("?")
    options = {}
    for pair in filter(None, query.split("&")):
        key, equals, value = pair.partition("=")
        if not equals or not key or not value:
            raise UsageError(f"{pair!r} of {spec!r} is no key=value")
        options[key] = value
    return path, options
