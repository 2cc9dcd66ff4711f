"""Write `cells.zarr`: an AnnData on disk with one row per cell, filled image by image.

Axes: N cells, M rows written at once.

    obs             cell_id (index), sample, patient, label, image, site, cell_label, x0 y0 x1 y1, det_score,
                    area, mask_rle (COCO run lengths within the box rounded outwards; empty: no mask)
    X, var          the shape features under their names, where `shape` is kept
    obsm            "shape" N F float32, "crop" N S S 3 uint8, "roi" N 256 14 14 float16,
                    "embedding" N D float32
    uns["hemomil"]  JSON: kinds, version of each kind (the detector's fingerprint for "roi"), feature names

RoI maps are 100 KB a cell. They are one uncompressed shard: a file that begins with the array itself, in C
order, and ends with the index of its chunks. So it can be mapped into memory, and zarr reads parts of it.
"""

import hashlib
import json
import math
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import anndata
import numpy as np
import pandas as pd
import zarr
from jaxtyping import Bool, Float, Int, Shaped
from zarr.codecs import BytesCodec, ShardingCodec

from hemomil.describe.settings import Kind
from hemomil.describe.shape import SHAPE_NAMES, SHAPE_VERSION
from hemomil.errors import FeaturesError, RunFolderError
from hemomil.segmentation import Masks
from hemomil.types import Cells, Cohort

DTYPES: Mapping[Kind, str] = {"shape": "float32", "crop": "uint8", "roi": "float16", "embedding": "float32"}
CHUNK_ROWS: Mapping[Kind, int] = {"shape": 4096, "crop": 256, "roi": 64, "embedding": 1024}
"""A few megabytes a chunk: whole bags, so that one bag is read without the rest."""
MAPPED: frozenset[Kind] = frozenset({"roi"})
"""Kinds whose file is the array itself, and whose values are checked when they are written."""
PENDING_BYTES = 64 * 2**20
"""Rows wait in memory up to here, so that cells that come one by one do not rewrite their chunk each time."""


class StoreWriter:
    """Fill a store image by image; it appears under its name only when every row of every kind is there.

    Use it as a context manager. A writer that fails removes what it wrote, or, with `resume`, leaves a hidden
    folder that a writer with the same cells and versions goes on from (`done` says which rows it may skip)
    and any other removes.
    """

    def __init__(
        self,
        path: Path,
        cells: Cells,
        cohort: Cohort,
        kinds: Sequence[Kind],
        *,
        versions: Mapping[str, str] | None = None,
        names: Mapping[str, Sequence[str]] | None = None,
        resume: bool = False,
        overwrite: bool = False,
    ) -> None:
        if path.exists() and not overwrite:
            raise RunFolderError(
                f"{path} is already there", hint="choose another folder, or --force to replace it"
            )
        self.path = path
        self.part = path.with_name(f".{path.name}.part")
        self.cells = cells
        self.resume = resume
        self.kinds: tuple[Kind, ...] = tuple(kinds)
        about = _about(self.kinds, versions or {}, names or {})
        obs = obs_of(cells, cohort)
        self._names: Mapping[str, Sequence[str]] = about["names"]
        self._stamp = _stamp(obs, about)
        if not (resume and self._is_ours()):
            shutil.rmtree(self.part, ignore_errors=True)
            _write_frame(self.part, obs, self.kinds, about, self._stamp)
        self._group = zarr.open_group(self.part, mode="r+")
        self._done = {kind: np.asarray(_array(self._group, f"done/{kind}")[:]) for kind in self.kinds}
        self._pending: dict[Kind, list[tuple[Int[np.ndarray, M], Shaped[np.ndarray, "M ..."]]]] = {
            kind: [] for kind in self.kinds
        }

    def done(self, kind: Kind) -> Bool[np.ndarray, "N"]:
        """Rows of this kind that are already written."""
        return self._done[kind].copy()

    def write(
        self, rows: slice | Sequence[int] | Int[np.ndarray, "M"], kind: Kind, values: np.ndarray
    ) -> None:
        """Give rows (indices into the cells) their values of one kind.

        NaN is refused when it is read; in RoI maps, which may be too many to be looked through, already here.

        Raises:
            FeaturesError: a value of a RoI map is not finite, or not in half precision.
        """
        assert kind in self.kinds, f"{kind} is not kept in this store"
        chosen = np.arange(len(self.cells))[rows] if isinstance(rows, slice) else np.asarray(rows, np.int64)
        assert len(chosen) == len(values), f"{len(chosen)} rows but {len(values)} values of {kind}"
        if len(chosen) == 0:
            return
        with np.errstate(over="ignore"):  # infinity is refused
            held = np.asarray(values, DTYPES[kind])
        if kind in MAPPED:
            check_finite(held, [self.cells.cell_ids[i] for i in chosen], kind, self._names)
        self._pending[kind].append((chosen, held))
        if sum(held.nbytes for _, held in self._pending[kind]) > PENDING_BYTES:
            self._flush(kind)

    def _flush(self, kind: Kind) -> None:
        """Write what waits, in the order of rows."""
        if not self._pending[kind]:
            return
        rows = np.concatenate([rows for rows, _ in self._pending[kind]])
        values = np.concatenate([values for _, values in self._pending[kind]])
        self._pending[kind].clear()
        order = np.argsort(rows, kind="stable")
        rows, values = rows[order], values[order]
        array = self._array_for(kind, values.shape[1:])
        assert array.shape[1:] == values.shape[1:], f"{kind}: {values.shape[1:]} after {array.shape[1:]}"
        if array.shards is not None:
            _write_maps(map_file(array), rows, values)
        elif rows[-1] - rows[0] == len(rows) - 1:
            array[int(rows[0]) : int(rows[-1]) + 1] = values
        else:
            array.oindex[rows] = values
        self._done[kind][rows] = True
        _array(self._group, f"done/{kind}")[:] = self._done[kind]

    def _array_for(self, kind: Kind, shape: tuple[int, ...]) -> Any:
        name = f"obsm/{kind}"
        if name not in self._group:
            make = _make_map if kind in MAPPED and len(self.cells) else _make_array
            make(self._group, name, (len(self.cells), *shape), DTYPES[kind], CHUNK_ROWS[kind])
        return _array(self._group, name)

    def finish(self) -> None:
        """Check that all is there, and rename."""
        for kind in self.kinds:
            self._flush(kind)
            missing = np.flatnonzero(~self._done[kind])
            assert len(missing) == 0, (
                f"{len(missing)} cells have no {kind}, first {self.cells.cell_ids[missing[0]]}"
            )
            if len(self.cells) == 0:
                self._array_for(kind, (len(SHAPE_NAMES),))
            array = _array(self._group, f"obsm/{kind}")
            if array.shards is not None:
                _write_at(map_file(array), [(map_bytes(array), map_index(array))])
        if "shape" in self.kinds:
            shape = _array(self._group, "obsm/shape")
            _make_array(self._group, "X", shape.shape, "float32", CHUNK_ROWS["shape"])
            _array(self._group, "X")[:] = shape[:]
        del self._group["done"]
        if self.path.exists():
            shutil.rmtree(self.path)
        self.part.replace(self.path)

    def _is_ours(self) -> bool:
        """Whether the hidden folder was begun for the same cells, kinds and versions."""
        try:
            return bool(zarr.open_group(self.part, mode="r").attrs.get("hemomil-begun") == self._stamp)
        except (FileNotFoundError, ValueError, KeyError):
            return False

    def __enter__(self) -> "StoreWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            try:
                self.finish()
            except BaseException:
                shutil.rmtree(self.part, ignore_errors=True)
                raise
        elif self.resume:
            for name in self.kinds:
                self._flush(name)
        else:
            shutil.rmtree(self.part, ignore_errors=True)


def obs_of(cells: Cells, cohort: Cohort) -> pd.DataFrame:
    """One row per cell: who it belongs to, where it lies, what is known of it."""
    by_sample = {sample.sample: sample for sample in cohort.samples}
    sites = {(s.sample, row.image): row.site for s in cohort.samples for row in s.images}
    owner = [by_sample[name] for name in cells.samples]
    boxes = np.asarray(cells.boxes, np.float64).reshape(-1, 4)
    texts: dict[str, list[str] | list[str | None]] = {
        "sample": list(cells.samples),
        "patient": [s.patient for s in owner],
        "label": [s.label for s in owner],
        "image": list(cells.images),
        "site": [sites.get(pair) for pair in zip(cells.samples, cells.images, strict=True)],
        "cell_label": list(cells.cell_labels),
    }
    columns: dict[str, Any] = {
        name: pd.Categorical(pd.Series(values, dtype=object)) for name, values in texts.items()
    }
    columns |= {name: boxes[:, i] for i, name in enumerate(("x0", "y0", "x1", "y1"))}
    columns["det_score"] = np.asarray(cells.scores, np.float64)
    masks, sides = Masks.of(cells.masks), boxes[:, 2:] - boxes[:, :2]
    areas = zip(masks.areas(), sides[:, 0] * sides[:, 1], strict=True)
    columns["area"] = np.array([box if mask is None else mask for mask, box in areas], np.float64)
    columns["mask_rle"] = list(masks.texts)
    return pd.DataFrame(columns, index=pd.Index(cells.cell_ids, name="cell_id", dtype=object))


def _about(
    kinds: Sequence[Kind], versions: Mapping[str, str], names: Mapping[str, Sequence[str]]
) -> dict[str, Any]:
    """What a model must know to refuse features of another make."""
    given = {"shape": str(SHAPE_VERSION), **versions}
    known = {"shape": SHAPE_NAMES, **names}
    return {
        "kinds": list(kinds),
        "versions": {kind: given.get(kind, "") for kind in kinds},
        "names": {kind: list(known[kind]) for kind in kinds if kind in known},
    }


def _stamp(obs: pd.DataFrame, about: dict[str, Any]) -> str:
    """Hash of everything that the rows of a store rest on."""
    text = json.dumps(about) + obs.to_csv()
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def _write_frame(
    part: Path, obs: pd.DataFrame, kinds: Sequence[Kind], about: dict[str, Any], stamp: str
) -> None:
    """The AnnData without its arrays, and a marker of the rows written per kind."""
    var = pd.DataFrame(index=pd.Index(SHAPE_NAMES if "shape" in kinds else (), name="feature", dtype=object))
    frame = anndata.AnnData(obs=obs, var=var, uns={"hemomil": json.dumps(about)})
    part.parent.mkdir(parents=True, exist_ok=True)
    group = zarr.open_group(part, mode="w", zarr_format=3)
    # not write_zarr: its consolidated metadata would not know the arrays that come later
    with anndata.settings.override(auto_shard_zarr_v3=False):
        anndata.io.write_elem(group, "/", frame)
    for kind in kinds:
        _make_array(group, f"done/{kind}", (len(obs),), "bool", 1 << 20)
        _array(group, f"done/{kind}")[:] = False
    group.attrs["hemomil-begun"] = stamp


def check_finite(
    values: Float[np.ndarray, "M ..."],
    cell_ids: Sequence[str] | pd.Index,
    kind: str,
    names: Mapping[str, Sequence[str]],
) -> None:
    """Raise FeaturesError, with the cell and the feature, for the first value that is not finite."""
    bad = ~np.isfinite(values)
    if not bad.any():
        return
    first = tuple(np.argwhere(bad)[0])
    row, column = first[:2]
    name = names[kind][column] if kind in names else f"{kind}_{column:03d}"
    count = int(bad.reshape(len(bad), -1).any(axis=1).sum())
    raise FeaturesError(
        f"cell {cell_ids[row]!r}: {name} is {values[first]!s} ({count} such cells or more)",
        hint="features must be finite: mend or leave out these cells",
    )


def _make_array(group: zarr.Group, name: str, shape: tuple[int, ...], dtype: str, rows: int) -> None:
    """An array that AnnData recognises; half floats do not compress, so they are stored as they are."""
    array = group.create_array(
        name,
        shape=shape,
        chunks=(max(min(rows, shape[0]), 1), *shape[1:]),
        dtype=dtype,
        compressors=None if dtype == "float16" else "auto",
        overwrite=True,
    )
    array.attrs.update({"encoding-type": "array", "encoding-version": "0.2.0"})


def _rows_of_chunk(n: int, most: int) -> int:
    """More than half of `most` rows, so many that the last chunk of n rows in all is filled up the least."""
    return n if n <= most else min(range(most, most // 2, -1), key=lambda rows: -n % rows)


def _make_map(group: zarr.Group, name: str, shape: tuple[int, ...], dtype: str, rows: int) -> None:
    """An array of one shard, which is not written yet: its chunks, of whole rows, lie one after another."""
    rows = _rows_of_chunk(shape[0], rows)
    group.create_array(
        name,
        shape=shape,
        chunks=(math.ceil(shape[0] / rows) * rows, *shape[1:]),
        dtype=dtype,
        serializer=ShardingCodec(
            chunk_shape=(rows, *shape[1:]), codecs=[BytesCodec()], index_codecs=[BytesCodec()]
        ),
        compressors=None,
        attributes={"encoding-type": "array", "encoding-version": "0.2.0", "finite": True},
        overwrite=True,
    )


def map_file(array: Any) -> Path:
    """The file of the one shard of an array."""
    return Path(array.store.root, array.path, "c", *["0"] * array.ndim)


def map_bytes(array: Any) -> int:
    """How much of that file is the array, with what fills up its last chunk."""
    return int(math.prod(array.shards) * array.dtype.itemsize)


def map_index(array: Any) -> bytes:
    """What ends that file: offset and length of each chunk, one after another."""
    length = math.prod(array.chunks) * array.dtype.itemsize
    offsets = np.arange(0, map_bytes(array), length, dtype="<u8")
    return np.stack([offsets, np.full_like(offsets, length)], axis=1).tobytes()


def _write_maps(file: Path, rows: Int[np.ndarray, "M"], values: Float[np.ndarray, "M ..."]) -> None:
    """Put values at their rows, given in order; neighbours go in one piece."""
    starts = np.flatnonzero(np.diff(rows, prepend=-2) != 1)
    pieces = np.split(np.ascontiguousarray(values, "<f2"), starts[1:])
    _write_at(
        file, [(int(rows[i]) * values[0].nbytes, part.data) for i, part in zip(starts, pieces, strict=True)]
    )


def _write_at(file: Path, pieces: Sequence[tuple[int, bytes | memoryview]]) -> None:
    """Write each piece at its offset; on the disk before we return, so that no row is marked done too early.

    Not through a map of the file: a full disk would then end the process without a word.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    file.touch()
    with file.open("r+b") as opened:
        for offset, piece in pieces:
            opened.seek(offset)
            opened.write(piece)
        opened.flush()
        os.fsync(opened.fileno())


def _array(group: zarr.Group, name: str) -> Any:
    return group[name]
