"""Red cells in images: boxes, masks, and their maps in the feature pyramid (torchvision's Mask R-CNN)."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
