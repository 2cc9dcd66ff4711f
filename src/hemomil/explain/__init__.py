"""Which cells made the diagnosis, and whether that explanation holds."""
