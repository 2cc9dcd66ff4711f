"""Memory that is free again goes back to the system."""

import os
import sys
from pathlib import Path

import numpy as np
import pytest

from hemomil.memory import give_back_memory

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


def resident() -> int:
    """Bytes of memory that this process holds."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def test_holes_between_what_stays_are_given_back():
    blocks = [np.ones(100_000, np.uint8) for _ in range(2000)]
    stay = [*blocks[::100], blocks[-1]]
    del blocks
    before = resident()
    give_back_memory()
    assert before - resident() > 100e6
    assert all(block.all() for block in stay)
