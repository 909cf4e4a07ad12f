"""Where everything lies below a storage URL; no other module spells a path.

```
<storage>/<kind>/<fingerprint>/record.json          a result; written last
<storage>/<kind>/<fingerprint>/attempt-<id>/        its payload, by one attempt
<storage>/stable/<fingerprint>/<checkpoint>/        checkpoints before the decay, with manifests and no record
<storage>/cleaning/                                 lease of whoever removes what no experiment needs
<storage>/experiments/<name>/                       what belongs to one experiment alone:
    lease/  config.json  experiment.json  runs.json  report/  tune/  train/  begun/  failures/  rehearsal/  rehearsed/
```
"""

from shortened_llm.storage.urls import join

# Kinds of results in a store.
MODELS = "models"
TOKENS, TOKEN_SHARDS = "tokens", "token_shards"
MEASUREMENTS, SCORES = "measurements", "scores"
RETRAINED, STABLE = "retrained", "stable"
EVALUATIONS = "evaluations"
COMPENSATIONS, MASKS, SPECTRA = "compensations", "masks", "spectra"
TRIALS = "trials"

EXPERIMENTS, CLEANING = "experiments", "cleaning"
RECORD_NAME = "record.json"

# Kinds of records in an experiment's own directory.
BEGUN, FAILURES, REHEARSED = "begun", "failures", "rehearsed"
# Its files and directories.
CONFIG, PLANNED, RUNS = "config.json", "experiment.json", "runs.json"
REPORT, REPORTED, PAGE = "report", "trials.json", "report.html"
TUNE, TRAIN, LEASE, REHEARSAL = "tune", "train", "lease", "rehearsal"


def record_url(storage: str, kind: str, fingerprint: str) -> str:
    """The record of a result."""
    return join(storage, kind, fingerprint, RECORD_NAME)


def attempt_url(storage: str, kind: str, fingerprint: str, attempt: str) -> str:
    """The payload of one attempt at a result."""
    return join(storage, kind, fingerprint, f"attempt-{attempt}")


def experiment_url(storage: str, name: str) -> str:
    """The directory of one experiment."""
    return join(storage, EXPERIMENTS, name)


def cleaning_url(storage: str) -> str:
    """The directory of the cleaner's lease."""
    return join(storage, CLEANING)


def stable_url(storage: str, fingerprint: str) -> str:
    """The directory of a run's checkpoints before the decay."""
    return join(storage, STABLE, fingerprint)
