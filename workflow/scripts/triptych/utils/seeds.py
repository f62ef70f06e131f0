"""Orders and seeds that follow from names alone."""

import hashlib


def stable_order(seed: int, *parts: str) -> bytes:
    """A sort key that depends on `seed` and `parts` alone, so an order never depends on where items came from."""
    return hashlib.sha256("\x1f".join([str(seed), *parts]).encode()).digest()


def derive_seed(seed: int, *parts: str) -> int:
    """A 63-bit seed of its own for every purpose named by `parts` (weights, data order, fold, ...)."""
    return int.from_bytes(stable_order(seed, *parts)[:8], "big") >> 1
