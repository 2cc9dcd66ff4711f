"""What is other at a site, and what recalibration did about it: drift.json, drift.csv, and in words.

Axes: N cells of a bag, F features.
"""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pandas as pd

from hemomil.commands.model_folder import TrainedModel
from hemomil.novelty import Calibration, donors_needed
from hemomil.novelty.jury import CellFlags
from hemomil.stats.drift import donor_mean, feature_shifts, ks_among, ks_from, ks_of_donors
from hemomil.types import Bag, Notice, Prediction

FLAG_LEVELS = (0.01, 0.05)
"""Error rates at which flagged healthy cells are counted."""
NAMED = 5
"""Features named as those that moved most."""


@dataclass(frozen=True, kw_only=True)
class Site:
    """A site's healthy donors, and the model before and after it was recalibrated on them."""

    bags: Sequence[Bag]
    old: TrainedModel
    new: TrainedModel
    predictions: Sequence[Prediction]
    """Of the old model."""
    flags: Sequence[CellFlags]
    """Of the old jury."""

    @property
    def donors(self) -> list[str]:
        """Who gave the samples."""
        return sorted({bag.patient for bag in self.bags})

    @property
    def drawn(self) -> dict[str, int]:
        """How donors are resampled for intervals."""
        return {"seed": self.old.settings.seed, "n_boot": self.old.settings.study.bootstrap}


def moved_features(site: Site) -> pd.DataFrame:
    """drift.csv, the most moved first: `feature_shifts`, and the share of cells clipped at `mil.clip`."""
    clip = site.old.settings.mil.clip or np.inf
    means, beyond = [], []
    for bag in site.bags:
        vectors_NF = site.old.model.standardised(bag)
        means.append(vectors_NF.mean(axis=0, dtype=np.float64))
        beyond.append((np.abs(vectors_NF) > clip).mean(axis=0))
    patients = [bag.patient for bag in site.bags]
    of_donor, clipped = (pd.DataFrame(rows).groupby(patients).mean().to_numpy() for rows in (means, beyond))
    table = feature_shifts(of_donor, feature_names(site.old), **site.drawn)
    table["clipped"] = clipped.mean(axis=0)
    return table.sort_values("shift", key=np.abs, ascending=False, kind="stable", ignore_index=True)


def feature_names(trained: TrainedModel) -> list[str]:
    """The features in which the model standardises cells: of RoI maps, mean and maximum of each channel."""
    names = list(trained.fingerprint["names"])
    maps = len(trained.model.feature_shape_) > 1
    return [f"{name}_{how}" for how in ("mean", "max") for name in names] if maps else names


def drift_record(site: Site, features: pd.DataFrame, level: float) -> dict[str, Any]:
    """drift.json: how the old calibration fails here, how the new one holds, and what neither can mend."""
    old, by_old = _under_old(site)
    new, by_new = _under_new(site)
    called = _called_control(site)
    by_donor = pd.concat([_sizes(site), by_old, by_new, called.rename("called_control")], axis=1)
    return {
        "certified": len(site.donors) >= donors_needed(level),
        "donors": len(site.donors),
        "needed": donors_needed(level),
        "level": level,
        "samples": len(site.bags),
        "cells": sum(map(len, site.bags)),
        "moved_most": _records(features.head(NAMED)),
        "old": old,
        "new": new,
        "called_control": _over_donors(called, site),
        "networks_hold": bool(called.mean() >= 1 - level),
        "by_donor": _records(by_donor.rename_axis("donor").reset_index()),
    }


def _records(table: pd.DataFrame) -> list[dict[Hashable, Any]]:
    """Rows for JSON, null where there is no number."""
    return table.astype(object).where(table.notna(), None).to_dict("records")


def _sizes(site: Site) -> pd.DataFrame:
    """Samples and cells of each donor."""
    cells = pd.Series([len(bag) for bag in site.bags]).groupby([bag.patient for bag in site.bags])
    return pd.DataFrame({"samples": cells.size(), "cells": cells.sum()})


def _over_donors(of_donor: pd.Series, site: Site) -> dict[str, Any]:
    return asdict(donor_mean(of_donor, **site.drawn))


def _called_control(site: Site) -> pd.Series:
    """Share of each donor's samples that the networks call healthy."""
    right = [said.predicted == site.old.settings.control for said in site.predictions]
    return pd.Series(right, dtype=np.float64).groupby([bag.patient for bag in site.bags]).mean()


def _under_old(site: Site) -> tuple[dict[str, Any], pd.DataFrame]:
    """The site's cells against the old controls, each of whom was scored without their group of donors."""
    scores, patients = site.old.model.control_scores_
    controls = pd.DataFrame({"donor": patients, "score": scores})
    found = np.concatenate([said.anomaly for said in site.predictions])
    donors = [bag.patient for bag in site.bags for _ in bag.cell_ids]
    cells = pd.DataFrame(
        {"donor": donors, "score": found, "p": np.concatenate([flags.p for flags in site.flags])}
    )
    about, by_donor = _flagged(cells, site.old.jury.n_donors, site)
    ks, statistic_p = ks_from(cells, controls), ks_of_donors(cells, controls)
    about["ks"] = _over_donors(ks, site)
    about["ks_among_controls"] = _over_donors(ks_among(controls), site)
    about["ks_of_donor_medians"] = dict(zip(("statistic", "p"), statistic_p, strict=True))
    return about, by_donor.assign(ks=ks).add_prefix("old_")


def _under_new(site: Site) -> tuple[dict[str, Any], pd.DataFrame]:
    """Each donor against the others of the site, as a donor to come will be against all of them."""
    scores, patients = site.new.model.control_scores_
    cells = pd.DataFrame({"donor": patients, "score": scores, "p": np.nan})
    samples = np.array([bag.sample for bag in site.bags for _ in bag.cell_ids])
    for donor in site.donors:
        own = (cells["donor"] == donor).to_numpy()
        others = Calibration.fit(scores[~own], cells.loc[~own, "donor"].tolist(), samples[~own].tolist())
        cells.loc[own, "p"] = others.cell_p(scores[own])
    about, by_donor = _flagged(cells, len(site.donors) - 1, site)
    ks = ks_among(cells)
    return {**about, "ks": _over_donors(ks, site)}, by_donor.assign(ks=ks).add_prefix("new_")


def _flagged(cells: pd.DataFrame, n_donors: int, site: Site) -> tuple[dict[str, Any], pd.DataFrame]:
    """Which share of healthy cells p-values of `n_donors` flag: the mean over donors, and that of each.

    `flagged`: p is at most the level; null where so few donors give no p that low. `beyond`: without what p
    adds for few donors, that is, at most this share of the reference's cells scores as high.
    """
    beyond = (cells["p"] * (n_donors + 1) - 1) / n_donors
    flags = {}
    for level in FLAG_LEVELS:
        flags[f"flagged_{level:g}"] = cells["p"] <= level if n_donors >= donors_needed(level) else np.nan
        flags[f"beyond_{level:g}"] = beyond <= level
    by_donor = pd.DataFrame(flags).groupby(cells["donor"]).mean()
    about = {name: _over_donors(by_donor[name], site) for name in flags}
    return {"donors": n_donors, **about}, by_donor


def drift_notices(drift: Mapping[str, Any]) -> tuple[Notice, ...]:
    """What has to be known before the new model is used, for run.json."""
    notices = []
    if not drift["certified"]:
        text = (
            f"the calibration is not certified at {drift['level']:g}: {drift['donors']} control donors give "
            f"no p-value below {1 / (drift['donors'] + 1):.2g}, {drift['needed']} donors are needed"
        )
        notices.append(Notice(kind="few-control-donors", subject="control", text=text))
    if not drift["networks_hold"]:
        share = np.mean([donor["called_control"] for donor in drift["by_donor"]])
        text = (
            f"the networks call {share:.0%} of this site's healthy samples healthy, fewer than "
            f"{1 - drift['level']:.0%}: recalibration does not mend the diagnosis, training with samples of "
            "this site does"
        )
        notices.append(Notice(kind="controls-called-ill", subject="control", text=text))
    return tuple(notices)


def drift_text(drift: Mapping[str, Any]) -> str:
    """The record in a few lines for the console, warnings last."""
    old, new = drift["old"], drift["new"]
    moved = ", ".join(f"{row['feature']} {row['shift']:+.1f}" for row in drift["moved_most"])
    shares = {
        f"{who} calibration at {level:.0%}": {
            kind: _share(about[f"{kind}_{level:g}"]) for kind in ("flagged", "beyond")
        }
        for who, about in (("old", old), ("new", new))
        for level in FLAG_LEVELS
    }
    table = pd.DataFrame.from_dict(shares, orient="index")
    lines = [
        f"{drift['donors']} control donors, {drift['samples']} samples, {drift['cells']} cells: the lowest "
        f"p-value is {1 / (drift['donors'] + 1):.2g} ({1 / (old['donors'] + 1):.2g} before)",
        f"moved most, in SD of the old controls' cells: {moved}",
        f"share of healthy cells, mean over donors [95 % interval]:\n{table.to_string()}",
        f"Kolmogorov-Smirnov distance by donor: {_number(old['ks'])} from the old controls (usual among "
        f"them: {_number(old['ks_among_controls'])}), {_number(new['ks'])} among the donors of the site",
        f"samples called control by the networks, which stay as they are: {_share(drift['called_control'])}; "
        "whether they still know the ill ones no control can show",
        *(f"WARNING: {notice.text}" for notice in drift_notices(drift)),
    ]
    return "\n".join(lines)


def _share(found: Mapping[str, Any]) -> str:
    if found["value"] is None:
        return "not estimable"
    return f"{found['value']:.1%} [{found['low']:.1%}, {found['high']:.1%}]"


def _number(found: Mapping[str, Any]) -> str:
    return "not estimable" if found["value"] is None else f"{found['value']:.2f}"
