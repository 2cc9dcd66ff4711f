"""From a bag of cells to a diagnosis, with the weight of every cell."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
