"""The public names of sense_trl, stated once: `__init__.py` loads each on first use."""

from ._version import __version__ as __version__
from .checkpoints.merge import merge_adapter as merge_adapter
from .collators import (
    DataCollatorForPrefixTree as DataCollatorForPrefixTree,
    DataCollatorForWeightedPreference as DataCollatorForWeightedPreference,
)
from .database.catalog import DatabaseCatalog as DatabaseCatalog
from .database.duckdb_engine import DuckDBEngine as DuckDBEngine
from .database.duckdb_import import convert_sqlite as convert_sqlite
from .database.engine import (
    ExecutionLimits as ExecutionLimits,
    QueryResult as QueryResult,
    QueryStatus as QueryStatus,
    SQLEngine as SQLEngine,
)
from .database.sqlite_engine import SQLiteEngine as SQLiteEngine
from .database.worker import IsolatedEngine as IsolatedEngine
from .errors import SenseTRLError as SenseTRLError
from .evaluation.callback import ExecutionAccuracyCallback as ExecutionAccuracyCallback
from .evaluation.evaluate import EvaluationReport as EvaluationReport, evaluate_sql as evaluate_sql
from .evaluation.exact_set_match import exact_set_match as exact_set_match
from .evaluation.metrics import execution_accuracy as execution_accuracy
from .evaluation.samples import pass_at_k as pass_at_k
from .evaluation.soft_f1 import soft_f1 as soft_f1
from .generation.generator import SamplingConfig as SamplingConfig, SQLGenerator as SQLGenerator
from .generation.openai_generator import OpenAIGenerator as OpenAIGenerator
from .generation.recorded_generator import RecordedGenerator as RecordedGenerator
from .generation.transformers_generator import TransformersGenerator as TransformersGenerator
from .generation.vllm_generator import VLLMGenerator as VLLMGenerator
from .losses.divergence import (
    adaptive_kl as adaptive_kl,
    forward_kl as forward_kl,
    generalized_jsd as generalized_jsd,
    reverse_kl as reverse_kl,
    skew_kl as skew_kl,
    skew_reverse_kl as skew_reverse_kl,
    total_variation as total_variation,
)
from .losses.preference import cdpo_loss as cdpo_loss, dpo_loss as dpo_loss, dpop_loss as dpop_loss
from .losses.reduction import masked_mean as masked_mean
from .memory.estimate import estimate_memory as estimate_memory
from .pairs.answers import select_verified_answers as select_verified_answers
from .pairs.builder import (
    PreferencePairConfig as PreferencePairConfig,
    build_preference_pairs as build_preference_pairs,
)
from .pairs.candidates import Candidate as Candidate
from .prefix_tree import PrefixTree as PrefixTree
from .prompts import (
    PromptStyle as PromptStyle,
    extract_sql as extract_sql,
    get_prompt as get_prompt,
)
from .prompts.writer import PromptWriter as PromptWriter
from .questions import Question as Question, load_questions as load_questions
from .rewards import get_sql_execution_reward as get_sql_execution_reward
from .schema.formats import format_schema as format_schema
from .schema.graph import SchemaGraph as SchemaGraph
from .schema.schema import DatabaseSchema as DatabaseSchema, get_schema as get_schema
from .sql.mutation import mutate_sql as mutate_sql
from .sql.taxonomy import classify_errors as classify_errors
from .synthesis.explore.config import ExplorationConfig as ExplorationConfig
from .synthesis.explore.exploration import explore_database as explore_database
from .synthesis.recursive.recursion import distill_recursively as distill_recursively
from .synthesis.strong.config import StrongDataConfig as StrongDataConfig
from .synthesis.strong.data import build_strong_data as build_strong_data
from .task import make_task as make_task
from .trainers.kid_config import KIDConfig as KIDConfig
from .trainers.kid_trainer import KIDTrainer as KIDTrainer
from .trainers.sense_dpo_config import SenseDPOConfig as SenseDPOConfig
from .trainers.sense_dpo_trainer import SenseDPOTrainer as SenseDPOTrainer
from .trainers.sense_sft_config import SenseSFTConfig as SenseSFTConfig
from .trainers.sense_sft_trainer import SenseSFTTrainer as SenseSFTTrainer
from .trainers.teachers.cache import TeacherCache as TeacherCache
from .trainers.teachers.cache_builder import build_teacher_cache as build_teacher_cache
from .trainers.teachers.teacher import LiveTeacher as LiveTeacher
from .verification.comparison import Verdict as Verdict, results_match as results_match
from .verification.judging import (
    Verification as Verification,
    VerificationRequest as VerificationRequest,
    verify_sql as verify_sql,
)
from .verification.suite.verifier import SuiteVerifier as SuiteVerifier
from .verification.verifier import SQLVerifier as SQLVerifier
