"""What each cell is like, in numbers: shape, crops, RoI maps, vectors brought along."""
