"""Log-probabilities of the reference model, computed once per pair and kept in a Parquet file.

A pair is known by its tokens and by what computed it: the reference's weights and their type, its
config, and the options that enter the sum. The same file serves other runs, other orders of the
data and other adapters on the same base model. Differs from TRL's cache (1.16), which belongs to
one dataset fingerprint, misses when the adapter's rank changes, and fails with several processes on
a dataset in memory.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from accelerate.utils import gather_object, send_to_device
from datasets import load_from_disk

from sense_trl._files import replacing
from sense_trl.errors import InputError
from sense_trl.trainers.teachers.model_identity import describe_settings, get_weights_digest

logger = logging.getLogger(__name__)

_COLUMNS = ("key", "ref_chosen_logps", "ref_rejected_logps")
# So many batches of every process are computed between two savings.
_BATCHES_PER_SAVING = 64

Logps = tuple[float, float]
"""Summed log-probabilities of the chosen and the rejected answer, in nats."""


def add_reference_logps(trainer: Any, dataset: Any, batch_size: int) -> Any:
    """The dataset with the columns `ref_chosen_logps` and `ref_rejected_logps`.

    Pairs that the cache does not know are computed, distributed over the processes and ordered by
    prompt, so that a batch shares its prefixes; the cache is saved as they come.

    Args:
        trainer: a `SenseDPOTrainer`; its `compute_ref_log_probs`, `data_collator` and `args` are
            used.
        dataset: a `Dataset` with `prompt_ids`, `chosen_ids`, `rejected_ids`.
        batch_size: pairs per batch and process.

    Raises:
        InputError: the file of `args.reference_cache` is not such a cache.
    """
    accelerator = trainer.accelerator
    path = trainer.args.reference_cache
    known = {} if path is None else load_cache(path)
    rows = dataset.select_columns(["prompt_ids", "chosen_ids", "rejected_ids"])
    prefix = _get_reference_key(trainer)
    keys = [_get_pair_key(prefix, row) for row in rows]
    prompts = rows["prompt_ids"]
    missing = {key: index for index, key in enumerate(keys) if key not in known}
    order = sorted(missing.values(), key=lambda index: prompts[index])
    if path is not None:
        logger.info(
            "%d of %d pairs' references are in %s.", len(keys) - len(order), len(keys), path
        )
    batches = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
    num_processes = accelerator.num_processes
    step = _BATCHES_PER_SAVING * num_processes
    for start in range(0, len(batches), step):
        own = batches[start + accelerator.process_index : start + step : num_processes]
        computed = [pair for batch in own for pair in _compute(trainer, rows, keys, batch)]
        known |= dict(gather_object(computed))
        if path is not None and accelerator.is_main_process:
            save_cache(path, known)
    accelerator.wait_for_everyone()
    for column, name in enumerate(_COLUMNS[1:]):
        dataset = dataset.add_column(name, [known[key][column] for key in keys])
    return dataset


@contextlib.contextmanager
def shared_by_processes(trainer: Any, dataset: Any, name: str) -> Iterator[Any]:
    """A dataset that all processes read from the same files, within the block.

    TRL writes the log-probabilities beside the files of a dataset, and every process looks for them
    there. A dataset in memory has none, and each process a temporary folder of its own.

    Args:
        trainer: its `accelerator` and the `output_dir` of its `args` are used.
        dataset: yielded as it is where it has files, or is a stream.
        name: of the dataset, e.g. `"train"`.
    """
    accelerator = trainer.accelerator
    if accelerator.num_processes == 1 or not hasattr(dataset, "cache_files") or dataset.cache_files:
        yield dataset
        return
    folder = Path(trainer.args.output_dir) / f".references-of-{name}"
    if accelerator.is_main_process:
        dataset.save_to_disk(folder)
    accelerator.wait_for_everyone()
    yield load_from_disk(str(folder))
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        shutil.rmtree(folder, ignore_errors=True)


def take_reference_logps(dataset: Any, ready: Any) -> Any:
    """The dataset with the log-probabilities that another one with the same rows has."""
    if ready is dataset:
        return ready
    for column in _COLUMNS[1:]:
        dataset = dataset.add_column(column, list(ready[column]))
    return dataset


def load_cache(path: str | Path) -> dict[str, Logps]:
    """Read a cache file; empty where there is none yet.

    Raises:
        InputError: the file cannot be read or has other columns.
    """
    if not Path(path).exists():
        return {}
    try:
        table = pq.read_table(path, columns=list(_COLUMNS))
    except (OSError, pa.ArrowException) as error:
        raise InputError(
            f"`reference_cache` is {str(path)!r}, which is not a cache of reference "
            f"log-probabilities ({error}). Name another file, or delete this one."
        ) from error
    keys, chosen, rejected = (table.column(name).to_pylist() for name in _COLUMNS)
    return dict(zip(keys, zip(chosen, rejected, strict=True), strict=True))


def save_cache(path: str | Path, known: dict[str, Logps]) -> None:
    """Replace the file as a whole: an interrupted run leaves the former one."""
    chosen, rejected = ([pair[side] for pair in known.values()] for side in (0, 1))
    table = pa.table(
        {
            "key": list(known),
            "ref_chosen_logps": pa.array(chosen, pa.float32()),
            "ref_rejected_logps": pa.array(rejected, pa.float32()),
        }
    )
    with replacing(path, is_shared=True) as temporary:
        pq.write_table(table, temporary)


def _compute(trainer: Any, rows: Any, keys: list[str], batch: list[int]) -> list[tuple[str, Logps]]:
    model = trainer.model if trainer.ref_model is None else trainer.ref_model
    inputs = trainer.data_collator([rows[index] for index in batch])
    inputs = send_to_device(inputs, trainer.accelerator.device)
    chosen, rejected = trainer.compute_ref_log_probs(model, inputs)
    pairs = zip(chosen.tolist(), rejected.tolist(), strict=True)
    return list(zip([keys[index] for index in batch], pairs, strict=True))


# ------------------------------------------------------------------------------------ keys


def _get_reference_key(trainer: Any) -> str:
    """Names the function from tokens to log-probabilities: weights, settings, options."""
    args = trainer.args
    model = trainer.model if trainer.ref_model is None else trainer.ref_model
    model = trainer.accelerator.unwrap_model(model)
    adapters = getattr(model, "peft_config", {})
    # Adapters are switched off for the reference, but for one that TRL calls "ref".
    active = [adapter for adapter in adapters if adapter == "ref"]
    weights = []
    for name, parameter in model.named_parameters():
        is_off = any(f".{a}." in f"{name}." for a in adapters if a not in active)
        if not is_off:
            for part in ("base_model.model.", ".base_layer", ".original_module"):
                name = name.replace(part, "")
            weights.append((name, parameter))
    parts = {
        "options": [args.ld_alpha, args.bf16, args.fp16],
        "settings": describe_settings(model, adapters=active),
        "weights": get_weights_digest(weights),
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _get_pair_key(prefix: str, row: dict[str, list[int]]) -> str:
    tokens = [row["prompt_ids"], row["chosen_ids"], row["rejected_ids"]]
    return hashlib.sha256(f"{prefix} {tokens}".encode()).hexdigest()
