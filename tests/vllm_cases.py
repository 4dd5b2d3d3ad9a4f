"""What vLLM itself is asked, in a process of its own and as a server; see test_vllm_itself.py."""

from __future__ import annotations

from sense_trl.generation.generator import Completion, SamplingConfig
from sense_trl.prompts import get_prompt

MAX_LENGTH = 768
# Longer than a block of vLLM's cache, which has 128 tokens on a CPU.
SCHEMAS = [
    "\n".join(f"{table}_{i}({table}_id, name, year, country)" for i in range(6))
    for table in ("concert", "singer")
]
PROMPTS = [get_prompt(f"How many of {i}?", SCHEMAS[i % 2]) for i in range(6)]
TOO_LONG = get_prompt("Which?", "t(a, b)\n" * 300)
GREEDY = SamplingConfig(max_new_tokens=24)
SAMPLED = SamplingConfig(num_generations=3, temperature=1.0, top_p=0.9, max_new_tokens=12, seed=5)


def flatten(results: list[list[Completion]]) -> list[list[list[object]]]:
    """Text, tokens and whether it ended, of each completion.

    vLLM keeps back the bytes of a character that is cut off; a decoder writes U+FFFD for them.
    """
    return [
        [[c.text.rstrip("\ufffd \n\t"), c.num_tokens, c.finished] for c in group]
        for group in results
    ]
