"""Imports torchvision, timm and open_clip faster, by leaving out what workers rarely need.

Importing torch's compiler takes about as long as importing torch itself, and transformers adds another third. So
`fast_imports` puts a stand-in in place of the compiler and hides transformers. Code that compiles, or that needs a
tokenizer of transformers, imports them when it needs them.
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
    """Within the context, the libraries are imported without torch's compiler and with garbage collection off.

    transformers: let open_clip import transformers if it is installed. Without it, open_clip has no text towers of
    that package.

    torchvision imports the compiler for a rare case of `roi_align`; that case still works, as the stand-in then imports
    the real compiler. timm uses the compiler to exempt functions of NaFlexViT from compilation; these are then not
    exempt, but no model of open_clip contains a NaFlexViT.
    """
    gc_was_on = gc.isenabled()
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
        if gc_was_on:
            gc.enable()


@contextlib.contextmanager
def _without_compiler() -> Iterator[None]:
    import torch

    sys.modules[_COMPILER] = stand_in = _Compiler(_COMPILER)
    disable = torch.compiler.disable
    torch.compiler.disable = lambda fn=None, *_, **__: fn
    try:
        yield
    finally:
        torch.compiler.disable = disable
        if sys.modules.get(_COMPILER) is stand_in:
            del sys.modules[_COMPILER]


class _Compiler(ModuleType):
    """Stands in for `torch._dynamo.utils`. Any use of it imports the real module."""

    @staticmethod
    def is_compile_supported(device_type: str) -> bool:
        supported: bool = importlib.import_module(_COMPILER).is_compile_supported(device_type)
        return supported

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # the import system asks for __path__
            raise AttributeError(name)
        if sys.modules.get(_COMPILER) is self:
            del sys.modules[_COMPILER]
        return getattr(importlib.import_module(_COMPILER), name)
