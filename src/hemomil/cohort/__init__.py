"""Who was seen: manifests, images, cells and features read and checked, then divided into folds."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
