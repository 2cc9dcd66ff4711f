"""What each cell is like, in numbers: shape, crops, RoI maps, vectors brought along."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
