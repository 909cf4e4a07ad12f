"""`python -m jobs.search`, with every line of progress in its log: a drill counts the steps that were lost."""

import jobs.search
from jobs.cli import run
from shortened_llm.search.cluster import progress

progress.POLL_SECONDS = 0.5
progress.SECONDS_BETWEEN_LINES = 0.0

if __name__ == "__main__":
    run(jobs.search.main)
