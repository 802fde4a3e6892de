"""The PTransforms: the only room that imports apache_beam. One for each step, and a composite for each stage.

For pipelines of users' own are `mmembed.transforms.embed`, and `mmembed.transforms.handler`, which loads torch where it
is installed, for Beam does.
"""

from mmembed.transforms.extract import (
    EncodeSegments,
    ExtractFeatures,
    NormalizeSegments,
    ReadRecords,
    SegmentRecords,
    WriteFeatures,
)
from mmembed.transforms.fit import AccumulateMoments, FitMaps, MergeMoments
from mmembed.transforms.index import BuildIndex
from mmembed.transforms.project import ProjectFeatures
from mmembed.transforms.runner import check_beam_flags, check_job_server, prepare, run

__all__ = [
    "AccumulateMoments",
    "BuildIndex",
    "EncodeSegments",
    "ExtractFeatures",
    "FitMaps",
    "MergeMoments",
    "NormalizeSegments",
    "ProjectFeatures",
    "ReadRecords",
    "SegmentRecords",
    "WriteFeatures",
    "check_beam_flags",
    "check_job_server",
    "prepare",
    "run",
]
