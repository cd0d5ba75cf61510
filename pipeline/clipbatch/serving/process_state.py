"""Leave a user's process as it was, whatever libraries change when they are imported, load a model, and work.

torch's number of threads must be one while a Classifier is open, as each core has a batch of its own. Several may be
open at a time and close in any order, so the first one to open changes it (`borrow`) and the last one to close puts it
back (`give_back`). Everything else is put back at once (`unchanged`). A fork copies a Classifier without its threads,
and the copy would wait for them for ever; `Origin` tells a copy from the original.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import threading
import warnings
from collections.abc import Iterator
from dataclasses import dataclass

# Of the environment: what open_clip and torch set when they are imported.
_VARIABLES = ("TOKENIZERS_PARALLELISM", "TORCHINDUCTOR_CACHE_DIR")
_lock = threading.Lock()
_borrowers, _forks = 0, 0


@dataclass(frozen=True, slots=True, kw_only=True)
class _TorchState:
    """What torch keeps for the whole process and a loaded model changes."""

    threads: int
    tf32: bool
    fast_attention: bool

    @classmethod
    def now(cls) -> _TorchState:
        import torch  # not above, so that `unchanged` can be around its first import

        return cls(
            threads=torch.get_num_threads(),
            tf32=torch.backends.cudnn.allow_tf32,
            fast_attention=torch.backends.mha.get_fastpath_enabled(),
        )

    def restore(self) -> None:
        import torch

        torch.set_num_threads(self.threads)
        torch.backends.cudnn.allow_tf32 = self.tf32
        torch.backends.mha.set_fastpath_enabled(self.fast_attention)


_before: _TorchState | None = None


def borrow() -> None:
    """Note how torch is set, unless another Classifier is open and has done so."""
    global _borrowers, _before
    with _lock:
        if not _borrowers:
            _before = _TorchState.now()
        _borrowers += 1


def give_back() -> None:
    """Set torch as it was before the first `borrow`, once each of them has been given back."""
    global _borrowers
    with _lock:
        _borrowers -= 1
        if not _borrowers and _before is not None:
            _before.restore()


@contextlib.contextmanager
def unchanged() -> Iterator[None]:
    """Put back what imports and the loading of a model change: variables of the environment, filters of warnings,
    torch's random state, and the root logger, which `logging.info` configures where it has no handler."""
    torch_before = sys.modules.get("torch")
    random = torch_before.random.get_rng_state() if torch_before else None
    filters, variables = list(warnings.filters), {name: os.environ.get(name) for name in _VARIABLES}
    guard = logging.NullHandler()
    logging.root.addHandler(guard)
    try:
        yield
    finally:
        logging.root.removeHandler(guard)
        if torch_before and random is not None:
            torch_before.random.set_rng_state(random)
        for added in [filter for filter in warnings.filters if filter not in filters]:
            warnings.filters.remove(added)  # type: ignore[attr-defined]
        for name, value in variables.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


class Origin:
    """Remembers the process in which it was created."""

    def __init__(self) -> None:
        self._forks = _forks

    @property
    def is_copy(self) -> bool:
        """Whether this is another process, forked from that one."""
        return self._forks != _forks


def _note_fork() -> None:
    global _forks, _lock, _borrowers
    _forks += 1
    _lock, _borrowers = threading.Lock(), 0  # another thread may have held the lock, and is not in this process


os.register_at_fork(after_in_child=_note_fork)
