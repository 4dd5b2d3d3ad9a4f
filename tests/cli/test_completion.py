"""`sense-trl completion`: what a shell is told, and what it completes with it."""

from __future__ import annotations

import shutil
import subprocess

import pytest
import tiny_models  # noqa: F401 - offline

from sense_trl.cli.completion import get_words
from sense_trl.cli.main import COMMANDS, EXIT_OK, main


def test_every_command_and_the_flags_of_the_stages_are_known() -> None:
    words = get_words(COMMANDS)
    assert {*COMMANDS, "sft", "dpo", "kd"} <= words.keys()
    assert {"--config", "--card", "--memory_gb"} <= set(words["estimate"])
    # Of SenseDPOConfig, TRL's ModelConfig and the launch.
    assert {"--config", "--dpop_lambda", "--lora_r", "--dry_run"} <= set(words["dpo"])
    # With and without a model.
    assert {"--soft_f1", "--config", "--run_name"} <= set(words["evaluate"])
    assert all(word == word.strip("'\"$ ") for found in words.values() for word in found)


@pytest.mark.parametrize(
    ("line", "expected"),
    [("sense-trl est", ["estimate"]), ("sense-trl merge --ev", ["--evaluation"])],
)
def test_bash_completes_with_the_script(capsys, monkeypatch, line: str, expected) -> None:
    if shutil.which("bash") is None:
        pytest.skip("bash is not installed")
    words = {"estimate": ["--card"], "merge": ["--base", "--evaluation"]}
    monkeypatch.setattr("sense_trl.cli.completion.get_words", lambda _: words)
    assert main(["completion", "bash"]) == EXIT_OK
    script = capsys.readouterr().out
    typed = line.split(" ")
    ask = f"COMP_WORDS=({' '.join(typed)}); COMP_CWORD={len(typed) - 1}; _sense_trl"
    done = subprocess.run(
        ["bash", "-c", f'{script}\n{ask}; echo "${{COMPREPLY[@]}}"'],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split() == expected
    assert not done.stderr


def test_zsh_reads_the_script_of_bash_and_fish_its_own(capsys, monkeypatch) -> None:
    monkeypatch.setattr("sense_trl.cli.completion.get_words", lambda _: {"merge": ["--base"]})
    assert main(["completion", "zsh"]) == EXIT_OK
    text = capsys.readouterr().out
    assert "bashcompinit" in text and "complete -o default -F _sense_trl sense-trl" in text
    assert main(["completion", "fish"]) == EXIT_OK
    assert "-n '__fish_seen_subcommand_from merge' -a '--base'" in capsys.readouterr().out


def test_recipes_are_completed_where_they_are_taken() -> None:
    words = get_words(COMMANDS)
    assert {"--copy", "qwen2.5-coder-7b-16gb"} <= set(words["recipes"])
    assert "qwen2.5-coder-7b-16gb/dpo" in words["dpo"]
    assert "qwen2.5-coder-7b-16gb/evaluate" in words["evaluate"]
