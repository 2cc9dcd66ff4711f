"""Blood smears drawn from physics, with the truth of every cell."""
