"""Who was seen: manifests, images, cells and features read and checked, then divided into folds."""

from hemomil.cohort.border import cut_by_border, without_cut
from hemomil.cohort.cells import (
    KnownCells,
    assign,
    empty_samples,
    read_cells,
    read_known_cells,
    whole_image_cells,
)
from hemomil.cohort.choose import exclude, select, without_images
from hemomil.cohort.features import BroughtFeatures, read_features
from hemomil.cohort.folds import Folds, FoldUnit, fold_units, folds_by_group, make_folds, place_unseen
from hemomil.cohort.given import read_truth, write_cells_csv
from hemomil.cohort.images import check_images, image_size, read_image
from hemomil.cohort.manifest import read_manifest
from hemomil.cohort.problems import Problem, listing
from hemomil.cohort.summary import summary
from hemomil.cohort.tree import init_manifest
from hemomil.cohort.truth import match_truth

__all__ = [
    "BroughtFeatures",
    "FoldUnit",
    "Folds",
    "KnownCells",
    "Problem",
    "assign",
    "check_images",
    "cut_by_border",
    "empty_samples",
    "exclude",
    "fold_units",
    "folds_by_group",
    "image_size",
    "init_manifest",
    "listing",
    "make_folds",
    "match_truth",
    "place_unseen",
    "read_cells",
    "read_features",
    "read_image",
    "read_known_cells",
    "read_manifest",
    "read_truth",
    "select",
    "summary",
    "whole_image_cells",
    "without_cut",
    "without_images",
    "write_cells_csv",
]
