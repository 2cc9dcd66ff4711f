"""hemomil finds the few cells that explain a diagnosis.

The front door: the model for those who bring features, the values it takes and gives, and the commands as
functions (`hemomil.commands.study(...)`). Names are imported when they are first asked for, since torch is
slow to import and most commands do not need it.
"""

from importlib.metadata import version

import lazy_loader

__version__ = version("hemomil")
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
