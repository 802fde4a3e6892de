"""Raw records to features: `python -m pipelines.extract INPUT OUT [flags] -- [Beam's flags]`.

The graph, built of the transforms in `mmembed.transforms`:

    units | ReadRecords | SegmentRecords | NormalizeSegments | EncodeSegments | WriteFeatures

Same functions and same flags as `mmembed extract`; on a cluster, for instance:

    python -m pipelines.extract INPUT OUT -- --runner=PortableRunner --job_endpoint=HOST:PORT
"""

import sys

from mmembed.cli import main

if __name__ == "__main__":
    sys.exit(main(["extract", *sys.argv[1:]]))
