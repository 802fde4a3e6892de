"""The error tree.

MmembedError
├── UsageError       a flag, a path, a configuration or the input as a whole can't serve (exit code 2)
├── CrashError       a worker process died: of what it was doing, or because somebody killed it
├── DatasetError     a file of OUT/ does not fit its manifest (exit code 1)
│   ├── VersionError     the data set was written by another version of mmembed
│   └── SpaceError   a vector of one space met a map, shard or index of another
└── RecordError      one record or segment can't be used: it becomes a row of errors/, the run goes on
    ├── ReadError    the record itself, or a file of it, can't be read (a broken line, no id, no file)
    │   └── RepeatedIdError   an earlier record has its id
    ├── DecodeError  its image, text or sound can't be decoded
    ├── EncodeError  its encoder gave no usable feature
    └── FilteredError  a filter of the configuration leaves it out: it becomes a row of dropped/
"""

from __future__ import annotations


class MmembedError(Exception):
    """Base of every error that mmembed raises on purpose; its message is written for the user."""


class UsageError(MmembedError):
    """A flag, a path, a configuration or the input as a whole can't serve."""


class CrashError(MmembedError):
    """A worker process died.

    Attributes:
        pid: of the process.
        signal: that ended it, 0 where it ended itself.
    """

    def __init__(self, message: str, pid: int = 0, signal: int = 0) -> None:
        super().__init__(message)
        self.pid, self.signal = pid, signal


class DatasetError(MmembedError):
    """A file of a built data set is missing, damaged or of another version than its manifest says."""


class VersionError(DatasetError):
    """A data set was written by another version of mmembed."""


class SpaceError(DatasetError):
    """A vector of one space met a map, a shard or an index of another."""


class RecordError(MmembedError):
    """One record or segment can't be used. Caught by the steps, and by them alone."""


class ReadError(RecordError):
    """The record itself can't be read."""


class RepeatedIdError(ReadError):
    """An earlier record has its id."""

    @classmethod
    def of(cls, id: str, place: str) -> RepeatedIdError:
        """The error of a record whose id was first used at `place`."""
        return cls(f"the id {id!r} was used before, at {place}; ids must be unique")


class DecodeError(RecordError):
    """The image, text or sound of a record can't be decoded."""


class EncodeError(RecordError):
    """An encoder gave no usable feature for a segment."""


class FilteredError(RecordError):
    """A filter of the configuration leaves a medium out; the message is the reason."""
