"""Models that write SQL: one protocol, and the implementations behind it."""

from sense_trl.generation.generator import Completion, SamplingConfig, SQLGenerator

__all__ = ["Completion", "SQLGenerator", "SamplingConfig"]
