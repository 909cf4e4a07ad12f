"""What one stage hands to the next: frozen records with a JSON form.

A record says what was computed and how; where it lies is the store's business (`storage/store.py`).
"""

from shortened_llm.records.codec import from_json, to_json
from shortened_llm.records.data import TokenDataset, TokenMixture, TrainingData
from shortened_llm.records.evaluation import (
    AgreementScore,
    EfficiencyPoint,
    EfficiencyScore,
    EvalScores,
    Footprint,
    GenerationPoint,
    GenerationSpeed,
    MetricScore,
    MissingScore,
    PerplexityScore,
    Score,
    ServingScore,
    TaskScore,
)
from shortened_llm.records.files import FileEntry, Payload
from shortened_llm.records.model import ModelRef, ModelSize, Size
from shortened_llm.records.objective import BY_PERPLEXITY, Objective
from shortened_llm.records.plan import Bin, PlanLabel, PrunePlan, Target
from shortened_llm.records.scores import RESAMPLES, UNDECIDED, Cut, UnitScores, removed_units
from shortened_llm.records.training import (
    DistillOptions,
    LoraOptions,
    Recipe,
    RetrainedModel,
    TrainingPoint,
    accelerator_seconds,
    taken_over,
)
from shortened_llm.records.transform import (
    PARTS,
    BlocksTransform,
    Part,
    SublayersTransform,
    TensorsTransform,
    Transform,
    WeightsTransform,
    WidthsTransform,
    composed,
    kept_blocks,
    of_kind,
    without_places,
)
from shortened_llm.records.trial import (
    Constraints,
    EvaluatedModel,
    Experiment,
    Provenance,
    ReportedTrial,
    Rounds,
    SourceFacts,
    TrialFailure,
    TrialResult,
    TrialSpec,
)
from shortened_llm.records.units import (
    UNIT_TITLES,
    PruneUnit,
    lost_parts,
    num_units,
    parts_of,
    removal,
    unit_name,
    units_gone,
    units_of,
)
from shortened_llm.records.weights import SpectralExponents, WeightRanking
from shortened_llm.records.widths import Narrowing, Scores, WidthScores, packed, unpacked
