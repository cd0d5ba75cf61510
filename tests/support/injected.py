"""Faults in the processes that a command starts: code that is run in each of them, right after a module is loaded."""

import os
from pathlib import Path

_HOOK = '''
import importlib.abc, importlib.machinery, sys

CODE = {code!r}


class Finder(importlib.abc.MetaPathFinder):
    """Runs `CODE[name]` in the module `name`, once it is loaded."""

    def find_spec(self, name, path, target=None):
        if name not in CODE:
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path)
        plain = spec.loader.exec_module

        def exec_module(module):
            plain(module)
            exec(CODE[name], module.__dict__)

        spec.loader.exec_module = exec_module
        return spec


sys.meta_path.insert(0, Finder())
'''


def injected(folder: Path, code: dict[str, str]) -> dict[str, str]:
    """The environment in which Python runs `code`, by name of the module, wherever that module is loaded.

    folder: for the file that does it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "sitecustomize.py").write_text(_HOOK.format(code=code))
    return {"PYTHONPATH": os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")])}
