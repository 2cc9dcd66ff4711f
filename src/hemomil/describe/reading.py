"""Read `cells.zarr` back: the cells as a table, as bags of features, as outlines.

Axes: N cells, M of them, F features.
"""

import json
import mmap
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pandas as pd
import zarr
from jaxtyping import Float, Int

from hemomil.describe.store import check_finite, map_bytes, map_file, map_index
from hemomil.errors import FeaturesError
from hemomil.types import Bag

BLOCK = 4096
"""Rows that are read and checked at a time."""
NO_RESERVE = 0x4000 if sys.platform == "linux" else 0
"""MAP_NORESERVE, which `mmap` does not name: else Linux refuses a private map larger than its memory."""


def read_obs(path: Path) -> pd.DataFrame:
    """One row per cell, indexed by cell_id; ids are plain strings and None where unknown."""
    obs: pd.DataFrame = anndata.io.read_elem(_open(path)["obs"])
    for column in obs.columns:
        if isinstance(obs[column].dtype, pd.CategoricalDtype):
            values = obs[column].astype(object)
            obs[column] = values.where(values.notna(), None)
    return obs


def read_bags(path: Path, features: Sequence[str]) -> list[Bag]:
    """The bags of a store, in the order in which their samples first appear.

    `features`: kinds joined side by side as float32 vectors, or `roi` alone as float16 maps. Joined with
    others, a RoI map is the mean and the maximum of each of its channels. All bags are views of one array.

    RoI maps alone stay in their file: a bag is a view of it, loaded where it is used and dropped when memory
    is short; what is changed in it stays in memory. Two exceptions take memory: a sample whose cells lie
    apart in the store is gathered, and a store whose maps lie in many files, as of old, is read as a whole.

    Raises:
        FeaturesError: a kind is not in the store or is no feature, or a value is not finite, or
            the file of the RoI maps is cut short.
    """
    store = _open(path)
    _check_kinds(store, features, path)
    obs = read_obs(path)
    sample, names = pd.factorize(obs["sample"])
    order = np.argsort(sample, kind="stable")
    values = _mapped(store["obsm/roi"]) if list(features) == ["roi"] else None
    if values is None:
        values = _values(store, features, obs)
        if (np.diff(order) != 1).any():  # cells of a sample lie apart: gather them once
            values, obs, order = values[order], obs.iloc[order], np.arange(len(order))
    ends = np.bincount(sample, minlength=len(names)).cumsum()
    who, ids = obs[["sample", "patient", "label"]].to_numpy(), obs.index.to_numpy()
    bags = np.split(order, ends[:-1]) if len(names) else []
    return [_bag(who[rows[0]], tuple(ids[rows]), _rows(values, rows)) for rows in bags]


def feature_names(path: Path, features: Sequence[str]) -> tuple[str, ...]:
    """The name of every column that `read_bags` gives; of every channel for `roi`."""
    store = _open(path)
    _check_kinds(store, features, path)
    known = _about(store)["names"]
    names: list[str] = []
    for kind in features:
        width = store[f"obsm/{kind}"].shape[1]
        own = known.get(kind, [f"{kind}_{i:03d}" for i in range(width)])
        names += (
            [f"{name}_{how}" for how in ("mean", "max") for name in own]
            if _is_joined_map(kind, features)
            else own
        )
    return tuple(names)


def _is_joined_map(kind: str, features: Sequence[str]) -> bool:
    return kind == "roi" and len(features) > 1


def fingerprint(path: Path, features: Sequence[str]) -> dict[str, Any]:
    """What the features are, so that a model can refuse others: kinds, their versions, their names."""
    store = _open(path)
    _check_kinds(store, features, path)
    versions = _about(store)["versions"]
    return {
        "kinds": list(features),
        "versions": {kind: versions[kind] for kind in features},
        "names": list(feature_names(path, features)),
    }


def _open(path: Path) -> Any:
    try:
        return zarr.open_group(path, mode="r")
    except (FileNotFoundError, ValueError) as error:
        raise FeaturesError(
            f"{path} is no store of cells", hint="give the cells.zarr of a run folder"
        ) from error


def _about(store: Any) -> dict[str, Any]:
    about: dict[str, Any] = json.loads(anndata.io.read_elem(store["uns"])["hemomil"])
    return about


def _check_kinds(store: Any, features: Sequence[str], path: Path) -> None:
    """All kinds are there and can be joined."""
    kept = _about(store)["kinds"]
    absent = [kind for kind in features if kind not in kept]
    if absent or not features:
        raise FeaturesError(
            f"{path} holds {', '.join(kept)}, not {', '.join(absent) or 'nothing'}",
            hint="choose among them with --features, or describe the cells again",
        )
    if "crop" in features:
        raise FeaturesError("crops are pictures, not features", hint="use shape, roi or embedding")


def _mapped(array: Any) -> Float[np.ndarray, "N ..."] | None:
    """The array of all cells, left in its file; None if the file is not the array itself, or is unchecked."""
    if array.shards is None or array.shards[0] < array.shape[0] or not array.attrs.get("finite"):
        return None
    path, size, index = map_file(array), map_bytes(array), map_index(array)
    found = path.stat().st_size if path.exists() else 0
    if found < size + len(index):
        raise FeaturesError(
            f"{path} has {found:,} bytes, not {size + len(index):,}",
            hint="the store is not whole: copy it again, or describe the cells again",
        )
    with path.open("rb") as file:
        file.seek(size)
        if file.read() != index:
            return None
        held = _private_map(file.fileno(), size)
    return np.ndarray(array.shape, array.dtype.newbyteorder("<"), buffer=held)


def _private_map(file: int, size: int) -> mmap.mmap:
    """The file as memory; what is written to it stays in memory."""
    if sys.platform == "win32":
        return mmap.mmap(file, size, access=mmap.ACCESS_COPY)
    return mmap.mmap(file, size, flags=mmap.MAP_PRIVATE | NO_RESERVE, prot=mmap.PROT_READ | mmap.PROT_WRITE)


def _values(store: Any, features: Sequence[str], obs: pd.DataFrame) -> Float[np.ndarray, "N ..."]:
    """The array of all cells, filled block by block and checked on the way."""
    if len(features) == 1:
        return _filled(store, features[0], features, obs)
    return np.concatenate([_filled(store, kind, features, obs) for kind in features], axis=1)


def _filled(store: Any, kind: str, features: Sequence[str], obs: pd.DataFrame) -> Float[np.ndarray, "N ..."]:
    """All rows of one kind: as they are, or, for maps among vectors, as mean and maximum of each channel."""
    array, joined = store[f"obsm/{kind}"], _is_joined_map(kind, features)
    names, held = _about(store)["names"], _mapped(array)
    shape, dtype = ((2 * array.shape[1],), np.float32) if joined else (array.shape[1:], array.dtype)
    values = np.empty((len(obs), *shape), dtype)
    for start in range(0, len(obs), BLOCK):
        rows = slice(start, start + BLOCK)
        part = array[rows] if held is None else held[rows]
        if held is None:
            check_finite(part, obs.index[rows], kind, names)
        values[rows] = _channel_averages(part) if joined else part
    return values


def _channel_averages(maps: Float[np.ndarray, "M C H W"]) -> Float[np.ndarray, "M F"]:
    """Mean, then maximum, of each channel: F = 2 C, float32."""
    return np.concatenate(
        [maps.mean(axis=(2, 3), dtype=np.float32), maps.max(axis=(2, 3)).astype(np.float32)], axis=1
    )


def _rows(values: Float[np.ndarray, "N ..."], rows: Int[np.ndarray, "M"]) -> Float[np.ndarray, "M ..."]:
    """A view, where the rows lie side by side."""
    first, last = rows[0], rows[-1]
    return values[first : last + 1] if last - first == len(rows) - 1 else values[rows]


def _bag(who: np.ndarray, cell_ids: tuple[str, ...], features: Float[np.ndarray, "M ..."]) -> Bag:
    sample, patient, label = who
    return Bag(sample=sample, patient=patient, label=label, features=features, cell_ids=cell_ids)
