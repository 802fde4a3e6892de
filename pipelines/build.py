"""All stages, from raw records to an evaluation: `python -m pipelines.build INPUT OUT [flags] -- [Beam's flags]`.

The graph, built of the transforms in `mmembed.transforms`:

    ExtractFeatures, FitMaps, ProjectFeatures and BuildIndex, one pipeline after the other

Same functions and same flags as `mmembed build`; on a cluster, for instance:

    python -m pipelines.build INPUT OUT -- --runner=PortableRunner --job_endpoint=HOST:PORT
"""

import sys

from mmembed.cli import main

if __name__ == "__main__":
    sys.exit(main(["build", *sys.argv[1:]]))
