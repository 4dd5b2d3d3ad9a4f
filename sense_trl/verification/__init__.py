"""Comparing results and deciding about predictions."""

from sense_trl.verification.comparison import Comparison, Reason, Semantics, Verdict, results_match
from sense_trl.verification.judging import Verification, VerificationRequest, verify_sql
from sense_trl.verification.verifier import SQLVerifier

__all__ = [
    "Comparison",
    "Reason",
    "SQLVerifier",
    "Semantics",
    "Verdict",
    "Verification",
    "VerificationRequest",
    "results_match",
    "verify_sql",
]
