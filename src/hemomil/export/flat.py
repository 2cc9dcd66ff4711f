"""Tables whose column names R takes as they are."""

import re

import pandas as pd


def plain_names(table: pd.DataFrame) -> pd.DataFrame:
    """Only letters, digits and underscores in column names; two that become the same are numbered."""
    names = pd.Series([re.sub(r"\W+", "_", str(name), flags=re.ASCII).strip("_") for name in table])
    before = names.groupby(names).cumcount()
    return table.set_axis(names.where(before == 0, names + "_" + (before + 1).astype(str)), axis=1)
