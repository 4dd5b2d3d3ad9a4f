"""Commands that make a GGUF file of a checkpoint, for the help and the model card."""

from typing import Final

GGUF_HELP: Final = """\
llama.cpp, Ollama and LM Studio read GGUF files. To make one, with a checkout of llama.cpp:

    python llama.cpp/convert_hf_to_gguf.py {folder} --outtype bf16 --outfile model.gguf
    llama-quantize model.gguf model-Q4_K_M.gguf Q4_K_M
"""
"""`{folder}` is the checkpoint's."""
