"""Simulated cohorts: files that agree with each other, reproducible, and silent about the truth."""

import hashlib
import json
from itertools import pairwise

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from pycocotools.coco import COCO
from scipy import stats

from hemomil.errors import RunFolderError
from hemomil.simulate import CELL_CLASSES, SimulateSettings, simulate
from hemomil.simulate.coco import RED_CELL
from hemomil.simulate.patients import HALLMARKS, draw_patient

SMALL = SimulateSettings(
    patients={"control": 2, "scd": 2, "hs": 1},
    samples=2,
    images=2,
    size=(144, 192),
    diameter=28,
    artefacts=2,
    platelets=3,
    white_cells=0.5,
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    output = tmp_path_factory.mktemp("simulated") / "cohort"
    simulate(output, SMALL)
    return output


def digests(folder):
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def manifest(folder):
    return pd.read_csv(folder / "manifest.csv", dtype=str)


def test_the_manifest_has_a_row_per_image_and_the_columns_of_the_design(folder):
    table = manifest(folder)
    assert list(table.columns) == ["image", "sample", "patient", "label", "kind", "site"]
    assert len(table) == 5 * 2 * 2
    assert table.image.is_unique
    assert all((folder / image).is_file() for image in table.image)
    assert table.groupby("sample").patient.nunique().eq(1).all()
    assert table.groupby("patient").label.nunique().eq(1).all()
    assert set(table.label) == {"control", "scd", "hs"}


def test_the_cohort_room_reads_what_was_written(folder):
    cohort = pytest.importorskip("hemomil.cohort")
    read = cohort.read_manifest(folder / "manifest.csv")
    assert read.classes == ("control", "hs", "scd")
    cells = cohort.read_cells(folder / "cells.csv", read)
    assert len(cells) == len(pd.read_csv(folder / "cells.csv"))


def test_the_same_seed_gives_the_same_bytes(folder, tmp_path):
    simulate(tmp_path / "again", SMALL)
    assert digests(tmp_path / "again") == digests(folder)


def test_another_seed_gives_other_images(folder, tmp_path):
    simulate(tmp_path / "other", SMALL.model_copy(update={"seed": 1, "patients": {"hs": 1}}))
    assert not set(digests(tmp_path / "other").values()) & set(digests(folder).values())


def test_no_two_images_lay_their_cells_alike(tmp_path):
    alike = {"patients": {"hs": 2}, "cells": (12, 12), "jpeg_quality": None}
    simulate(tmp_path / "out", SMALL.model_copy(update=alike))
    cells = pd.read_csv(tmp_path / "out" / "cells.csv")
    boxes = [set(map(tuple, rows[["x0", "y0", "x1", "y1"]].to_numpy())) for _, rows in cells.groupby("image")]
    assert all(len(a & b) <= 2 for i, a in enumerate(boxes) for b in boxes[:i])


def test_a_patient_does_not_depend_on_the_other_patients(folder, tmp_path):
    simulate(tmp_path / "fewer", SMALL.model_copy(update={"patients": {"scd": 1, "control": 1}}))
    fewer, all_ = digests(tmp_path / "fewer"), digests(folder)
    pictures = [name for name in fewer if name.startswith(("images/", "masks/"))]
    assert len(pictures) == 2 * 2 * 2 * 2
    assert all(fewer[name] == all_[name] for name in pictures)


def test_more_samples_and_images_leave_the_earlier_ones_as_they_were(folder, tmp_path):
    more = {"patients": {"hs": 1}, "samples": {"hs": 3}, "images": 3}
    simulate(tmp_path / "more", SMALL.model_copy(update=more))
    before, after = digests(folder), digests(tmp_path / "more")
    shared = {name for name in before if name.startswith("images/")} & set(after)
    assert len(shared) == 4
    assert all(before[name] == after[name] for name in shared)


def test_classes_may_differ_in_samples_per_patient(tmp_path):
    settings = SMALL.model_dump() | {"samples": {"control": 1, "scd": 3, "hs": 2}, "images": 1}
    simulate(tmp_path / "cohort", SimulateSettings.model_validate(settings))
    per_patient = manifest(tmp_path / "cohort").groupby(["label", "patient"]).size()
    counts = {label: set(numbers) for label, numbers in per_patient.groupby("label")}
    assert counts == {"control": {1}, "scd": {3}, "hs": {2}}


def test_samples_are_asked_for_of_every_class_or_of_each():
    assert SimulateSettings(samples=5).samples["thal"] == 5
    with pytest.raises(ValueError, match="each class of patients"):
        SimulateSettings(samples={"control": 2})


def test_file_names_and_row_order_tell_nothing_of_the_truth(folder):
    table = manifest(folder)
    secrets = (*CELL_CLASSES, *HALLMARKS, "patient")
    assert not any(secret in name for name in table.image for secret in secrets)
    ids = table.drop_duplicates("patient").patient.tolist()
    assert ids == sorted(ids)
    many = [draw_patient(SMALL, label, i) for label in ("control", "scd") for i in range(100)]
    first, second = ([p.patient for p in many if p.label == label] for label in ("control", "scd"))
    assert len({*first, *second}) == 200
    assert stats.mannwhitneyu([int(i[1:], 16) for i in first], [int(i[1:], 16) for i in second]).pvalue > 0.01


# pycocotools decodes with numpy 1's copy keyword
@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
def test_masks_boxes_and_classes_agree_between_files(folder):
    cells = pd.read_csv(folder / "cells.csv")
    coco = quiet_coco(folder / "coco.json")
    ids = {image["file_name"]: image["id"] for image in coco.loadImgs(coco.getImgIds())}
    (red,) = coco.getCatIds(catNms=[RED_CELL])
    for image, rows in cells.groupby("image"):
        label_image = np.asarray(Image.open(folder / "masks" / f"{image[7:-4]}.png"))
        assert label_image.dtype == np.uint16
        annotations = coco.loadAnns(coco.getAnnIds(imgIds=[ids[image]], catIds=[red]))
        assert [a["attributes"]["cell_label"] for a in annotations] == rows.cell_label.tolist()
        whole = [coco.annToMask(a).astype(bool) for a in annotations]
        for i, (row, mask, a) in enumerate(zip(rows.itertuples(), whole, annotations, strict=True)):
            ys, xs = np.nonzero(mask)
            assert (xs.min(), ys.min(), xs.max() + 1, ys.max() + 1) == (row.x0, row.y0, row.x1, row.y1)
            assert a["bbox"] == [row.x0, row.y0, row.x1 - row.x0, row.y1 - row.y0]
            assert a["area"] == mask.sum()
            # the label image shows the cell except where a later one lies over it
            later = np.logical_or.reduce([np.zeros_like(mask), *whole[i + 1 :]])
            np.testing.assert_array_equal(label_image == i + 1, mask & ~later)


def quiet_coco(path):
    coco = COCO()
    coco.dataset = json.loads(path.read_text())
    coco.createIndex()
    return coco


def test_other_things_are_in_coco_under_their_own_names_and_not_among_the_cells(folder):
    document = json.loads((folder / "coco.json").read_text())
    names = {c["id"]: c["name"] for c in document["categories"]}
    found = [names[a["category_id"]] for a in document["annotations"]]
    assert set(found) == {RED_CELL, "platelet", "white_cell", "artefact"}
    cells = pd.read_csv(folder / "cells.csv")
    assert found.count(RED_CELL) == len(cells)
    assert set(cells.cell_label) <= {*CELL_CLASSES} - {"discocyte"} | {"control"}


def test_the_record_repeats_the_cohort(folder):
    record = json.loads((folder / "simulation.json").read_text())
    assert SimulateSettings(**record["settings"]) == SMALL
    assert set(record["patients"]) == set(manifest(folder).patient)


def test_hallmark_cells_come_at_the_stated_prevalence(tmp_path):
    """Per patient, the count of hallmark cells is binomial with the share in simulation.json."""
    settings = SMALL.model_copy(
        update={"patients": {"scd": 1, "thal": 1, "xero": 1, "hs": 1}, "cells": (40, 45), "diameter": 14.0}
    )
    simulate(tmp_path / "out", settings)
    truth = pd.read_csv(tmp_path / "out" / "cells.csv").merge(manifest(tmp_path / "out"), on="image")
    people = json.loads((tmp_path / "out" / "simulation.json").read_text())["patients"]
    for patient, cells in truth.groupby("patient"):
        hallmarks = list(HALLMARKS[people[patient]["label"]])
        expected = sum(people[patient]["mix"][name] for name in hallmarks)
        seen = int(cells.cell_label.isin(hallmarks).sum())
        assert stats.binomtest(seen, len(cells), expected).pvalue > 1e-3, patient


def test_prevalence_varies_between_patients_about_its_mean():
    people = [draw_patient(SimulateSettings(), "hs", i) for i in range(300)]
    shares = np.array([p.prevalence for p in people])
    mean, spread = SimulateSettings().prevalence["hs"], SimulateSettings().spread
    assert shares.mean() == pytest.approx(mean, abs=0.03)
    assert shares.std() == pytest.approx(np.sqrt(mean * (1 - mean) / (spread + 1)), rel=0.2)


def test_controls_are_mostly_normal_but_not_wholly():
    people = [draw_patient(SimulateSettings(), "control", i) for i in range(200)]
    normal = np.array([p.mix["discocyte"] for p in people])
    assert 0.9 < normal.mean() < 0.99
    assert normal.min() > 0.6


def test_the_mix_of_every_patient_sums_to_one():
    for label in HALLMARKS:
        assert sum(draw_patient(SMALL, label, 0).mix.values()) == pytest.approx(1)


def test_sites_differ_more_than_patients_of_one_site():
    people = [draw_patient(SimulateSettings(), "control", i) for i in range(60)]
    greens = pd.DataFrame([(p.site.name, p.stain.hemoglobin[1]) for p in people], columns=["site", "green"])
    assert greens.site.nunique() == 3
    assert greens.groupby("site").green.mean().std() > greens.groupby("site").green.std().mean()


@pytest.mark.parametrize("label", HALLMARKS)
def test_every_class_has_patients_of_every_site_in_turn(label):
    sites = [draw_patient(SimulateSettings(), label, i).site.name for i in range(6)]
    assert pd.Series(sites).value_counts().tolist() == [2, 2, 2]


def test_progress_counts_every_image(tmp_path):
    told = []
    simulate(
        tmp_path / "out",
        SMALL.model_copy(update={"patients": {"control": 1}}),
        lambda done, total: told.append((done, total)),
    )
    assert told == [(i + 1, 4) for i in range(4)]
    assert all(b[0] - a[0] == 1 for a, b in pairwise(told))


def test_a_folder_that_holds_something_is_refused(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(RunFolderError, match="not empty"):
        simulate(tmp_path, SMALL)
    assert [p.name for p in tmp_path.iterdir()] == ["notes.txt"]


def test_an_empty_folder_is_filled_and_png_is_lossless(tmp_path):
    (tmp_path / "out").mkdir()
    simulate(tmp_path / "out", SMALL.model_copy(update={"patients": {"hs": 1}, "jpeg_quality": None}))
    assert manifest(tmp_path / "out").image.str.endswith(".png").all()


def test_a_broken_run_leaves_nothing_behind(tmp_path):
    def give_up(done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        simulate(tmp_path / "out", SMALL, give_up)
    assert list(tmp_path.iterdir()) == []


def test_the_demo_cohort_has_enough_patients_for_three_folds():
    assert min(SimulateSettings.demo(seed=4).patients.values()) >= 3
    assert SimulateSettings.demo(seed=4).seed == 4
