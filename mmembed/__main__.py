"""`python -m mmembed` is the command `mmembed`."""

import sys

from mmembed.cli import main

sys.exit(main())
