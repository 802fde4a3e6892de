"""Features to maps: `python -m pipelines.fit OUT [flags] -- [Beam's flags]`.

The graph, built of the transforms in `mmembed.transforms`:

    blocks of units | AccumulateMoments | CombineGlobally(MergeMoments) | fit and write

Same functions and same flags as `mmembed fit`; on a cluster, for instance:

    python -m pipelines.fit OUT -- --runner=PortableRunner --job_endpoint=HOST:PORT
"""

import sys

from mmembed.cli import main

if __name__ == "__main__":
    sys.exit(main(["fit", *sys.argv[1:]]))
