"""Entry points: python -m jobs.<verb> CONFIG.yaml [--section.field value] [--dry-run]."""

import os

from shortened_llm.logs import quiet_libraries

# Ray reads these once, when it is first imported; whatever the user has set stays.
os.environ.setdefault("RAY_AUTH_MODE", "token")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("TUNE_DISABLE_SIGINT_HANDLER", "1")
os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
quiet_libraries()
