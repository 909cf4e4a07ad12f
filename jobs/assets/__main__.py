"""`python -m jobs.assets`."""

import sys

from jobs.assets import main

sys.exit(main())
