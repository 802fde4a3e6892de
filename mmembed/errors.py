"""The error tree.

MmembedError
├── UsageError        a flag, a path, a configuration or the input as a whole can't serve (exit code 2)
├── DatasetError      a file of OUT/ does not fit its manifest (exit code 1)
│   └── SpaceError    a vector of one space met a map, shard or index of another
└── RecordError       one record or segment can't be used: it becomes a row of errors/, the run goes on
    ├── ReadError     the record itself can't be read (a broken line, no id)
    ├── DecodeError   its image, text or sound can't be decoded
    └── EncodeError   its encoder gave no usable feature
"""


class MmembedError(Exception):
    """Base of every error that mmembed raises on purpose; its message is written for the user."""


class UsageError(MmembedError):
    """A flag, a path, a configuration or the input as a whole can't serve."""


class DatasetError(MmembedError):
    """A file of a built data set is missing, damaged or of another version than its manifest says."""


class SpaceError(DatasetError):
    """A vector of one space met a map, a shard or an index of another."""


class RecordError(MmembedError):
    """One record or segment can't be used. Caught by the steps, and by them alone."""


class ReadError(RecordError):
    """The record itself can't be read."""


class DecodeError(RecordError):
    """The image, text or sound of a record can't be decoded."""


class EncodeError(RecordError):
    """An encoder gave no usable feature for a segment."""
