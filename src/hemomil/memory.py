"""Memory that is free again goes back to the system: the C library keeps the holes that are left."""

import ctypes
import sys


def give_back_memory() -> None:
    """Let the C library return what is free.

    Nearly every image has tensors of sizes of their own, which left 20 MB more with every field, and the RoI
    maps of a training hundreds. It takes some hundredths of the time of an image.
    """
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # musl has none
        if trim is not None:
            trim(0)
