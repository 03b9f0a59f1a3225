"""`python -m localcluster.engine serve MODEL …`."""

import sys

from localcluster.engine.main import main

sys.exit(main(sys.argv[1:]))
