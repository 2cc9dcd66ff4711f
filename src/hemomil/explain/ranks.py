"""Where a cell stands among the cells of its sample, and which cells of a run are looked at first."""

import pandas as pd


def with_ranks(cells: pd.DataFrame) -> pd.DataFrame:
    """The rows of cells.parquet with two more columns, both within the sample.

    `attention_percentile`: share of the sample's cells with less attention, ties counted half, 0 to 100.
    `rank`: by contribution to the predicted class, 1 for the highest; equal cells share the better rank.
    Both are missing where the score is.
    """
    attention = cells.groupby("sample")["attention"]
    counts = attention.transform("count")
    ranks = cells.groupby("sample")["contribution"].rank(method="min", ascending=False)
    return cells.assign(
        attention_percentile=100 * (attention.rank() - 0.5) / counts, rank=ranks.astype("Int64")
    )


def foremost(by_contribution: pd.DataFrame, by_anomaly: pd.DataFrame, top: int) -> pd.DataFrame:
    """The first `top` rows of each of two orders of the same cells, each cell once, the first order first.

    `chosen_by` says which of them a cell is of: `contribution`, `anomaly` or `contribution+anomaly`.
    """
    first, second = by_contribution.head(top), by_anomaly.head(top)
    both = first["cell_id"].isin(second["cell_id"]).map({True: "contribution+anomaly", False: "contribution"})
    rest = second[~second["cell_id"].isin(first["cell_id"])]
    return pd.concat([first.assign(chosen_by=both), rest.assign(chosen_by="anomaly")], ignore_index=True)
