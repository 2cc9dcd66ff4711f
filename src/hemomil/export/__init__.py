"""Out to the tools that people use: QuPath, scanpy, napari, R, onnxruntime.

`network` (ONNX) needs torch and an extra, and is imported by itself.
"""

from hemomil.export.annotated import annotated, write_annotated
from hemomil.export.flat import plain_names
from hemomil.export.geojson import feature_collection
from hemomil.export.labels import label_image, write_labels
from hemomil.export.layers import LayerData, box_layer, image_layer, span_of

__all__ = [
    "LayerData",
    "annotated",
    "box_layer",
    "feature_collection",
    "image_layer",
    "label_image",
    "plain_names",
    "span_of",
    "write_annotated",
    "write_labels",
]
