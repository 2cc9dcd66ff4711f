"""Choose what a page can show of a large run, and say how it was chosen."""

from collections.abc import Sequence

import pandas as pd

from hemomil.report.settings import ReportSettings
from hemomil.report.tables import RunTables


def choose_samples(tables: RunTables, settings: ReportSettings) -> pd.DataFrame:
    """The samples shown with their images: rows of `tables.samples` plus `why`, in the order shown.

    Turns are taken over the classes and over the reasons, so that each is there; small runs are shown whole.
    """
    samples = tables.samples
    if len(samples) <= settings.samples:
        return in_class_order(samples.assign(why=""), tables.classes)
    turns = pd.concat([_ranked(part, why, by, up) for part, why, by, up in _reasons(samples)])
    turns = turns.sort_values(["turn", "order", "group", "sample"]).drop_duplicates("sample")
    shown = turns.head(settings.samples)
    chosen = samples.loc[shown.index].assign(why=shown["why"])
    return in_class_order(chosen, tables.classes)


def in_class_order(samples: pd.DataFrame, classes: Sequence[str]) -> pd.DataFrame:
    """By known class, the healthy one first, then by predicted class and name."""
    place = {name: i for i, name in enumerate(classes)}
    order = samples.assign(_known=samples["label"].map(place), _read=samples["predicted"].map(place))
    order = order.sort_values(["_known", "_read", "sample"], na_position="last", kind="stable")
    return order.drop(columns=["_known", "_read"])


def how_chosen(tables: RunTables, settings: ReportSettings) -> str:
    """One sentence that says which samples the page shows."""
    total = len(tables.samples)
    if total <= settings.samples:
        return f"All {total} samples of this run are shown."
    kinds = "the most confidently right, the most confidently wrong and the strangest"
    if not tables.labelled:
        kinds = "the most certain, the least certain and the strangest"
    return (
        f"{settings.samples} of {total} samples are shown with their images, chosen in turn over the "
        f"classes: {kinds}. The table further down lists all of them; hemomil view opens each."
    )


def strangest(cells: pd.DataFrame, count: int, per_sample: int | None = None) -> pd.DataFrame:
    """The `count` cells farthest from the healthy reference, at most `per_sample` of one sample."""
    # p-values compare across folds, whose models each have their own scale; the distance breaks ties
    ranked = cells[cells["anomaly"].notna()].sort_values(
        ["anomaly_p", "anomaly", "cell_id"], ascending=[True, False, True], na_position="last"
    )
    if per_sample is not None:
        ranked = ranked[ranked.groupby("sample").cumcount() < per_sample]
    return ranked.head(count)


def most_typical(cells: pd.DataFrame, count: int, per_sample: int) -> pd.DataFrame:
    """The `count` cells nearest to the healthy reference, at most `per_sample` of one sample."""
    ranked = cells[cells["anomaly"].notna()].sort_values(
        ["anomaly_p", "anomaly", "cell_id"], ascending=[False, True, True], na_position="last"
    )
    return ranked[ranked.groupby("sample").cumcount() < per_sample].head(count)


def _reasons(samples: pd.DataFrame) -> list[tuple[pd.DataFrame, str, str, bool]]:
    """(samples, why, column, ascending) for each reason to show a sample."""
    samples = samples[samples["predicted"] != ""]
    known = samples[samples["label"] != ""]
    if known.empty:
        sure = [(samples, "most certain of its class", "probability", False)]
        unsure = [(samples, "least certain of its class", "probability", True)]
    else:
        right = known["predicted"] == known["label"]
        sure = [(known[right], "confidently right", "probability", False)]
        unsure = [(known[~right], "confidently wrong", "probability", False)]
    return [*sure, *unsure, (samples, "strangest of its class", "strange", False)]


def _ranked(part: pd.DataFrame, why: str, by: str, ascending: bool) -> pd.DataFrame:
    """`part` with the turn in which each sample comes, within its class."""
    ranked = part.sort_values([by, "sample"], ascending=[ascending, True], na_position="last")
    group = ranked["label"].where(ranked["label"] != "", ranked["predicted"])
    turn = group.groupby(group).cumcount()
    return ranked[["sample"]].assign(turn=turn, order=why, group=group, why=why)
