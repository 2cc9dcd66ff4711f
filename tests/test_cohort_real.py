"""The real cohorts are read whole, as their description counts them."""

import numpy as np

from hemomil.cohort import (
    check_images,
    exclude,
    fold_units,
    make_folds,
    match_truth,
    read_cells,
    read_features,
    read_known_cells,
    read_manifest,
    read_truth,
    select,
    summary,
    whole_image_cells,
    write_cells_csv,
)


def test_single_cells_of_patients(real_data):
    cohort = read_manifest(real_data / "nih_malaria" / "manifest.csv")
    cells = whole_image_cells(cohort)
    table = summary(cohort, cells)
    assert table["samples"].to_dict() == {"control": 168, "infected": 100, "all": 268}
    assert table.loc["all", ["patients", "images", "cells"]].tolist() == [134, 8040, 8040]
    assert (table["fewest"] == 30).all()
    matched = select(cohort, "group=infected")
    assert len(matched.samples) == 200
    fold = make_folds(fold_units(cohort), 3, seed=0).fold
    assert np.bincount(fold).min() >= 85


def test_quadrants_of_fields(real_data, tmp_path):
    folder = real_data / "iml_malaria"
    cohort = read_manifest(folder / "manifest.csv")
    assert check_images(cohort) == []
    known = read_known_cells(folder / "cells.csv", cohort)
    assert len(known.cells) == 22731
    assert [n.kind for n in known.notices] == ["cells-in-no-region"]
    assert len(known.cells) + 310 == 23041
    from_coco = read_cells(folder / "coco.json", cohort)
    assert (from_coco.cell_ids, from_coco.images) == (known.cells.cell_ids, known.cells.images)
    assert np.array_equal(from_coco.boxes, known.cells.boxes)
    labels = match_truth(known.cells, read_truth(folder / "cells.csv"))
    assert np.mean([a == b for a, b in zip(labels, known.cells.cell_labels, strict=True)]) > 0.999
    write_cells_csv(tmp_path / "cells.csv", known.cells)
    assert read_cells(tmp_path / "cells.csv", cohort).cell_ids == known.cells.cell_ids


def test_bags_composed_of_cells_of_one_run(real_data):
    folder = real_data / "chula_rbc12"
    cohort = read_manifest(folder / "manifest.csv")
    assert len(read_cells(folder / "cells.csv", cohort)) == 12211
    seen = exclude(cohort, "unseen=1")
    assert len(seen.samples) == 49 + 44 + 57 + 31 + 53
    known = read_known_cells(folder / "cells.csv", seen)
    assert {n.kind for n in known.notices} <= {"cells-of-other-images", "cells-of-other-samples"}
    folds = [tuple(make_folds(fold_units(seen), 3, seed=0, run=run).fold) for run in range(5)]
    assert len(set(folds)) > 1


def test_the_classic_bags(real_data):
    brought = read_features(real_data / "mil_classic" / "musk1.h5ad", control="negative")
    assert len(brought.bags) == 92
    assert brought.bags[0].features.shape[1] == len(brought.names) == 166
    assert make_folds(fold_units(brought.cohort), 10, seed=0).notices == ()
