"""Measuring text-to-SQL: metrics, per-question records, a report."""

from sense_trl.evaluation.curves import TrainingLog
from sense_trl.evaluation.evaluate import EvaluationRecord, EvaluationReport, evaluate_sql
from sense_trl.evaluation.metrics import (
    GroupAccuracy,
    Interval,
    PairedComparison,
    Score,
    accuracy_interval,
    bootstrap_interval,
    compare_paired,
    execution_accuracy,
)
from sense_trl.evaluation.report import ReportSection, write_html_report

__all__ = [
    "EvaluationRecord",
    "EvaluationReport",
    "GroupAccuracy",
    "Interval",
    "PairedComparison",
    "ReportSection",
    "Score",
    "TrainingLog",
    "accuracy_interval",
    "bootstrap_interval",
    "compare_paired",
    "evaluate_sql",
    "execution_accuracy",
    "write_html_report",
]
