"""Which cells made the diagnosis, and whether that explanation holds. No torch."""

from hemomil.explain.deletion import DELETED, DeletionCheck, DeletionCurve, deletion_check, deletion_curve

__all__ = ["DELETED", "DeletionCheck", "DeletionCurve", "deletion_check", "deletion_curve"]
