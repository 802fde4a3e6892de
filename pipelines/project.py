"""Features to embeddings: `python -m pipelines.project OUT [flags] -- [Beam's flags]`.

The graph, built of the transforms in `mmembed.transforms`:

    numbers of units | ProjectFeatures

Same functions and same flags as `mmembed project`; on a cluster, for instance:

    python -m pipelines.project OUT -- --runner=PortableRunner --job_endpoint=HOST:PORT
"""

import sys

from mmembed.cli import main

if __name__ == "__main__":
    sys.exit(main(["project", *sys.argv[1:]]))
