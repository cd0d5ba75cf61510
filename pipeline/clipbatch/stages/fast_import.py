"""Import large libraries in less time: without torch's compiler, which takes about as long as torch's own import, and
without transformers, which takes another third.

Knows nothing of what is imported. Whoever compiles, or makes a tokenizer, has these imported then.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import sys
from collections.abc import Iterator
from types import ModuleType
from typing import Any

_COMPILER, _TRANSFORMERS = "torch._dynamo.utils", "transformers"


@contextlib.contextmanager
def fast_imports(*, transformers: bool) -> Iterator[None]:
    """While torchvision, timm and open_clip are imported in here, the compiler is not, and no garbage is looked for.

    transformers: let open_clip import that too, if it is there; it has no text towers of that package otherwise.
    torchvision imports the compiler for a rare case of `roi_align`, which imports it then; timm to exempt functions of
    NaFlexViT from it, which no model of open_clip has, and which are then not exempt.
    """
    collects = gc.isenabled()
    gc.disable()
    hidden = not transformers and _TRANSFORMERS not in sys.modules
    if hidden:
        sys.modules[_TRANSFORMERS] = None  # type: ignore[assignment]
    try:
        with contextlib.nullcontext() if _COMPILER in sys.modules else _without_compiler():
            yield
    finally:
        if hidden:
            del sys.modules[_TRANSFORMERS]
        if collects:
            gc.enable()


@contextlib.contextmanager
def _without_compiler() -> Iterator[None]:
    import torch

    sys.modules[_COMPILER] = stand_in = _Compiler(_COMPILER)
    exempt = torch.compiler.disable
    torch.compiler.disable = lambda fn=None, *_, **__: fn
    try:
        yield
    finally:
        torch.compiler.disable = exempt
        if sys.modules.get(_COMPILER) is stand_in:
            del sys.modules[_COMPILER]


class _Compiler(ModuleType):
    @staticmethod
    def is_compile_supported(device_type: str) -> bool:
        supported: bool = importlib.import_module(_COMPILER).is_compile_supported(device_type)
        return supported

    def __getattr__(self, name: str) -> Any:  # what another version of torchvision may want of it
        if name.startswith("__"):  # the import system asks for __path__
            raise AttributeError(name)
        if sys.modules.get(_COMPILER) is self:
            del sys.modules[_COMPILER]
        return getattr(importlib.import_module(_COMPILER), name)
