"""Memory that the processes of a machine have in common: a loader's workers see what was read once."""

from __future__ import annotations

import mmap
import os
import tempfile
import weakref
from typing import Any

from mmembed.errors import UsageError


class Shared:
    """Some bytes, zero at first, that forked processes see as the same memory, and those that it is pickled to as well.

    They lie in main memory, or in a file without a name in the folder for temporary files, which the system removes
    when the last process that has it ends, however it ends.

    Attributes:
        map: the bytes.
    """

    def __init__(self, size: int, on_disk: bool) -> None:
        """Reserve them.

        Raises:
            UsageError: the disk has not so many.
        """
        size = max(size, 1)
        in_memory = not on_disk and hasattr(os, "memfd_create")  # which Linux alone has
        self._attach(os.memfd_create("mmembed") if in_memory else _on_disk(size), size)

    def _attach(self, file: int, size: int) -> None:
        self._file = file
        weakref.finalize(self, os.close, file)  # the memory stays as long as arrays in it do
        os.ftruncate(file, size)
        self.map = mmap.mmap(file, size)

    def __reduce__(self) -> Any:
        status = os.fstat(self._file)
        return _attached, (os.getpid(), self._file, [status.st_dev, status.st_ino], status.st_size)


def _attached(process: int, file: int, inode: list[int], size: int) -> Shared | None:
    """The memory that another process has open as a file; None where that process is none of this machine any more."""
    try:
        own = os.open(f"/proc/{process}/fd/{file}", os.O_RDWR)
    except OSError:
        return None
    status = os.fstat(own)
    if [status.st_dev, status.st_ino] != inode:  # of another process that has its number by now
        os.close(own)
        return None
    found = Shared.__new__(Shared)
    found._attach(own, size)
    return found


def _on_disk(size: int) -> int:
    """A file without a name of so many bytes."""
    with tempfile.TemporaryFile() as file:
        try:
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(file.fileno(), 0, size)  # a disk that is full later would end the process
        except OSError as error:
            raise UsageError(
                f"{size / 1e9:.1f} GB of vectors are more than `memory` allows, and {tempfile.gettempdir()} can't take "
                f"them ({error.strerror}): set TMPDIR to a folder with more room, or raise `memory`"
            ) from error
        return os.dup(file.fileno())
