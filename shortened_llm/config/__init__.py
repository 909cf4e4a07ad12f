"""The user's schema: what one YAML may say. Every default lives here, once, with its unit.

Text values expand `~` and environment variables, so that one file works on a laptop and in a submitted job.
"""

from shortened_llm.config.budget import BudgetConfig
from shortened_llm.config.depth import DepthPruning
from shortened_llm.config.evaluation import (
    LOCAL_SUFFIX,
    TASK_SETS,
    EfficiencyConfig,
    EvaluationConfig,
    GenerationConfig,
    PerplexitySource,
    TaskConfig,
)
from shortened_llm.config.experiment import ExperimentConfig, changed_keys, entry_paths, flatten
from shortened_llm.config.messages import describe_errors, parse_config, require_sections
from shortened_llm.config.model import ModelConfig
from shortened_llm.config.pruning import Pruning
from shortened_llm.config.resources import DRIVER_RESOURCE, TRIAL_DRIVER_CPUS, NodeGroup, ResourcesConfig
from shortened_llm.config.retraining import RetrainingConfig, retraining_section
from shortened_llm.config.search import Control, SearchSection
from shortened_llm.config.text import CalibrationConfig, DataSource, InstructionsConfig, TextSource, TrainingSource
from shortened_llm.config.tracking import TrackingConfig
from shortened_llm.config.weight import JointRefit, WeightPruning
from shortened_llm.config.width import Refit, WidthPruning
