"""Randomness as a function of (seed, purpose, step): nothing to save, nothing to restore. No Lightning here."""

from __future__ import annotations

import hashlib

import torch


def seed_torch(seed: int, *purpose: str | int) -> None:
    """Seeds torch's default generators from SHA-256 of (seed, purpose): counter-based, so nothing needs saving.

    Not `torch.manual_seed`: where there is no accelerator it formats three stack traces a call, 0.5 ms of every step.
    """
    digest = hashlib.sha256(repr((seed, *purpose)).encode()).digest()
    number = int.from_bytes(digest[:8], "little") >> 1
    torch.default_generator.manual_seed(number)
    if torch.cuda.is_available():
        torch.cuda.manual_seed_all(number)
