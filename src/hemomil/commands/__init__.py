"""The verbs: each command as a Python function of the same name; rooms meet here.

    from hemomil import commands
    commands.study(Path("manifest.csv"), Path("run"), settings=commands.resolve_settings())

A function is imported when it is first asked for, so that nothing here costs the import of torch. No module
may have the name of a function: it would take the function's place.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
