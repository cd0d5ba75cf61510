"""CUDA streams and events, with the types that torch leaves out. On a CPU there are none."""

from __future__ import annotations

import torch


def stream_on(device: str) -> torch.cuda.Stream | None:
    """A new stream, which begins with what has been launched on the device so far; None on a CPU."""
    if not device.startswith("cuda"):
        return None
    stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    stream.wait_stream(torch.cuda.current_stream(device))
    return stream


def mark(stream: torch.cuda.Stream | None) -> torch.cuda.Event | None:
    """An event that comes to pass when `stream` has done all that is in it by now; None for None.

    Who waits for it on the host sleeps meanwhile: cores are for decoding.
    """
    if stream is None:
        return None
    event = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]
    event.record(stream)
    return event
