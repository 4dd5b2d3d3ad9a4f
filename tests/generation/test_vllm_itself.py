"""`VLLMGenerator` on vLLM itself and `OpenAIGenerator` on its server, on a CPU; see docs/scale.md."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from vllm_cases import GREEDY, MAX_LENGTH, PROMPTS, SAMPLED, TOO_LONG, flatten

from sense_trl.errors import InputError
from sense_trl.generation.openai_generator import OpenAIGenerator

pytestmark = pytest.mark.slow
SCRIPT = Path(__file__).with_name("vllm_script.py")
MAX_START_S = 1_200


@pytest.fixture(scope="module")
def python() -> str:
    """An interpreter with vLLM."""
    path = os.environ.get("SENSE_TRL_VLLM_PYTHON")
    if path is None:
        pytest.skip("$SENSE_TRL_VLLM_PYTHON names no interpreter with vLLM (see docs/scale.md)")
    return path


@pytest.fixture(scope="module")
def folder(python: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model, an adapter, and what the script found in one run of the engine."""
    folder = tmp_path_factory.mktemp("vllm")
    path = os.pathsep.join([str(SCRIPT.parents[2]), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [python, SCRIPT, folder],
        env={**os.environ, "PYTHONPATH": path.rstrip(os.pathsep)},
        capture_output=True,
        text=True,
        timeout=1_800,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


@pytest.fixture(scope="module")
def found(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "found.json").read_text())


@pytest.fixture(scope="module")
def url(python: str, folder: Path) -> Iterator[str]:
    """`vllm serve` with the model and, under another name, its adapter."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = folder / "server.log"
    command = [python, "-m", "vllm.entrypoints.cli.main", "serve", folder / "model"]
    command += ["--host", "127.0.0.1", "--port", port, "--served-model-name", "tiny"]
    command += ["--enable-lora", "--max-lora-rank", 8, "--lora-modules", f"sql={folder}/adapter"]
    command += ["--dtype", "float32", "--max-model-len", MAX_LENGTH, "--max-num-seqs", 16]
    command += ["--no-enable-chunked-prefill", "--max-num-batched-tokens", MAX_LENGTH]
    command += ["--enforce-eager", "--num-gpu-blocks-override", 128]
    settings = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
    with log.open("w") as output:
        server = subprocess.Popen(
            [str(word) for word in command],
            env={**os.environ, **settings, "VLLM_NO_USAGE_STATS": "1"},
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        address = f"http://127.0.0.1:{port}"
        started = time.monotonic()
        while not _is_healthy(address):
            assert server.poll() is None, log.read_text()[-3000:]
            assert time.monotonic() - started < MAX_START_S, log.read_text()[-3000:]
            time.sleep(1)
        yield f"{address}/v1"
    finally:
        # Its workers are processes of the same group.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(server.pid, signal.SIGKILL)
        server.wait()


def _is_healthy(address: str) -> bool:
    try:
        with urllib.request.urlopen(f"{address}/health", timeout=5) as answer:
            return answer.status == 200
    except OSError:
        return False


def test_greedy_answers_are_those_of_our_own_generator(found: dict[str, Any]) -> None:
    assert found["vllm"] == found["ours"]
    assert found["alone"] == found["ours"], "whatever is asked beside it"
    # Some end by themselves, with the end token counted, and some at the limit.
    assert {finished for ((_, _, finished),) in found["ours"]} == {True, False}


def test_prompts_are_read_as_ours_and_schemas_once(found: dict[str, Any]) -> None:
    assert found["prompts_vllm"] == found["prompts_ours"]
    assert min(found["cached"]) >= 128
    # Together they do not fit into one step.
    assert sum(map(len, found["prompts_ours"])) > MAX_LENGTH


def test_samples_come_again_and_differ(found: dict[str, Any]) -> None:
    first, second = found["sampled"]
    assert first == second
    assert all(len({text for text, _, _ in group}) > 1 for group in first)
    assert len({group[0][0] for group in first}) > 1


def test_what_is_refused_is_an_input_error_and_leaves_nothing_behind(found: dict[str, Any]) -> None:
    too_long, too_hot = found["refused"]
    assert "maximum" in too_long and "`max_model_len`" in too_long
    assert "temperature must be in" in too_hot
    assert found["after"] == found["ours"]


def test_an_adapter_writes_what_it_writes_merged(found: dict[str, Any]) -> None:
    assert found["adapter_vllm"] == found["adapter_ours"] != found["ours"]


def test_a_server_answers_and_counts_as_the_model_here(found: dict[str, Any], url: str) -> None:
    generator = OpenAIGenerator("tiny", url, concurrency=4)
    assert flatten(generator.generate(PROMPTS, GREEDY)) == found["ours"]
    usage = generator.usage
    assert usage.num_requests == len(PROMPTS) and usage.num_retries == 0
    assert usage.num_prompt_tokens == sum(map(len, found["prompts_ours"]))
    expected = [num_tokens for ((_, num_tokens, _),) in found["ours"]]
    assert usage.num_completion_tokens == sum(expected)
    assert usage.failures == {"length": sum(not end for ((_, _, end),) in found["ours"])}


def test_a_server_samples_by_seed_in_one_request_for_each_prompt(url: str) -> None:
    first, second = (OpenAIGenerator("tiny", url, concurrency=c) for c in (1, 8))
    groups = first.generate(PROMPTS, SAMPLED)
    assert second.generate(PROMPTS, SAMPLED) == groups
    assert first.usage.num_requests == len(PROMPTS)
    assert all(len({completion.text for completion in group}) > 1 for group in groups)


def test_an_adapter_is_served_by_its_name(found: dict[str, Any], url: str) -> None:
    generator = OpenAIGenerator("sql", url)
    assert flatten(generator.generate(PROMPTS, GREEDY)) == found["adapter_vllm"]


def test_what_a_server_refuses_says_why(url: str) -> None:
    with pytest.raises(InputError, match=r"`model` 'other' is not served"):
        OpenAIGenerator("other", url).generate(PROMPTS[:1], GREEDY)
    with pytest.raises(InputError, match=r"refuses prompt 1 \('Which\?'\).*maximum"):
        OpenAIGenerator("tiny", url).generate([PROMPTS[0], TOO_LONG], GREEDY)
