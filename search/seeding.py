"""One seed of a study becomes one independent stream for each use."""

import hashlib


def derive_seed(seed: int, *uses: str | int) -> int:
    """Return a seed of its own for one use.

    Args:
        seed: The seed of the study.
        uses: What it is for, such as `"trial", 17`.

    Returns:
        A number from 0 to 2**32 - 1; the same arguments give the same number on every machine.
    """
    text = "/".join(str(part) for part in (seed, *uses))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big")
