"""Entry points: python -m jobs.<verb> CONFIG.yaml [--section.field value] [--dry-run].

Those that read what is stored (export, report, status) take an EXPERIMENT, and clean takes a STORAGE, in its place.
"""

import os

from shortened_llm.logs import quiet_libraries

# Ray reads these once, when it is first imported; whatever the user has set stays.
os.environ.setdefault("RAY_AUTH_MODE", "token")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
if not os.environ.get("RAY_ADDRESS"):
    # A Ray of our own stays on the loopback interface, which it would replace by the machine's address otherwise.
    os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
os.environ.setdefault("TUNE_DISABLE_SIGINT_HANDLER", "1")
os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
quiet_libraries()
