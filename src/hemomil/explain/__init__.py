"""Why was it called so? Checks of per-cell explanations, and names for what is strange. No torch."""

from hemomil.explain.deletion import DeletionCheck, deletion_check
from hemomil.explain.strangeness import strangest_features

__all__ = ["DeletionCheck", "deletion_check", "strangest_features"]
