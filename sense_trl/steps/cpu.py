"""Settings of a process that make it fast on a few CPU cores."""

from __future__ import annotations

import ctypes
import os
import sys

# glibc's malloc.h
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX = -1, -2, -4


def wait_without_spinning() -> None:
    """Let OpenMP threads sleep at barriers; takes effect if torch is not imported yet.

    By default they spin, which on two cores with anything else running made a training step of
    SmolLM2-135M up to 20 times slower; sleeping costs about 5 % on an idle machine. A setting of
    the user wins.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def keep_freed_memory() -> None:
    """Have the C library keep large freed blocks instead of returning them to the system.

    Every forward pass allocates and frees hundreds of megabytes. Returned each time, they come back
    as pages that the kernel has to clear: a quarter of the time of a training step on two cores (8
    steps of SmolLM2-135M: 60 s to 44 s), at the same peak memory. Only glibc has these settings;
    elsewhere nothing happens.
    """
    if not sys.platform.startswith("linux"):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_MAX, 0)
        mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)
        mallopt(_M_TOP_PAD, 2**28)


def fastest_sampling_dtype() -> str:
    """Type of the weights with which this machine samples fastest, for `TransformersGenerator`.

    A GPU: the checkpoint's own. A CPU that multiplies bfloat16 in hardware (AVX512-BF16, AMX):
    bfloat16, twice as fast as float32 in batches of 64. Any other CPU: float32.

    Not for evaluation: rounding weights to 8 bits of mantissa can undo what little a short training
    has changed.
    """
    import torch

    if torch.cuda.is_available():
        return "auto"
    return "bfloat16" if multiplies_bfloat16() else "float32"


def multiplies_bfloat16() -> bool:
    """Whether matrices of bfloat16 are multiplied in hardware here, on the GPU if there is one.

    On a CPU without such instructions torch multiplies them number by number on one core: a
    training step of SmolLM2-135M took 70 s instead of some 10.
    """
    import torch

    if torch.cuda.is_available():
        return bool(torch.cuda.is_bf16_supported())
    get_capabilities = getattr(torch.cpu, "get_capabilities", dict)
    found: dict[str, object] = get_capabilities()
    return bool(found.get("avx512_bf16") or found.get("amx_bf16"))
