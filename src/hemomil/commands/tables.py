"""The tables of a run folder: samples.csv and cells.parquet, with the columns of the design."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from hemomil.explain import DeletionCurve
from hemomil.files import write_text, written_whole
from hemomil.novelty.jury import CellFlags, Jury
from hemomil.types import Bag, Prediction, Sample

CELL_COLUMNS = ("cell_id", "sample", "patient", "image", "x0", "y0", "x1", "y1")
SURENESS = ["anomaly_low", "anomaly_high", "verdict"]
DELETION_COLUMNS = {
    "sample": "object",
    "patient": "object",
    "label": "object",
    "fold": "Int64",
    "run": "Int64",
    "method": "object",
    "predicted": "object",
    "k": "int64",
    "probability": "float64",
    "without_top": "float64",
    "without_random": "float64",
}


def sample_rows(
    bags: Sequence[Bag],
    predictions: Sequence[Prediction],
    flags: Sequence[CellFlags],
    jury: Jury,
    *,
    method: str,
    run: int | None,
    fold: int | None,
) -> pd.DataFrame:
    """One row per sample; `fold` and `run` are blank outside a study."""
    rows = [
        {
            "sample": bag.sample,
            "patient": bag.patient,
            "label": bag.label,
            "fold": fold,
            "run": run,
            "method": method,
            "predicted": said.predicted,
            **_probabilities(said.classes, said.probabilities),
            "novelty_p": jury.sample_p(of_cells),
            "novelty_floor": jury.floor,
            "abnormal_low": jury.abnormal_low(of_cells),
            **(_in_sets(jury, said.probabilities) if jury.sets is not None else {}),
        }
        for bag, said, of_cells in zip(bags, predictions, flags, strict=True)
    ]
    return pd.DataFrame(rows).astype({"fold": "Int64", "run": "Int64"})


def blank_rows(
    samples: Sequence[Sample], classes: Sequence[str], *, method: str, run: int | None, fold: int | None
) -> pd.DataFrame:
    """Rows of samples in which no cell was found: there, but with nothing predicted."""
    rows = [
        {
            "sample": sample.sample,
            "patient": sample.patient,
            "label": sample.label,
            "fold": fold,
            "run": run,
            "method": method,
            "predicted": None,
            **_probabilities(classes, np.full(len(classes), np.nan)),
            "novelty_p": np.nan,
            "novelty_floor": np.nan,
            "abnormal_low": np.nan,
        }
        for sample in samples
    ]
    return pd.DataFrame(rows).astype({"fold": "Int64", "run": "Int64"}) if rows else pd.DataFrame()


def cell_rows(
    bags: Sequence[Bag],
    predictions: Sequence[Prediction],
    flags: Sequence[CellFlags],
    obs: pd.DataFrame,
    *,
    method: str,
    run: int | None,
    fold: int | None,
) -> pd.DataFrame:
    """One row per cell of the bags; `obs` is the store's table of cells, by cell_id."""
    tables = [_cells_of(*of_bag) for of_bag in zip(bags, predictions, flags, strict=True)]
    scores = pd.concat(tables, ignore_index=True)
    known = obs.loc[scores["cell_id"]].reset_index(drop=True)
    told = known.reindex(columns=["patient", "image", "x0", "y0", "x1", "y1"])
    table = pd.concat(
        [scores[["cell_id", "sample"]], told, scores.drop(columns=["cell_id", "sample"])], axis=1
    )
    if "cell_label" in known:
        table["cell_label"] = known["cell_label"]
    table["label"] = [bag.label for bag in bags for _ in bag.cell_ids]
    table = table.assign(
        method=method, run=pd.array([run] * len(table), "Int64"), fold=pd.array([fold] * len(table), "Int64")
    )
    # after the columns of the design
    return table[[*table.columns.drop(SURENESS), *SURENESS]]


def deletion_rows(
    bags: Sequence[Bag],
    predictions: Sequence[Prediction],
    curves: Sequence[DeletionCurve],
    *,
    method: str,
    run: int,
    fold: int,
) -> pd.DataFrame:
    """One row per sample and number of cells taken out (k); none of a bag of one."""
    rows = [
        (bag.sample, bag.patient, bag.label, fold, run, method, said.predicted, k, curve.probability, *points)
        for bag, said, curve in zip(bags, predictions, curves, strict=True)
        for k, *points in zip(curve.k, curve.without_top, curve.without_random, strict=True)
    ]
    return pd.DataFrame(rows, columns=list(DELETION_COLUMNS)).astype(DELETION_COLUMNS)


def _cells_of(bag: Bag, said: Prediction, flags: CellFlags) -> pd.DataFrame:
    low, high = flags.interval
    columns: Mapping[str, object] = {
        "cell_id": said.cell_ids,
        "sample": bag.sample,
        "attention": said.attention,
        "anomaly": said.anomaly,
        "weight": said.weight,
        "contribution": said.contribution,
        "anomaly_p": flags.p,
        "anomaly_q": flags.q,
        "anomaly_low": low,
        "anomaly_high": high,
        "verdict": flags.verdict,
        **_probabilities(said.classes, said.cell_probabilities),
    }
    return pd.DataFrame(columns)


def _in_sets(jury: Jury, probabilities: np.ndarray) -> dict[str, object]:
    """What conformal sets say of a sample."""
    return {
        "conformal_set": jury.conformal_set(probabilities),
        "healthy_like": jury.healthy_like(probabilities),
    }


def _probabilities(classes: Sequence[str], values: np.ndarray) -> dict[str, object]:
    """`prob_<class>` columns of one row (values K) or of many (values N K)."""
    return {f"prob_{name}": values.T[k] for k, name in enumerate(classes)}


def write_table(path: Path, table: pd.DataFrame) -> None:
    """A table as CSV, whole or not at all."""
    write_text(path, table.to_csv(index=False))


def write_cells(path: Path, table: pd.DataFrame) -> None:
    """cells.parquet, whole or not at all."""
    with written_whole(path) as part:
        table.to_parquet(part, index=False)
