"""From a database and questions to a better text-to-SQL model.

Two halves that never import each other, so that pairs can be built and verified without torch:

* SQL half: `database, sql -> schema, questions -> prompts -> generation; verification -> pairs ->
  evaluation`;
* tensor half: `losses -> collators -> trainers`, which knows no SQL.

They meet in dataset columns, and in `steps`, `jobs`, `cli` and the recipes. `tests/
test_import_direction.py` holds the whole table. The names below load on first use: importing
`sense_trl` imports nothing else.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from sense_trl._version import __version__

if TYPE_CHECKING:
    from sense_trl.checkpoints.merge import merge_adapter as merge_adapter
    from sense_trl.collators import DataCollatorForPrefixTree as DataCollatorForPrefixTree
    from sense_trl.collators import (
        DataCollatorForWeightedPreference as DataCollatorForWeightedPreference,
    )
    from sense_trl.database.catalog import DatabaseCatalog as DatabaseCatalog
    from sense_trl.database.duckdb_engine import DuckDBEngine as DuckDBEngine
    from sense_trl.database.duckdb_import import convert_sqlite as convert_sqlite
    from sense_trl.database.engine import ExecutionLimits as ExecutionLimits
    from sense_trl.database.engine import QueryResult as QueryResult
    from sense_trl.database.engine import QueryStatus as QueryStatus
    from sense_trl.database.engine import SQLEngine as SQLEngine
    from sense_trl.database.fuzzing import DatabaseFuzzer as DatabaseFuzzer
    from sense_trl.database.fuzzing import FuzzHints as FuzzHints
    from sense_trl.database.profile import profile_database as profile_database
    from sense_trl.database.sqlite_engine import SQLiteEngine as SQLiteEngine
    from sense_trl.database.worker import IsolatedEngine as IsolatedEngine
    from sense_trl.errors import SenseTRLError as SenseTRLError
    from sense_trl.evaluation.callback import ExecutionAccuracyCallback as ExecutionAccuracyCallback
    from sense_trl.evaluation.efficiency import measure_efficiency as measure_efficiency
    from sense_trl.evaluation.evaluate import EvaluationReport as EvaluationReport
    from sense_trl.evaluation.evaluate import evaluate_sql as evaluate_sql
    from sense_trl.evaluation.exact_set_match import exact_set_match as exact_set_match
    from sense_trl.evaluation.hardness import Hardness as Hardness
    from sense_trl.evaluation.hardness import get_hardness as get_hardness
    from sense_trl.evaluation.markdown import format_markdown as format_markdown
    from sense_trl.evaluation.metrics import GroupAccuracy as GroupAccuracy
    from sense_trl.evaluation.metrics import Score as Score
    from sense_trl.evaluation.metrics import bootstrap_interval as bootstrap_interval
    from sense_trl.evaluation.metrics import execution_accuracy as execution_accuracy
    from sense_trl.evaluation.predictions import load_predictions as load_predictions
    from sense_trl.evaluation.samples import pass_at_k as pass_at_k
    from sense_trl.evaluation.samples import vote_by_execution as vote_by_execution
    from sense_trl.evaluation.soft_f1 import bird_soft_f1 as bird_soft_f1
    from sense_trl.evaluation.soft_f1 import soft_f1 as soft_f1
    from sense_trl.generation.generator import SamplingConfig as SamplingConfig
    from sense_trl.generation.generator import SQLGenerator as SQLGenerator
    from sense_trl.generation.openai_generator import EndpointUsage as EndpointUsage
    from sense_trl.generation.openai_generator import OpenAIGenerator as OpenAIGenerator
    from sense_trl.generation.recorded_generator import RecordedGenerator as RecordedGenerator
    from sense_trl.generation.transformers_generator import (
        TransformersGenerator as TransformersGenerator,
    )
    from sense_trl.generation.vllm_generator import VLLMGenerator as VLLMGenerator
    from sense_trl.losses.divergence import adaptive_kl as adaptive_kl
    from sense_trl.losses.divergence import forward_kl as forward_kl
    from sense_trl.losses.divergence import generalized_jsd as generalized_jsd
    from sense_trl.losses.divergence import get_divergence as get_divergence
    from sense_trl.losses.divergence import reverse_kl as reverse_kl
    from sense_trl.losses.divergence import skew_kl as skew_kl
    from sense_trl.losses.divergence import skew_reverse_kl as skew_reverse_kl
    from sense_trl.losses.divergence import total_variation as total_variation
    from sense_trl.losses.preference import cdpo_loss as cdpo_loss
    from sense_trl.losses.preference import dpo_loss as dpo_loss
    from sense_trl.losses.preference import dpop_loss as dpop_loss
    from sense_trl.losses.reduction import masked_mean as masked_mean
    from sense_trl.memory.estimate import MemoryEstimate as MemoryEstimate
    from sense_trl.memory.estimate import estimate_memory as estimate_memory
    from sense_trl.memory.training_setup import TrainingSetup as TrainingSetup
    from sense_trl.memory.training_setup import get_training_setup as get_training_setup
    from sense_trl.pairs.answers import select_verified_answers as select_verified_answers
    from sense_trl.pairs.builder import PairBuildResult as PairBuildResult
    from sense_trl.pairs.builder import PreferencePairConfig as PreferencePairConfig
    from sense_trl.pairs.builder import build_preference_pairs as build_preference_pairs
    from sense_trl.pairs.candidates import Candidate as Candidate
    from sense_trl.prefix_tree import PrefixTree as PrefixTree
    from sense_trl.prompts import PromptStyle as PromptStyle
    from sense_trl.prompts import extract_sql as extract_sql
    from sense_trl.prompts import get_prompt as get_prompt
    from sense_trl.prompts.writer import PromptWriter as PromptWriter
    from sense_trl.questions import Question as Question
    from sense_trl.questions import load_questions as load_questions
    from sense_trl.rewards import get_sql_execution_reward as get_sql_execution_reward
    from sense_trl.schema.foreign_keys import InferredForeignKey as InferredForeignKey
    from sense_trl.schema.foreign_keys import infer_foreign_keys as infer_foreign_keys
    from sense_trl.schema.formats import format_schema as format_schema
    from sense_trl.schema.graph import SchemaGraph as SchemaGraph
    from sense_trl.schema.schema import DatabaseSchema as DatabaseSchema
    from sense_trl.schema.schema import get_schema as get_schema
    from sense_trl.sql.mutation import Mutant as Mutant
    from sense_trl.sql.mutation import MutationKind as MutationKind
    from sense_trl.sql.mutation import mutate_sql as mutate_sql
    from sense_trl.sql.taxonomy import ErrorClass as ErrorClass
    from sense_trl.sql.taxonomy import ResultClass as ResultClass
    from sense_trl.sql.taxonomy import classify_errors as classify_errors
    from sense_trl.sql.taxonomy import classify_results as classify_results
    from sense_trl.sql.transpile import sqlite_to_duckdb as sqlite_to_duckdb
    from sense_trl.synthesis.example import SynthesizedExample as SynthesizedExample
    from sense_trl.synthesis.example import load_examples as load_examples
    from sense_trl.synthesis.explore.config import ExplorationConfig as ExplorationConfig
    from sense_trl.synthesis.explore.data_dictionary import DataDictionary as DataDictionary
    from sense_trl.synthesis.explore.data_dictionary import extract_dictionary as extract_dictionary
    from sense_trl.synthesis.explore.exploration import explore_database as explore_database
    from sense_trl.synthesis.explore.facts import get_database_facts as get_database_facts
    from sense_trl.synthesis.explore.folder import explore_databases as explore_databases
    from sense_trl.synthesis.explore.instructions import explore_with_model as explore_with_model
    from sense_trl.synthesis.explore.templates import mine_templates as mine_templates
    from sense_trl.synthesis.filters.contamination import EvaluationIndex as EvaluationIndex
    from sense_trl.synthesis.filters.filters import FilterPipeline as FilterPipeline
    from sense_trl.synthesis.recursive.data import RecursionData as RecursionData
    from sense_trl.synthesis.recursive.data import RecursionSettings as RecursionSettings
    from sense_trl.synthesis.recursive.recursion import distill_recursively as distill_recursively
    from sense_trl.synthesis.strong.config import StrongDataConfig as StrongDataConfig
    from sense_trl.synthesis.strong.data import build_strong_data as build_strong_data
    from sense_trl.trainers.kid_config import KIDConfig as KIDConfig
    from sense_trl.trainers.kid_trainer import KIDTrainer as KIDTrainer
    from sense_trl.trainers.sense_dpo_config import SenseDPOConfig as SenseDPOConfig
    from sense_trl.trainers.sense_dpo_trainer import SenseDPOTrainer as SenseDPOTrainer
    from sense_trl.trainers.sense_sft_config import SenseSFTConfig as SenseSFTConfig
    from sense_trl.trainers.sense_sft_trainer import SenseSFTTrainer as SenseSFTTrainer
    from sense_trl.trainers.teachers.cache import TeacherCache as TeacherCache
    from sense_trl.trainers.teachers.cache_builder import (
        build_teacher_cache as build_teacher_cache,
    )
    from sense_trl.trainers.teachers.teacher import LiveTeacher as LiveTeacher
    from sense_trl.verification.comparison import Verdict as Verdict
    from sense_trl.verification.comparison import results_match as results_match
    from sense_trl.verification.judging import Verification as Verification
    from sense_trl.verification.judging import VerificationRequest as VerificationRequest
    from sense_trl.verification.judging import verify_sql as verify_sql
    from sense_trl.verification.suite.instances import SuiteSettings as SuiteSettings
    from sense_trl.verification.suite.verifier import SuiteVerification as SuiteVerification
    from sense_trl.verification.suite.verifier import SuiteVerifier as SuiteVerifier
    from sense_trl.verification.suite.verifier import get_suite_files as get_suite_files
    from sense_trl.verification.suite.verifier import suite_accuracy as suite_accuracy
    from sense_trl.verification.verifier import SQLVerifier as SQLVerifier

# Public name to the module that defines it. The imports above say the same to type checkers; a
# test compares the two.
_MODULES = {
    "Candidate": "pairs.candidates",
    "DataCollatorForPrefixTree": "collators",
    "DataCollatorForWeightedPreference": "collators",
    "DataDictionary": "synthesis.explore.data_dictionary",
    "DatabaseCatalog": "database.catalog",
    "DatabaseFuzzer": "database.fuzzing",
    "DatabaseSchema": "schema.schema",
    "DuckDBEngine": "database.duckdb_engine",
    "EndpointUsage": "generation.openai_generator",
    "ErrorClass": "sql.taxonomy",
    "EvaluationIndex": "synthesis.filters.contamination",
    "EvaluationReport": "evaluation.evaluate",
    "ExecutionAccuracyCallback": "evaluation.callback",
    "ExecutionLimits": "database.engine",
    "ExplorationConfig": "synthesis.explore.config",
    "FilterPipeline": "synthesis.filters.filters",
    "FuzzHints": "database.fuzzing",
    "GroupAccuracy": "evaluation.metrics",
    "Hardness": "evaluation.hardness",
    "InferredForeignKey": "schema.foreign_keys",
    "IsolatedEngine": "database.worker",
    "KIDConfig": "trainers.kid_config",
    "KIDTrainer": "trainers.kid_trainer",
    "LiveTeacher": "trainers.teachers.teacher",
    "MemoryEstimate": "memory.estimate",
    "Mutant": "sql.mutation",
    "MutationKind": "sql.mutation",
    "OpenAIGenerator": "generation.openai_generator",
    "PairBuildResult": "pairs.builder",
    "PreferencePairConfig": "pairs.builder",
    "PrefixTree": "prefix_tree",
    "PromptStyle": "prompts",
    "PromptWriter": "prompts.writer",
    "QueryResult": "database.engine",
    "QueryStatus": "database.engine",
    "Question": "questions",
    "RecordedGenerator": "generation.recorded_generator",
    "RecursionData": "synthesis.recursive.data",
    "RecursionSettings": "synthesis.recursive.data",
    "ResultClass": "sql.taxonomy",
    "SQLEngine": "database.engine",
    "SQLGenerator": "generation.generator",
    "SQLVerifier": "verification.verifier",
    "SQLiteEngine": "database.sqlite_engine",
    "SamplingConfig": "generation.generator",
    "SchemaGraph": "schema.graph",
    "Score": "evaluation.metrics",
    "SenseDPOConfig": "trainers.sense_dpo_config",
    "SenseDPOTrainer": "trainers.sense_dpo_trainer",
    "SenseSFTConfig": "trainers.sense_sft_config",
    "SenseSFTTrainer": "trainers.sense_sft_trainer",
    "SenseTRLError": "errors",
    "StrongDataConfig": "synthesis.strong.config",
    "SuiteSettings": "verification.suite.instances",
    "SuiteVerification": "verification.suite.verifier",
    "SuiteVerifier": "verification.suite.verifier",
    "SynthesizedExample": "synthesis.example",
    "TeacherCache": "trainers.teachers.cache",
    "TrainingSetup": "memory.training_setup",
    "TransformersGenerator": "generation.transformers_generator",
    "VLLMGenerator": "generation.vllm_generator",
    "Verdict": "verification.comparison",
    "Verification": "verification.judging",
    "VerificationRequest": "verification.judging",
    "adaptive_kl": "losses.divergence",
    "bird_soft_f1": "evaluation.soft_f1",
    "bootstrap_interval": "evaluation.metrics",
    "build_preference_pairs": "pairs.builder",
    "build_strong_data": "synthesis.strong.data",
    "build_teacher_cache": "trainers.teachers.cache_builder",
    "cdpo_loss": "losses.preference",
    "classify_errors": "sql.taxonomy",
    "classify_results": "sql.taxonomy",
    "convert_sqlite": "database.duckdb_import",
    "distill_recursively": "synthesis.recursive.recursion",
    "dpo_loss": "losses.preference",
    "dpop_loss": "losses.preference",
    "estimate_memory": "memory.estimate",
    "evaluate_sql": "evaluation.evaluate",
    "exact_set_match": "evaluation.exact_set_match",
    "execution_accuracy": "evaluation.metrics",
    "explore_database": "synthesis.explore.exploration",
    "explore_databases": "synthesis.explore.folder",
    "explore_with_model": "synthesis.explore.instructions",
    "extract_dictionary": "synthesis.explore.data_dictionary",
    "extract_sql": "prompts",
    "format_markdown": "evaluation.markdown",
    "format_schema": "schema.formats",
    "forward_kl": "losses.divergence",
    "generalized_jsd": "losses.divergence",
    "get_database_facts": "synthesis.explore.facts",
    "get_divergence": "losses.divergence",
    "get_hardness": "evaluation.hardness",
    "get_prompt": "prompts",
    "get_schema": "schema.schema",
    "get_sql_execution_reward": "rewards",
    "get_suite_files": "verification.suite.verifier",
    "get_training_setup": "memory.training_setup",
    "infer_foreign_keys": "schema.foreign_keys",
    "load_examples": "synthesis.example",
    "load_predictions": "evaluation.predictions",
    "load_questions": "questions",
    "masked_mean": "losses.reduction",
    "measure_efficiency": "evaluation.efficiency",
    "merge_adapter": "checkpoints.merge",
    "mine_templates": "synthesis.explore.templates",
    "mutate_sql": "sql.mutation",
    "pass_at_k": "evaluation.samples",
    "profile_database": "database.profile",
    "results_match": "verification.comparison",
    "reverse_kl": "losses.divergence",
    "select_verified_answers": "pairs.answers",
    "skew_kl": "losses.divergence",
    "skew_reverse_kl": "losses.divergence",
    "soft_f1": "evaluation.soft_f1",
    "sqlite_to_duckdb": "sql.transpile",
    "suite_accuracy": "verification.suite.verifier",
    "total_variation": "losses.divergence",
    "verify_sql": "verification.judging",
    "vote_by_execution": "evaluation.samples",
}

__all__ = ["__version__", *_MODULES]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
