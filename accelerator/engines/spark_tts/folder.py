"""The names of the files that a converted Spark-TTS consists of, beside the graphs'."""

from __future__ import annotations

__all__ = ["DESCRIPTION", "LANGUAGE_MODEL", "MELS", "TOKENIZER", "VERSION"]

DESCRIPTION, MELS = "spark-tts.json", "mels.npz"
LANGUAGE_MODEL, TOKENIZER = "LLM", "tokenizer.json"  # a folder, and a file in it
VERSION = 1  # of the description; another one is refused
