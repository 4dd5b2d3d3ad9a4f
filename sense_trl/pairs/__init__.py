"""From candidates and verdicts to a preference dataset with provenance."""

from sense_trl.pairs.answers import select_verified_answers
from sense_trl.pairs.builder import (
    DropReason,
    PairBuildResult,
    PreferencePairConfig,
    build_preference_pairs,
)
from sense_trl.pairs.candidates import Candidate, CandidateFile

__all__ = [
    "Candidate",
    "CandidateFile",
    "DropReason",
    "PairBuildResult",
    "PreferencePairConfig",
    "build_preference_pairs",
    "select_verified_answers",
]
