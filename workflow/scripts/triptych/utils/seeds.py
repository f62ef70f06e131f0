"""Random orders and seeds derived from names."""

import hashlib


def stable_order(seed: int, *parts: str) -> bytes:
    """Derive a sort key from `seed` and `parts` alone, so that an order does not depend on how items were listed."""
    return hashlib.sha256("\x1f".join([str(seed), *parts]).encode()).digest()


def derive_seed(seed: int, *parts: str) -> int:
    """Derive a 63-bit seed for the purpose named by `parts` (weights, data order, fold, ...)."""
    return int.from_bytes(stable_order(seed, *parts)[:8], "big") >> 1
