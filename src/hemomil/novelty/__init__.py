"""How unlike the cells of healthy donors: p-values."""
