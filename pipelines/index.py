"""Embeddings to an index: `python -m pipelines.index OUT [flags] -- [Beam's flags]`.

The graph, built of the transforms in `mmembed.transforms`:

    modalities | BuildIndex

Same functions and same flags as `mmembed index`; on a cluster, for instance:

    python -m pipelines.index OUT -- --runner=PortableRunner --job_endpoint=HOST:PORT
"""

import sys

from mmembed.cli import main

if __name__ == "__main__":
    sys.exit(main(["index", *sys.argv[1:]]))
