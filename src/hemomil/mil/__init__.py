"""From a bag of cells to a diagnosis, with the weight of every cell."""
