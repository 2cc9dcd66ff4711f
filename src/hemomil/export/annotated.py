"""A run as AnnData: cells with their scores in obs, features in X, for scanpy and its neighbours.

Axes: N cells, F features.
"""

import shutil
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import anndata
import numpy as np
import pandas as pd
import zarr

from hemomil.errors import RunFolderError
from hemomil.files import written_whole

ABOUT_IMAGE_AND_CELL = ("site", "det_score", "area", "mask_rle")


def annotated(store: anndata.AnnData, cells: pd.DataFrame, about: Mapping[str, Any]) -> anndata.AnnData:
    """The stored features of `cells`, in their order, with all that is said of them.

    X are the shape features; without these, the vectors brought along, or the mean and maximum of each
    channel of RoI maps. `about` goes to `uns["hemomil"]`; what the store said of its features stays in
    `uns["features"]`.
    """
    own = store[cells["cell_id"].tolist()]
    extra = own.obs[[name for name in ABOUT_IMAGE_AND_CELL if name in own.obs]]
    obs = cells.set_index("cell_id").join(extra.drop(columns=[c for c in extra if c in cells]))
    features = _features(own)
    return anndata.AnnData(
        X=features.to_numpy(np.float32),
        obs=_storable(obs),
        var=pd.DataFrame(index=features.columns),
        obsm={name: np.asarray(values) for name, values in own.obsm.items()},
        uns={"hemomil": dict(about), "features": own.uns["hemomil"]},
    )


def _features(own: anndata.AnnData) -> pd.DataFrame:
    if own.n_vars:
        table: pd.DataFrame = own.to_df()
        return table
    if "embedding" in own.obsm:
        values = np.asarray(own.obsm["embedding"])
        return pd.DataFrame(values, columns=[f"embedding_{k:03d}" for k in range(values.shape[1])])
    if "roi" not in own.obsm:
        return pd.DataFrame(index=own.obs_names)
    maps = np.asarray(own.obsm["roi"])
    parts = {"mean": maps.mean(axis=(2, 3), dtype=np.float32), "max": maps.max(axis=(2, 3))}
    tables = [pd.DataFrame(v).add_prefix("roi_").add_suffix(f"_{how}") for how, v in parts.items()]
    return pd.concat(tables, axis=1)


def _storable(obs: pd.DataFrame) -> pd.DataFrame:
    """Text as categories, missing where it is blank; columns without any value are left out."""
    text = obs.select_dtypes(exclude=["number", "bool"]).columns
    as_categories = {name: obs[name].replace("", None).astype("category") for name in text}
    obs = obs.assign(**as_categories).dropna(axis=1, how="all")
    whole = {name: "float64" for name in obs if isinstance(obs[name].dtype, pd.Int64Dtype)}
    return obs.astype(whole)


def write_annotated(path: Path, data: anndata.AnnData) -> None:
    """Write .h5ad, or .zarr in place of a store that was there, by the ending; whole or not at all."""
    if path.suffix == ".h5ad":
        with written_whole(path) as part:
            data.write_h5ad(part, compression="gzip")
        return
    if path.exists() and not (path / "zarr.json").is_file():
        raise RunFolderError(f"{path} is no zarr store: it will not be replaced", hint="choose another name")
    path.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as folder:
        # not write_zarr: it writes the older format, and warns of the newer
        with anndata.settings.override(auto_shard_zarr_v3=False):
            anndata.io.write_elem(zarr.open_group(Path(folder, "part"), mode="w", zarr_format=3), "/", data)
        if path.exists():
            shutil.rmtree(path)
        Path(folder, "part").replace(path)
