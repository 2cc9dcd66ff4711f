"""Write a network as ONNX, and hold what onnxruntime computes with it against what the network says.

Axes: N cells of one bag. Needs the extra `[onnx]`; imported only where that is asked for.
"""

from collections.abc import Mapping, Sequence
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from hemomil.errors import ModelError, SettingsError

LIBRARIES = ("onnx", "onnxruntime", "onnxscript")
TOLERANCE = 1e-4
"""Largest difference of a score: absolute up to 1, relative above."""


def refuse_without_onnx() -> None:
    """Raise SettingsError where the libraries of the extra are not installed."""
    missing = [name for name in LIBRARIES if find_spec(name) is None]
    if missing:
        raise SettingsError(
            f"ONNX needs {', '.join(missing)}, not installed here", hint="pip install 'hemomil[onnx]'"
        )


def write_onnx(
    path: Path,
    network: nn.Module,
    example: Float[Tensor, "N ..."],
    outputs: Sequence[str],
    metadata: Mapping[str, str],
) -> None:
    """Write a network that takes `cells`, of any number, and gives these outputs.

    `example` is a bag of 2 cells or more. Raises ModelError for what ONNX cannot say.
    """
    try:
        program = torch.export.export(
            network, (example,), dynamic_shapes=({0: torch.export.Dim("cells")},), strict=True
        )
        written = torch.onnx.export(
            program,
            input_names=["cells"],
            output_names=list(outputs),
            dynamo=True,
            verbose=False,
            custom_translation_table={torch.ops.aten.sort.stable: _sorted_by_top_k()},
        )
    except (RuntimeError, torch.onnx.errors.OnnxExporterError) as error:
        reason = str(error).strip().split(". ")[0]
        raise ModelError(
            f"this model cannot be written as ONNX: {reason}",
            hint="train another method, or use the model itself",
        ) from error
    assert written is not None
    _forget_sources(written.model)
    written.model.metadata_props.update(metadata)
    written.save(path, external_data=False)


def _forget_sources(model: Any) -> None:
    """Drop what torch notes of each operation: lines of source code, with the folders of this computer."""
    for part in (model.graph, *model.functions.values()):
        for node in part.all_nodes():
            node.metadata_props.clear()
            node.doc_string = None


def _sorted_by_top_k() -> Any:
    """torch's stable sort, for which torch has no ONNX; of equal values, TopK too gives the first first."""
    op = import_module("onnxscript").opset18

    def sort(values: Any, stable: bool | None = None, dim: int = -1, descending: bool = False) -> Any:
        size = op.Gather(op.Shape(values), op.Constant(value_ints=[dim]))
        return op.TopK(values, size, axis=dim, largest=int(descending), sorted=1)

    return sort


def run_onnx(path: Path, cells: Float[np.ndarray, "N ..."]) -> dict[str, np.ndarray]:
    """What onnxruntime makes of one bag, by output."""
    session = import_module("onnxruntime").InferenceSession(path, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(None, {"cells": cells.astype(np.float32)}), strict=True))


def refuse_if_different(
    path: Path, cells: Float[np.ndarray, "N ..."], expected: Mapping[str, np.ndarray]
) -> None:
    """Raise ModelError where the file says anything but `expected` of these cells."""
    found = run_onnx(path, cells)
    for name, values in expected.items():
        same = np.isclose(found[name], values, rtol=TOLERANCE, atol=TOLERANCE, equal_nan=True)
        if not same.all():
            first = int(np.argmin(same))
            raise ModelError(
                f"the ONNX file does not repeat the model: of {len(cells)} cells, {name} is "
                f"{found[name][first]:.6g} where the model says {values[first]:.6g}",
                hint="use the model itself; please report this",
            )
