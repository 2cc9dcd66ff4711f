"""What can be known of a sample without looking at a cell's shape: how many cells, which colour, where from.

Facts come from the store; only the background is measured in the images, once, and kept under `.work/`.

Axes: N cells, R regions of an image, S samples, H W pixels.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float, UInt8
from joblib import Parallel, delayed

from hemomil.cohort import read_image
from hemomil.commands.console import Talk
from hemomil.commands.run_folder import RunFolder
from hemomil.commands.source import Source
from hemomil.errors import FeaturesError
from hemomil.files import written_whole
from hemomil.lit import is_lit
from hemomil.segmentation import mask_of
from hemomil.types import Region, Sample

COLOURS = ("red", "green", "blue")
BACKGROUND = (*(f"mean_{c}" for c in COLOURS), *(f"sd_{c}" for c in COLOURS))
NO_IMAGE = "features were brought along: there is no image"
WHOLE: Region = (0, 0, 2**31, 2**31)
"""Where a row of the manifest names no region."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What is known of the samples that have cells, and what could not be known."""

    table: pd.DataFrame
    """A row per sample, columns (family, fact); NaN where a fact of this sample is unknown."""
    left_out: dict[str, str]
    """Family -> why it is not in the table."""


def gather_facts(source: Source, store: Path, run: RunFolder, talk: Talk, *, jobs: int) -> Facts:
    """Bag size, mean colour, site and background of every sample in the store, as far as they can be had.

    The background is measured in the images, `jobs` of them side by side; a run that goes on after a kill
    finds it done. Raises ImageError for an image that cannot be read.
    """
    from hemomil.describe import read_obs

    obs = read_obs(store)
    cells = set(obs["sample"])
    samples = [s for s in source.cohort.samples if s.sample in cells]
    found: dict[str, pd.DataFrame | str] = {
        "bag size": _bag_size(obs),
        "mean colour": NO_IMAGE if source.brought is not None else _mean_colour(store),
        "site": _sites(samples),
        "background": NO_IMAGE if source.brought is not None else _background(samples, obs, run, talk, jobs),
    }
    tables = {name: facts for name, facts in found.items() if not isinstance(facts, str)}
    names = pd.Index([s.sample for s in samples], name="sample", dtype=object)
    nothing = pd.DataFrame(index=names, columns=pd.MultiIndex.from_arrays([[], []]), dtype=np.float64)
    parts = {name: facts.reindex(names) for name, facts in tables.items()}
    return Facts(
        table=pd.concat(parts, axis=1) if parts else nothing,
        left_out={name: why for name, why in found.items() if isinstance(why, str)},
    )


def _bag_size(obs: pd.DataFrame) -> pd.DataFrame | str:
    """Logarithm of the number of cells of each sample; or that it is the same for all."""
    sizes = obs.groupby("sample").size()
    if sizes.min() == sizes.max():
        return f"every sample has the same number of cells, {sizes.iloc[0]}"
    return pd.DataFrame({"log cells": np.log(sizes)})


def _mean_colour(store: Path) -> pd.DataFrame | str:
    """Mean RGB of each sample's cells, each cell counted once; or why it is not known."""
    from hemomil.describe import feature_names, read_bags

    try:
        names = feature_names(store, ("shape",))
    except FeaturesError:
        return "the store holds no shape features, which have the colour of each cell"
    columns = [names.index(f"mean_{colour}") for colour in COLOURS]
    means = {bag.sample: bag.features[:, columns].mean(axis=0) for bag in read_bags(store, ("shape",))}
    return pd.DataFrame.from_dict(means, orient="index", columns=list(COLOURS))


def _sites(samples: Sequence[Sample]) -> pd.DataFrame | str:
    """Share of each sample's images from each site: 0 or 1, unless a sample was imaged at several."""
    named = {s.sample: _sites_of(s) for s in samples}
    known = sorted({site for sites in named.values() for site in sites})
    if known in ([], [""]):
        return "no site is named"
    if len(known) == 1:
        return f"all samples are of one site, {known[0]!r}"
    shares = {sample: [sites.count(site) / len(sites) for site in known] for sample, sites in named.items()}
    return pd.DataFrame.from_dict(shares, orient="index", columns=known)


def _sites_of(sample: Sample) -> list[str]:
    return [image.site or "" for image in sample.images] or [sample.metadata.get("site", "")]


def _background(
    samples: Sequence[Sample], obs: pd.DataFrame, run: RunFolder, talk: Talk, jobs: int
) -> pd.DataFrame | str:
    """Mean and spread of the pixels outside the cells, averaged over each sample's images; or why not."""
    kept = run.work / "background.parquet"
    if not kept.exists():
        measured = _by_region(samples, obs, talk, jobs)
        with written_whole(kept) as part:
            measured.to_parquet(part)
    facts = pd.read_parquet(kept)
    return "no pixel lies outside the cells" if facts.isna().all(axis=None) else facts


def _by_region(samples: Sequence[Sample], obs: pd.DataFrame, talk: Talk, jobs: int) -> pd.DataFrame:
    """One pass over the images; a region that several samples share is measured once."""
    rows = pd.DataFrame(
        [(s.sample, i.image, i.region or WHOLE, i.kind, i.path) for s in samples for i in s.images],
        columns=["sample", "image", "region", "kind", "path"],
    )
    cells = dict(iter(obs.groupby("image", sort=False)[["x0", "y0", "x1", "y1", "mask_rle"]]))
    parts = [
        (part["path"].iloc[0], part["kind"].iloc[0], list(dict.fromkeys(part["region"])), cells.get(image))
        for image, part in rows.groupby("image", sort=False)
    ]
    done = Parallel(n_jobs=jobs, return_as="generator")(delayed(_outside)(*part) for part in parts)
    images = rows["image"].unique()
    found = {
        (image, region): values
        for image, part, measured in zip(
            images, parts, talk.track(done, "background", len(parts)), strict=True
        )
        for region, values in zip(part[2], measured, strict=True)
    }
    values = np.array([found[key] for key in zip(rows["image"], rows["region"], strict=True)])
    return pd.DataFrame(values, columns=list(BACKGROUND)).groupby(rows["sample"], sort=False).mean()


def _outside(
    path: Path, kind: str, regions: Sequence[Region], cells: pd.DataFrame | None
) -> Float[np.ndarray, "R 6"]:
    """Mean RGB and its standard deviation over the pixels outside the cells of each region; NaN: none."""
    image = read_image(path)
    empty = ~covered(image.shape[:2], cells)
    if kind == "cell":
        empty |= ~is_lit(image)
    return np.stack([_moments(image[y0:y1, x0:x1], empty[y0:y1, x0:x1]) for x0, y0, x1, y1 in regions])


def covered(shape: tuple[int, ...], cells: pd.DataFrame | None) -> Bool[np.ndarray, "H W"]:
    """Which pixels lie in a cell: in its mask, or in its box (rounded outwards) where it has none."""
    inside = np.zeros(shape, bool)
    for x0, y0, mask in () if cells is None else _outlines(cells):
        top, left = max(y0, 0), max(x0, 0)
        view = inside[top : y0 + mask.shape[0], left : x0 + mask.shape[1]]
        view |= mask[top - y0 :, left - x0 :][: view.shape[0], : view.shape[1]]
    return inside


def _outlines(cells: pd.DataFrame) -> Iterator[tuple[int, int, Bool[np.ndarray, "_ _"]]]:
    """Corner and mask of each cell; a box is a mask that is full."""
    boxes = cells[["x0", "y0", "x1", "y1"]].to_numpy(np.float64)
    low, high = np.floor(boxes[:, :2]).astype(int), np.ceil(boxes[:, 2:]).astype(int)
    for (x0, y0), (x1, y1), rle in zip(low.tolist(), high.tolist(), cells["mask_rle"], strict=True):
        mask = mask_of(rle)
        yield x0, y0, np.ones((max(y1 - y0, 0), max(x1 - x0, 0)), bool) if mask is None else mask


def _moments(image: UInt8[np.ndarray, "H W 3"], empty: Bool[np.ndarray, "H W"]) -> Float[np.ndarray, "6"]:
    """Mean and standard deviation by counting: no pixel of a large field is held as a float."""
    if not empty.any():
        return np.full(len(BACKGROUND), np.nan)
    counts = np.stack([np.bincount(image[..., c][empty], minlength=256) for c in range(3)])
    share, level = counts / counts[0].sum(), np.arange(256)
    mean = share @ level
    return np.concatenate([mean, np.sqrt(np.maximum(share @ level**2 - mean**2, 0))])
