"""Tests: a room each as in `accelerator`, and those of the whole project beside them."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).parents[1]  # of the checkout
