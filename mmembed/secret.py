"""The secret key that pseudonyms, and the noise of embeddings, are made with: where it lies, and what is made of it."""

from __future__ import annotations

import hashlib
import hmac
import os
from dataclasses import dataclass
from functools import lru_cache

from mmembed.errors import ReadError, UsageError
from mmembed.files import Stamp, open_binary, stamp

VARIABLE = "MMEMBED_SECRET"
"""Of the environment: the secret itself, where no file is named."""

LEAST_BYTES = 16
"""Whoever guesses the secret can tell who is behind a pseudonym by trying names."""

_MOST_BYTES = 1 << 16


@dataclass(frozen=True)
class Secret:
    """Where the secret lies; picklable, and it never holds the secret itself, which no output may.

    Attributes:
        file: a path, or the URL of a file system; "": the secret is the value of MMEMBED_SECRET.
    """

    file: str = ""

    def read(self) -> bytes:
        """The secret: the file's bytes, without blanks and line ends around them.

        Raises:
            UsageError: there is none, or it is shorter than 16 bytes.
        """
        if not self.file and VARIABLE not in os.environ:
            raise UsageError(f"a secret is needed: name its file with --secret FILE, or set {VARIABLE}")
        found = _read(self.file, stamp(self.file)) if self.file else os.environb[VARIABLE.encode()].strip()
        if len(found) < LEAST_BYTES:
            raise UsageError(
                f"the secret in {self.file or VARIABLE} has {len(found)} bytes: it must have {LEAST_BYTES} or more, "
                "such as those of `openssl rand -hex 32`"
            )
        return found

    def pseudonym(self, id: str) -> str:
        """HMAC-SHA-256 of an id, 64 hex digits: the same secret gives the same (RFC 2104)."""
        return hmac.new(self.read(), id.encode("utf-8", "surrogatepass"), hashlib.sha256).hexdigest()

    def key(self, use: str) -> bytes:
        """A key of its own for another use, 32 bytes: what is known of one tells nothing of another."""
        return hmac.new(self.read(), f"mmembed\0{use}".encode(), hashlib.sha256).digest()

    @property
    def name(self) -> str:
        """16 hex digits that are equal for equal secrets, and tell nothing else of them."""
        return self.key("name").hex()[:16]


@lru_cache(maxsize=2)
def _read(file: str, stamp: Stamp) -> bytes:
    """The secret in a file, as long as that is the same: it is asked for with each id."""
    try:
        with open_binary(file) as opened:
            return opened.read(_MOST_BYTES).strip()
    except (ReadError, OSError) as error:
        raise UsageError(f"can't read the secret: {error}") from error
