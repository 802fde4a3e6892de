"""Encryption at rest: Parquet by its own modular encryption, every other file of a data set by AES-GCM.

Each file has a key of its own, which a master key wraps: that of a key file, or of a key service (a `KmsClient` of
pyarrow). A file says that it is encrypted, so that whoever reads needs the master key and nothing else; whoever writes
encrypts within `sealing`. Where the master key is found lies in the environment, which worker processes inherit.
"""

from __future__ import annotations

import base64
import importlib
import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Any, NamedTuple

from mmembed.errors import DatasetError, MmembedError, ReadError, UsageError
from mmembed.files import open_binary

VARIABLE = "MMEMBED_ENCRYPTION_KEY"
"""Of the environment: where the master key is found, a key file or MODULE:CLASS."""

KEY_BYTES = 32
"""Of AES-256."""

PARQUET_MAGIC = b"PARE"
"""What an encrypted Parquet file begins with (Parquet modular encryption, "Encrypted Footer Mode")."""

MAGIC = b"MMSEAL1\n"
"""What any other encrypted file begins with."""

_CHUNK_BYTES = 4 << 20
_TAG_BYTES = 16
_SERVICE = re.compile(r"(?P<module>\w+(\.\w+)*):(?P<name>[A-Za-z_]\w*)(@(?P<key>.+))?")
_HELP = "a key file, or MODULE:CLASS of a key service, optionally with @KEY"


class State(NamedTuple):
    """What a process knows of encryption; sent to workers, and never holds a key.

    Attributes:
        location: where the master key is found, "" for nowhere.
        seals: whether what is written is encrypted.
    """

    location: str
    seals: bool

    def enter(self) -> None:
        """Go on in this state, in a process of one's own."""
        global _seals
        if self.location:
            os.environ[VARIABLE] = self.location
        _seals = self.seals


_seals = False


def use(location: str) -> None:
    """Say where the master key is found, for this process and those that it starts.

    Args:
        location: a file of 64 hex digits (a path or URL), or MODULE:CLASS of a `pyarrow.parquet.encryption.KmsClient`,
            optionally with @ and the key's name there.

    Raises:
        UsageError: there is none.
    """
    _master.cache_clear()  # the file may have another key by now
    _master(location)
    os.environ[VARIABLE] = location


def state() -> State:
    """Of this process; workers may have another working directory."""
    location = os.environ.get(VARIABLE, "")
    return State(os.path.abspath(location) if os.path.exists(location) else location, _seals)


def seals() -> bool:
    """Whether what is written now is encrypted."""
    return _seals


@contextmanager
def sealing(wanted: bool) -> Iterator[None]:
    """Whether what is written meanwhile is encrypted.

    Raises:
        UsageError: it is, and no master key can be had.
    """
    global _seals
    before, _seals = _seals, wanted
    try:
        if wanted:
            _current()
        yield
    finally:
        _seals = before


def is_sealed(head: bytes | memoryview) -> bool:
    """Whether a file that begins so is encrypted."""
    return bytes(head[: len(PARQUET_MAGIC)]) == PARQUET_MAGIC or bytes(head[: len(MAGIC)]) == MAGIC


def seal(data: bytes | memoryview) -> bytes:
    """The bytes of a file, encrypted: a header, and chunks; which number one has, and whether it is the last, is sealed
    with it."""
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

    master, key = _current(), AESGCM.generate_key(8 * KEY_BYTES)
    head = json.dumps({"id": master.id, "key": _text(master.client.wrap_key(key, master.id))}).encode()
    header, cipher = MAGIC + len(head).to_bytes(4, "big") + head, AESGCM(key)
    starts = range(0, max(len(data), 1), _CHUNK_BYTES)
    chunks = (
        cipher.encrypt(_nonce(number, start == starts[-1]), data[start : start + _CHUNK_BYTES], header)
        for number, start in enumerate(starts)
    )
    return b"".join([header, *chunks])


def unsealed(data: bytes | memoryview, name: object) -> bytes | memoryview:
    """The bytes of a file as they were before `seal`; of one that isn't sealed so, as they are.

    Args:
        name: of the file, for messages.

    Raises:
        UsageError: it is encrypted, and no master key can be had, or another one.
        DatasetError: it was changed.
    """
    if bytes(data[: len(MAGIC)]) != MAGIC:
        return data
    from cryptography.exceptions import InvalidTag
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

    try:
        begin = len(MAGIC) + 4
        start = begin + int.from_bytes(data[len(MAGIC) : begin], "big")
        header = bytes(data[:start])
        head = json.loads(header[begin:])
        cipher = AESGCM(_bytes(_current(name).client.unwrap_key(head["key"], head["id"])))
        starts = range(start, max(len(data), start + 1), _CHUNK_BYTES + _TAG_BYTES)
        return b"".join(
            cipher.decrypt(_nonce(number, at == starts[-1]), data[at : at + starts.step], header)
            for number, at in enumerate(starts)
        )
    except (InvalidTag, ValueError, KeyError, TypeError) as error:
        raise DatasetError(f"{name} can't be decrypted: it was changed or cut; delete it and build again") from error


def writer_properties() -> Any:
    """For pyarrow's Parquet writer: None where nothing is encrypted."""
    if not _seals:
        return None
    import pyarrow.parquet.encryption as parquet

    master = _current()
    # Uniform: all columns and the footer, which holds the names of columns and the receipt, with one data key.
    config = parquet.EncryptionConfiguration(master.id, uniform_encryption=True, data_key_length_bits=8 * KEY_BYTES)
    return master.factory.file_encryption_properties(parquet.KmsConnectionConfig(), config)


def reader_properties(head: bytes | memoryview, name: object = "the data set") -> Any:
    """For pyarrow's Parquet reader: None for a file that isn't encrypted.

    Args:
        head: its first bytes.
        name: of the file, for messages.

    Raises:
        UsageError: it is encrypted, and no master key can be had.
    """
    if bytes(head[: len(PARQUET_MAGIC)]) != PARQUET_MAGIC:
        return None
    import pyarrow.parquet.encryption as parquet

    return _current(name).factory.file_decryption_properties(parquet.KmsConnectionConfig())


@dataclass(frozen=True)
class _Master:
    """A master key: its name, who wraps keys with it, and pyarrow's factory around that."""

    id: str
    client: Any
    factory: Any


def _current(name: object = "") -> _Master:
    location = os.environ.get(VARIABLE, "")
    if not location:
        what = f"{name} is encrypted" if name else "to encrypt, a key is needed"
        raise UsageError(f"{what}: name its key with --encryption-key, or set {VARIABLE} ({_HELP})")
    return _master(location)


@lru_cache(maxsize=4)
def _master(location: str) -> _Master:
    try:
        import pyarrow.parquet.encryption as parquet
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM  # noqa: F401
    except ImportError as error:
        raise UsageError(f"encryption needs {error.name}: pip install 'mmembed[privacy]'") from error
    service = None if os.path.exists(location) else _SERVICE.fullmatch(location)
    if service:
        made, id = _service(service["module"], service["name"]), service["key"] or "mmembed"
    else:
        key = _read_key(location)
        made, id = (lambda config: _file_client()(key, location)), "key-file"
    client = _guarding()(made(parquet.KmsConnectionConfig()))
    return _Master(id, client, parquet.CryptoFactory(lambda config: client))


def _service(module: str, name: str) -> Any:
    import pyarrow.parquet.encryption as parquet

    try:
        found = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise UsageError(f"encryption key {module}:{name}: {error}; give {_HELP}") from error
    if not (isinstance(found, type) and issubclass(found, parquet.KmsClient)):
        raise UsageError(f"encryption key {module}:{name}: it is no subclass of pyarrow.parquet.encryption.KmsClient")
    return found


def _read_key(location: str) -> bytes:
    try:
        with open_binary(location) as file:
            return bytes.fromhex(_of_key_size(file.read(1024).strip()).decode())
    except (ReadError, OSError) as error:
        raise UsageError(f"encryption key: {error}; give {_HELP}") from error
    except ValueError as error:
        raise UsageError(
            f"the encryption key in {location} must be {2 * KEY_BYTES} hex digits, such as those of "
            f"`openssl rand -hex {KEY_BYTES}`"
        ) from error


def _of_key_size(digits: bytes) -> bytes:
    if len(digits) != 2 * KEY_BYTES:
        raise ValueError(len(digits))
    return digits


@cache
def _file_client() -> Any:
    """The class that wraps keys with that of a file; made late, for its base is loaded late."""
    import pyarrow.parquet.encryption as parquet
    from cryptography.exceptions import InvalidTag
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

    class FileClient(parquet.KmsClient):  # type: ignore[misc]
        """Wraps data keys by AES-GCM, with the name of the master key as associated data."""

        def __init__(self, key: bytes, location: str) -> None:
            super().__init__()
            self._cipher, self._location = AESGCM(key), location

        def wrap_key(self, key_bytes: bytes, master_key_identifier: str) -> str:
            nonce = os.urandom(12)
            wrapped = self._cipher.encrypt(nonce, key_bytes, master_key_identifier.encode())
            return base64.b64encode(nonce + wrapped).decode()

        def unwrap_key(self, wrapped_key: str, master_key_identifier: str) -> bytes:
            data = base64.b64decode(wrapped_key)
            try:
                return self._cipher.decrypt(data[:12], data[12:], master_key_identifier.encode())
            except InvalidTag as error:
                raise UsageError(
                    f"the data set was encrypted with another key than that of {self._location}"
                ) from error

    return FileClient


@cache
def _guarding() -> Any:
    """The class around a client whose errors are ours: one of a network would be taken for that of a missing file, and
    what can't be decrypted now for what may be removed."""
    import pyarrow.parquet.encryption as parquet

    class Guarding(parquet.KmsClient):  # type: ignore[misc]
        """Asks another client."""

        def __init__(self, client: Any) -> None:
            super().__init__()
            self._client = client

        def wrap_key(self, key_bytes: bytes, master_key_identifier: str) -> Any:
            with _own_errors():
                return self._client.wrap_key(key_bytes, master_key_identifier)

        def unwrap_key(self, wrapped_key: str, master_key_identifier: str) -> Any:
            with _own_errors():
                return self._client.unwrap_key(wrapped_key, master_key_identifier)

    return Guarding


@contextmanager
def _own_errors() -> Iterator[None]:
    try:
        yield
    except (MmembedError, ValueError, KeyError, TypeError):  # of what was changed, no key can be made
        raise
    except Exception as error:
        raise UsageError(f"the key service failed ({type(error).__name__}: {error}): try again later") from error


def _nonce(number: int, is_last: bool) -> bytes:
    return number.to_bytes(11, "big") + bytes([is_last])


def _text(value: str | bytes) -> str:
    return value if isinstance(value, str) else value.decode()


def _bytes(value: str | bytes) -> bytes:
    return value if isinstance(value, bytes) else value.encode()
