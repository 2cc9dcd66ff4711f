"""Randomness with a name: no two uses share a stream, and none is global."""

import hashlib

import numpy as np


def stream_seed(seed: int, *names: str | int) -> int:
    """A 63-bit seed that depends on `seed` and on every name, in order."""
    text = "\x1f".join([str(seed), *map(str, names)])
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


def stream(seed: int, *names: str | int) -> np.random.Generator:
    """A NumPy generator of its own for this purpose: `stream(seed, "fold-0", "run-1")`."""
    return np.random.default_rng(stream_seed(seed, *names))
