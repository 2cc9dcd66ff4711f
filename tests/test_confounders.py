"""What a sample gives away without its cells: facts, classifiers on the folds of a study, and notices."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from sklearn.impute import SimpleImputer

from hemomil import commands
from hemomil.cohort import BroughtFeatures
from hemomil.commands import confounders as facts_of
from hemomil.commands.confounders import BACKGROUND, covered, gather_facts
from hemomil.commands.console import SILENT
from hemomil.commands.run_folder import RunFolder
from hemomil.commands.source import Source, load_source
from hemomil.describe import SHAPE_NAMES, StoreWriter
from hemomil.describe import segment as describe_segment
from hemomil.lit import BLACK, is_lit
from hemomil.stats import study_metrics
from hemomil.stats.confounders import PERMUTED, confounder_notices, confounder_predictions, dealt_labels
from hemomil.types import Cells, Cohort, ImageRow, Sample

TWO, FOUR = ("control", "scd"), ("control", "hs", "scd", "thal")


def study_of(classes=TWO, patients=80, samples=2, runs=1, seed=0):
    """Labels by patient, splits of three folds by patient, and facts that are noise."""
    rng = np.random.default_rng(seed)
    label = np.array(classes, dtype=object)[np.arange(patients) % len(classes)]
    names = [f"p{p:03d}_{s}" for p in range(patients) for s in range(samples)]
    parts = [
        pd.DataFrame(
            {
                "sample": names,
                "patient": [name[:4] for name in names],
                "fold": np.repeat(rng.permutation(patients) % 3, samples),
                "run": run,
            }
        )
        for run in range(runs)
    ]
    labels = dict(zip(names, np.repeat(label, samples), strict=True))
    noise = rng.normal(size=(len(names), 3))
    columns = pd.MultiIndex.from_tuples([("mean colour", c) for c in ("red", "green", "blue")])
    return pd.DataFrame(noise, index=names, columns=columns), labels, pd.concat(parts, ignore_index=True)


def with_fact(facts, family, values):
    added = facts.copy()
    added[family, "value"] = values
    return added


def scored(table, classes=TWO, **how):
    return study_metrics(table, classes, control="control", seed=0, n_boot=200, **how)


def auroc(found, method):
    return found[method]["macro_auroc"]


@pytest.mark.parametrize("classes", [TWO, FOUR])
def test_a_leaking_fact_is_found_and_noise_and_permuted_labels_are_not(classes):
    facts, labels, splits = study_of(classes, runs=2)
    place = np.array([classes.index(labels[name]) for name in facts.index])
    leaking = with_fact(
        facts, "bag size", place + np.random.default_rng(1).normal(scale=0.1, size=len(place))
    )
    table = confounder_predictions(leaking, labels, splits, classes, seed=0)
    assert list(table["method"].unique()) == ["only mean colour", "only bag size", PERMUTED]
    found = scored(table, classes)
    assert auroc(found, "only bag size")["value"] > 0.97
    for name in ("only mean colour", PERMUTED):
        assert abs(auroc(found, name)["value"] - 0.5) < 0.1


def test_a_fact_that_sets_the_middle_apart_from_both_ends_is_found():
    facts, labels, splits = study_of()
    sick = np.array([labels[name] == "scd" for name in facts.index])
    spread = np.random.default_rng(1).normal(size=len(sick)) * np.where(sick, 3.0, 0.5)
    table = confounder_predictions(with_fact(facts, "bag size", spread), labels, splits, TWO, seed=0)
    assert auroc(scored(table), "only bag size")["value"] > 0.8


def test_permuted_labels_stay_at_chance_over_many_seeds():
    facts, labels, splits = study_of()
    sick = np.array([labels[name] == "scd" for name in facts.index], dtype=float)
    leaking = with_fact(facts, "bag size", sick)
    tables = [confounder_predictions(leaking, labels, splits, TWO, seed=seed) for seed in range(12)]
    found = [auroc(scored(table[table["method"] == PERMUTED]), PERMUTED) for table in tables]
    values = [told["value"] for told in found]
    assert len(set(values)) == 12  # each seed deals anew
    assert abs(np.mean(values) - 0.5) < 0.06
    assert sum(told["low"] < 0.5 < told["high"] for told in found) >= 10


def test_the_table_has_the_columns_of_samples_csv_and_each_sample_once_a_run():
    facts, labels, splits = study_of(FOUR, patients=12, runs=2)
    table = confounder_predictions(facts, labels, splits, FOUR, seed=0)
    prob = [f"prob_{name}" for name in FOUR]
    first = ["sample", "patient", "label", "fold", "run", "method", "predicted"]
    assert list(table) == [*first, *prob, "novelty_p"]
    assert (table.groupby(["method", "run"])["sample"].nunique() == len(facts)).all()
    assert len(table) == 2 * 2 * len(facts)
    np.testing.assert_allclose(table[prob].sum(axis=1), 1)
    assert (table["predicted"] == table[prob].idxmax(axis=1).str.removeprefix("prob_")).all()
    only = table[table["method"] == "only mean colour"]
    assert (only["label"] == only["sample"].map(labels)).all()
    told = only.merge(splits, on=["sample", "run"])
    assert (told["fold_x"] == told["fold_y"]).all()


def test_a_test_fold_is_predicted_without_its_own_facts_and_labels():
    facts, labels, splits = study_of()
    before = confounder_predictions(facts, labels, splits, TWO, seed=0)
    fold_0 = set(splits.loc[splits["fold"] == 0, "sample"])
    turned = {name: TWO[1 - TWO.index(label)] if name in fold_0 else label for name, label in labels.items()}
    after = confounder_predictions(facts, turned, splits, TWO, seed=0)
    same = (before["prob_scd"] == after["prob_scd"]) & (before["method"] != PERMUTED)
    known = before["method"] != PERMUTED
    assert set(before.loc[same, "sample"]) == fold_0
    assert same[known].sum() == len(fold_0)


def test_unknown_facts_and_samples_without_facts_do_not_stop_it():
    facts, labels, splits = study_of(patients=12)
    facts.iloc[::5, 0] = np.nan
    facts["background", "mean_red"] = np.nan
    table = confounder_predictions(facts.iloc[2:], labels, splits, TWO, seed=0)
    assert set(table["sample"]) == set(facts.index[2:])
    assert table["prob_scd"].notna().all()


def test_missing_facts_are_filled_with_the_median_of_the_training_fold_only():
    facts, labels, splits = study_of(patients=12)
    seen = []

    class Watched(SimpleImputer):
        def fit(self, values, y=None):
            seen.append(len(values))
            return super().fit(values, y)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("hemomil.stats.confounders.SimpleImputer", Watched)
        confounder_predictions(facts, labels, splits, TWO, seed=0)
    assert max(seen) < len(facts)


def test_a_class_that_is_missing_from_training_has_probability_0():
    facts, labels, splits = study_of(FOUR, patients=12)
    alone = splits["sample"].map(labels) == "thal"
    splits.loc[alone, "fold"] = 0
    table = confounder_predictions(facts, labels, splits, FOUR, seed=0)
    rows = table[(table["fold"] == 0) & (table["method"] != PERMUTED)]
    assert len(rows)
    assert (rows["prob_thal"] == 0).all()
    splits["fold"] = np.where(splits["sample"].map(labels) == "control", 0, 1)
    two = {name: "control" if label == "control" else "scd" for name, label in labels.items()}
    table = confounder_predictions(facts, two, splits, TWO, seed=0)
    rows = table[(table["fold"] == 0) & (table["method"] != PERMUTED)]
    assert (rows["prob_scd"] == 1).all()


def test_dealt_labels_come_by_patient():
    rng = np.random.default_rng(0)
    patients = [f"p{p}" for p in range(40) for _ in range(2)]
    pure = np.repeat(np.array(TWO * 20, dtype=object), 2)
    dealt = dealt_labels(pure, patients, rng)
    assert sorted(dealt) == sorted(pure)
    assert (dealt[::2] == dealt[1::2]).all()
    assert (dealt != pure).any()
    mixed = np.array(TWO * 40, dtype=object)  # every patient has one sample of each
    dealt = dealt_labels(mixed, patients, rng)
    assert (dealt[::2] != dealt[1::2]).all()
    assert 0.2 < (dealt == mixed).mean() < 0.8


def test_the_same_seed_deals_the_same_labels():
    facts, labels, splits = study_of(patients=12, runs=2)
    first, again, other = (
        confounder_predictions(facts, labels, splits, TWO, seed=seed) for seed in (0, 0, 1)
    )
    pd.testing.assert_frame_equal(first, again)
    assert not first["label"].equals(other["label"])
    runs = [part["label"].tolist() for _, part in first[first["method"] == PERMUTED].groupby("run")]
    assert runs[0] != runs[1]


# --- the judgement


def told(value, low, high):
    return {"macro_auroc": {"value": value, "low": low, "high": high, "n": 50}}


def kinds(confounder, model=(0.90, 0.85, 0.95), name="only bag size"):
    said = confounder_notices({"default": told(*model)}, {name: told(*confounder)}, "default")
    return [notice.kind for notice in said]


def test_a_confounder_at_half_of_the_gain_is_near():
    assert kinds((0.71, 0.66, 0.75)) == ["confounder"]
    assert kinds((0.69, 0.64, 0.74)) == ["confounder-visible"]
    assert kinds((0.54, 0.52, 0.56)) == []


def test_a_confounder_whose_interval_meets_the_models_is_near():
    assert kinds((0.60, 0.45, 0.75), model=(0.80, 0.70, 0.90)) == ["confounder"]
    assert kinds((0.60, 0.45, 0.69), model=(0.80, 0.70, 0.90)) == []
    assert kinds((0.49, 0.25, 0.75), model=(0.80, 0.70, 0.90)) == []


def test_nothing_is_said_of_what_cannot_be_estimated_and_no_nearness_where_nothing_is_learned():
    assert kinds((None, None, None)) == []
    assert kinds((0.55, 0.45, 0.65), model=(0.48, 0.40, 0.60)) == []
    assert kinds((0.70, 0.60, 0.80), model=(0.48, 0.40, 0.60)) == ["confounder-visible"]
    assert kinds((0.70, 0.60, 0.80), model=(None, None, None)) == ["confounder-visible"]


def test_permuted_labels_are_noted_only_above_chance():
    assert kinds((0.60, 0.52, 0.68), name=PERMUTED) == ["permuted-labels"]
    assert kinds((0.40, 0.32, 0.48), name=PERMUTED) == []
    assert kinds((0.55, 0.45, 0.68), name=PERMUTED) == []


def test_the_notice_gives_both_numbers_with_their_intervals():
    metrics = {"default": told(0.66, 0.60, 0.72)}
    (notice,) = confounder_notices(metrics, {"only bag size": told(0.61, 0.55, 0.67)}, "default")
    assert notice.subject == "bag size"
    assert notice.text == (
        "bag size alone reaches AUROC 0.61 [0.55, 0.67]; 'default' reaches 0.66 [0.60, 0.72]: "
        "what it learned may be that"
    )


# --- the facts of samples


def a_run(path):
    return RunFolder(path=path, command="study", settings=commands.resolve_settings(), inputs={})


@pytest.fixture
def drawn(tmp_path):
    """Two samples in the halves of one field, one of whole images of cells: known colours everywhere."""
    field = np.full((40, 60, 3), (200, 210, 220), np.uint8)
    field[:, 30:] = (180, 190, 170)
    field[5:15, 5:15], field[20:30, 40:50] = (90, 40, 50), (90, 40, 50)
    field[20:22, 40:42] = (10, 240, 10)  # in the box of the cell, not in its mask
    alone = np.zeros((20, 20, 3), np.uint8)
    alone[4:16, 4:16] = (120, 60, 80)
    alone[:4] = (8, 4, 0)
    Image.fromarray(field).save(tmp_path / "field.png")
    Image.fromarray(alone).save(tmp_path / "alone.png")
    half = {"image": "field.png", "path": tmp_path / "field.png"}
    rows = {
        "left": (ImageRow(row=2, region=(0, 0, 30, 40), site="A", **half),),
        "right": (ImageRow(row=3, region=(30, 0, 60, 40), site="B", **half),),
        "alone": (ImageRow(row=4, image="alone.png", path=tmp_path / "alone.png", kind="cell", site="B"),),
        "lost": (ImageRow(row=5, image="none.png", path=tmp_path / "none.png", site="C"),),
    }
    samples = tuple(Sample(sample=s, patient=f"p-{s}", label="control", images=i) for s, i in rows.items())
    mask = np.ones((10, 10), bool)
    mask[:2, :2] = False
    cells = Cells(
        cell_ids=("left/0", "right/0", "right/1", "alone/0"),
        samples=("left", "right", "right", "alone"),
        images=("field.png",) * 3 + ("alone.png",),
        boxes=np.array([[5, 5, 15, 15], [40, 20, 50, 30], [52.2, 33.5, 70, 50], [0, 0, 20, 20]], float),
        scores=np.ones(4),
        masks=(None, mask, None, None),
        cell_labels=(None,) * 4,
    )
    shape = np.zeros((4, len(SHAPE_NAMES)), np.float32)
    shape[:, SHAPE_NAMES.index("mean_red")] = (10, 20, 40, 50)
    with StoreWriter(tmp_path / "cells.zarr", cells, Cohort(samples=samples), ("shape",)) as writer:
        writer.write(slice(None), "shape", shape)
    return Source(cohort=Cohort(samples=samples), inputs={}), tmp_path


def test_facts_are_those_of_the_drawing(drawn):
    source, folder = drawn
    facts = gather_facts(source, folder / "cells.zarr", a_run(folder / "run"), SILENT, jobs=1)
    table = facts.table
    assert list(table.index) == ["left", "right", "alone"]
    assert facts.left_out == {}
    np.testing.assert_allclose(np.exp(table["bag size", "log cells"]), [1, 2, 1])
    np.testing.assert_allclose(table["mean colour", "red"], [10, 30, 50])
    np.testing.assert_allclose(table["site"][["A", "B"]], [[1, 0], [0, 1], [0, 1]])
    assert "C" not in table["site"]


def test_the_background_is_what_lies_outside_masks_and_boxes_and_in_the_region(drawn):
    source, folder = drawn
    table = gather_facts(source, folder / "cells.zarr", a_run(folder / "run"), SILENT, jobs=1).table
    np.testing.assert_allclose(table["background"].loc["left"], [200, 210, 220, 0, 0, 0])
    pixels = np.full((40, 30, 3), (180, 190, 170), float)
    pixels[20:22, 10:12] = (10, 240, 10)
    empty = np.ones((40, 30), bool)
    empty[20:30, 10:20] = False
    empty[20:22, 10:12] = True
    empty[33:, 22:] = False
    expected = np.concatenate([pixels[empty].mean(axis=0), pixels[empty].std(axis=0)])
    np.testing.assert_allclose(table["background"].loc["right"], expected)
    # an image of one cell: its black pixels
    black = np.zeros((400 - 144, 3))
    black[:80] = (8, 4, 0)
    expected = np.concatenate([black.mean(axis=0), black.std(axis=0)])
    np.testing.assert_allclose(table["background"].loc["alone"], expected)


def test_a_mask_that_leaves_the_image_is_cut(drawn):
    cells = pd.DataFrame({"x0": [-3.0], "y0": [-2.0], "x1": [4.0], "y1": [5.0], "mask_rle": [""]})
    inside = covered((10, 8), cells)
    assert inside[:5, :4].all()
    assert inside.sum() == 20
    assert not covered((10, 8), None).any()


def test_black_means_the_same_as_where_cells_are_described():
    assert facts_of.is_lit is describe_segment.is_lit


def test_a_pixel_is_lit_by_any_channel_that_is_brighter_than_black():
    image = np.random.default_rng(0).integers(0, 40, (30, 40, 3), dtype=np.uint8)
    image[0, :3] = [BLACK, BLACK, BLACK], [0, 0, BLACK + 1], [BLACK + 1, 0, 0]
    lit = is_lit(image)
    assert lit[0, :3].tolist() == [False, True, True]
    np.testing.assert_array_equal(lit, image.max(axis=2) > BLACK)


def test_a_run_that_goes_on_does_not_read_the_images_again(drawn, monkeypatch):
    source, folder = drawn
    run = a_run(folder / "run")
    first = gather_facts(source, folder / "cells.zarr", run, SILENT, jobs=1).table
    monkeypatch.setattr(facts_of, "read_image", None)
    again = gather_facts(source, folder / "cells.zarr", run, SILENT, jobs=1).table
    pd.testing.assert_frame_equal(first, again)
    with pytest.raises(TypeError):
        gather_facts(source, folder / "cells.zarr", a_run(folder / "other"), SILENT, jobs=1)


def test_what_cannot_be_known_is_left_out_with_the_reason(tmp_path):
    names = ("a", "b")
    samples = tuple(Sample(sample=s, patient=s, label="control", images=()) for s in names)
    ids = tuple(f"{s}/{i}" for s in names for i in range(3))
    cells = Cells(
        cell_ids=ids,
        samples=("a",) * 3 + ("b",) * 3,
        images=("",) * 6,
        boxes=np.full((6, 4), np.nan),
        scores=np.ones(6),
        masks=(None,) * 6,
        cell_labels=(None,) * 6,
    )
    with StoreWriter(tmp_path / "cells.zarr", cells, Cohort(samples=samples), ("embedding",)) as writer:
        writer.write(slice(None), "embedding", np.ones((6, 2)))
    cohort = Cohort(samples=samples)
    brought = BroughtFeatures(bags=[], cohort=cohort, names=(), cell_labels={})
    source = Source(cohort=cohort, inputs={}, brought=brought)
    facts = gather_facts(source, tmp_path / "cells.zarr", a_run(tmp_path / "run"), SILENT, jobs=1)
    assert facts.table.shape == (2, 0)
    splits = pd.DataFrame({"sample": names, "patient": names, "fold": [0, 1], "run": 0})
    nothing = confounder_predictions(facts.table, dict.fromkeys(names, "control"), splits, TWO, seed=0)
    assert len(nothing) == 0
    assert list(nothing)[-3:] == ["prob_control", "prob_scd", "novelty_p"]
    assert facts.left_out == {
        "bag size": "every sample has the same number of cells, 3",
        "mean colour": "features were brought along: there is no image",
        "site": "no site is named",
        "background": "features were brought along: there is no image",
    }


def test_a_store_without_shape_features_has_no_mean_colour(drawn):
    source, folder = drawn
    names = [s.sample for s in source.cohort.samples[:2]]
    cells = Cells(
        cell_ids=("left/0", "right/0"),
        samples=tuple(names),
        images=("field.png",) * 2,
        boxes=np.array([[5.0, 5, 15, 15], [40, 20, 50, 30]]),
        scores=np.ones(2),
        masks=(None,) * 2,
        cell_labels=(None,) * 2,
    )
    with StoreWriter(folder / "roi.zarr", cells, source.cohort, ("embedding",)) as writer:
        writer.write(slice(None), "embedding", np.ones((2, 3)))
    facts = gather_facts(source, folder / "roi.zarr", a_run(folder / "run"), SILENT, jobs=1)
    assert facts.left_out["mean colour"].startswith("the store holds no shape features")
    assert facts.table["background"].notna().all(axis=None)


def test_facts_of_a_study_are_the_same_with_two_processes(cohort, tmp_path):
    settings = commands.resolve_settings(flags={"study.runs": 1, "study.folds": 2, "mil.epochs": 1})
    source = load_source(cohort / "manifest.csv", settings, cells=cohort / "cells.csv")
    from hemomil.commands.cells import prepare

    run = a_run(tmp_path / "run")
    store = prepare(source, run, SILENT, jobs=1)
    one = gather_facts(source, store, run, SILENT, jobs=1)
    (run.work / "background.parquet").unlink()
    two = gather_facts(source, store, run, SILENT, jobs=2)
    pd.testing.assert_frame_equal(one.table, two.table)
    assert {"bag size", "mean colour", "site", "background"} == set(one.table.columns.get_level_values(0))
    assert list(one.table["background"]) == list(BACKGROUND)
    slide, cell = one.table["background"]["mean_green"], one.table["mean colour"]["green"]
    assert (slide > cell).all()  # cells absorb green


@pytest.mark.slow
def test_over_all_patients_of_nih_colour_tells_and_over_matched_ones_it_does_not(real_data: Path, tmp_path):
    settings = commands.resolve_settings()
    source = load_source(real_data / "nih_malaria" / "manifest.csv", settings)
    from hemomil.commands.cells import prepare
    from hemomil.commands.protocol import protocol

    run = a_run(tmp_path / "run")
    facts = gather_facts(source, prepare(source, run, SILENT, jobs=2), run, SILENT, jobs=2)
    labels = {s.sample: s.label for s in source.cohort.samples}
    splits = protocol(source.cohort, settings).splits
    table = confounder_predictions(facts.table, labels, splits, source.cohort.classes, seed=0)
    matched = {s.sample for s in source.cohort.samples if s.metadata["group"] == "infected"}
    everyone = auroc(scored(table, source.cohort.classes), "only mean colour")
    paired = auroc(scored(table[table["sample"].isin(matched)], source.cohort.classes), "only mean colour")
    assert everyone["low"] > 0.53
    assert abs(paired["value"] - 0.5) < 0.05
