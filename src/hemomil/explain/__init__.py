"""Which cells made the diagnosis, and whether that explanation holds. No torch."""

from hemomil.explain.deletion import DeletionCheck, deletion_check

__all__ = ["DeletionCheck", "deletion_check"]
