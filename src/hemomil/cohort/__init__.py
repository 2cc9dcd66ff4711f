"""Who: manifests, images, known cells, folds. No torch."""
