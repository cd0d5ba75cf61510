"""Damage that a format's structure allows: files that parse far enough to reach a decoder. One seed, one file."""

import random
import re
import struct
import sys
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[2]))
from tests.support.corpus import GOOD

Mutation = Callable[[random.Random, bytes], bytes]
WEIRD = (0, 1, 2, 3, 4, 7, 8, 15, 16, 255, 256, 5000, 2**15 - 1, 2**15, 2**16 - 1, 2**16, 2**31 - 1, 2**31, 2**32 - 1)
PNG_START = b"\x89PNG\r\n\x1a\n"
BOMB = zlib.compress(bytes(30_000_000), 9)


def poke(dice: random.Random, data: bytes, at: int, size: int, order: str = "<") -> bytes:
    """`data` with a number of `size` bytes at `at` that is a limit of something, or any."""
    value = dice.choice((*WEIRD, dice.getrandbits(32))) % 256**size
    number = struct.pack(order + {1: "B", 2: "H", 4: "L"}[size], value)
    return data[:at] + number + data[at + size :]


def garble(dice: random.Random, data: bytes, start: int = 0, most: int = 8) -> bytes:
    """`data` with up to `most` bytes from `start` on replaced."""
    changed = bytearray(data)
    for _ in range(dice.randint(1, most)):
        if len(changed) > start:
            changed[dice.randrange(start, len(changed))] = dice.choice((0, 255, dice.getrandbits(8)))
    return bytes(changed)


def shuffle(dice: random.Random, pieces: list[bytes]) -> list[bytes]:
    """`pieces` with one dropped, doubled, moved or swapped with another."""
    at, other = dice.randrange(len(pieces)), dice.randrange(len(pieces))
    changed = list(pieces)
    what = dice.randrange(4)
    if what == 0:
        del changed[at]
    elif what == 1:
        changed[at:at] = [changed[at]] * dice.choice((1, 2, 40))
    elif what == 2:
        changed.insert(other, changed.pop(at))
    else:
        changed[at], changed[other] = changed[other], changed[at]
    return changed


def tiff_block(dice: random.Random) -> bytes:
    """An Exif or TIFF header with directories that loop, nest, lie about their counts or point outside."""
    tags = (0x10F, 0x112, 0x8769, 0x8825, 0xA005, 0x927C, 0x111, 0x201, 0x202)
    entries = [
        struct.pack("<HHLL", dice.choice(tags), dice.randrange(14), dice.choice(WEIRD), dice.choice((8, *WEIRD)))
        for _ in range(dice.choice((1, 3, 30)))
    ]
    first = struct.pack("<H", dice.choice((len(entries), 65535, 0))) + b"".join(sorted(entries))
    return b"II*\0\x08\0\0\0" + first + struct.pack("<L", dice.choice((8, 0, 2**32 - 1)))


def jpeg_segments(data: bytes) -> list[bytes]:
    """Marker segments, each scan with its entropy-coded data (ITU-T T.81, B.1); what follows the last is left off."""
    segments, at = [data[:2]], 2
    while at + 4 <= len(data) and data[at] == 0xFF and data[at + 1] != 0xD9:
        end = at + 2 + int.from_bytes(data[at + 2 : at + 4], "big")
        if data[at + 1] == 0xDA:
            after = re.compile(rb"\xff[^\x00\xd0-\xd7]").search(data, end)
            end = after.start() if after else len(data)
        segments.append(data[at:end])
        at = end
    return [*segments, b"\xff\xd9"]


def fuzz_jpeg(dice: random.Random, data: bytes) -> tuple[str, bytes]:
    parts = jpeg_segments(data)
    what = dice.choice(
        ["order", "lengths", "frame", "tables", "scan", "restart", "bomb", "exif", "sof", "entropy", "icc", "adobe"]
    )
    frame = next((n for n, part in enumerate(parts) if part[1] in b"\xc0\xc1\xc2"), 0)
    scans = [n for n, part in enumerate(parts) if part[1] == 0xDA] or [0]
    at = {"frame": frame, "sof": frame}.get(what, dice.choice(scans))
    if what == "order":
        parts = shuffle(dice, parts)
    elif what == "lengths":
        at = dice.randrange(1, len(parts) - 1) if len(parts) > 2 else 0
        parts[at] = poke(dice, parts[at], 2, 2, ">")
    elif what == "frame":  # precision, height, width, components, their sampling and tables
        offset, size = dice.choice(((4, 1), (5, 2), (7, 2), (9, 1), (11, 1), (12, 1), (14, 1), (17, 1)))
        parts[at] = poke(dice, parts[at], offset, size, ">")
    elif what == "sof":
        parts[at] = b"\xff" + bytes([dice.choice((0xC0, 0xC1, 0xC2, 0xC3, 0xC5, 0xC9, 0xCA, 0xCB))]) + parts[at][2:]
    elif what == "tables":
        parts = [garble(dice, part, 4) if part[1] in b"\xc4\xdb" and dice.random() < 0.5 else part for part in parts]
    elif what == "scan":
        parts[at] = garble(dice, parts[at][:14], 4, 3) + parts[at][14:]
    elif what == "restart":
        parts.insert(1, b"\xff\xdd\0\4" + struct.pack(">H", dice.choice((0, 1, 2, 7, 65535))))
        for _ in range(dice.choice((0, 1, 50))):
            cut = dice.randrange(14, max(15, len(parts[-2])))
            parts[-2] = parts[-2][:cut] + bytes([0xFF, 0xD0 + dice.randrange(8)]) + parts[-2][cut:]
    elif what == "bomb":
        parts[at:at] = [parts[at]] * min(dice.choice((10, 300, 3000)), 1_000_000 // len(parts[at]))
    elif what == "entropy":
        parts[at] = garble(dice, parts[at], 14, 60)
    else:
        marker, start = {"exif": (0xE1, b"Exif\0\0"), "icc": (0xE2, b"ICC_PROFILE\0")}.get(what, (0xEE, b"Adobe\0d"))
        more = tiff_block(dice) if what == "exif" else dice.randbytes(dice.choice((0, 2, 5, 200)))
        parts.insert(1, struct.pack(">BBH", 255, marker, len(start + more) + 2) + start + more)
    return what, b"".join(parts)


def chunk(name: bytes, body: bytes) -> bytes:
    """A PNG chunk with its right length and checksum."""
    return struct.pack(">L", len(body)) + name + body + struct.pack(">L", zlib.crc32(name + body))


def fuzz_png(dice: random.Random, data: bytes) -> tuple[str, bytes]:
    parts, at = list[bytes](), 8
    while at + 12 <= len(data):
        size = int.from_bytes(data[at : at + 4], "big")
        parts.append(data[at : at + 12 + size])
        at += 12 + size
    named = {part[4:8]: n for n, part in enumerate(parts)}
    idat = b"".join(part[8:-4] for part in parts if part[4:8] == b"IDAT")
    what = dice.choice(["order", "ihdr", "kind", "idat", "pixels", "bomb", "exif", "lengths", "extra", "animated"])
    if what == "order":
        parts = shuffle(dice, parts)
    elif what in ("ihdr", "kind"):
        size_or_kind = ((0, 4), (4, 4)) if what == "ihdr" else ((8, 1), (9, 1), (10, 1), (11, 1), (12, 1))
        parts[0] = chunk(b"IHDR", poke(dice, parts[0][8:-4], *dice.choice(size_or_kind), ">"))
        if dice.random() < 0.3:
            parts[0] = chunk(b"IHDR", struct.pack(">LLBBBBB", 90, 70, dice.choice((1, 2, 4, 8, 16)), 3, 0, 0, 1))
    elif what == "idat":
        cut = dice.randrange(len(idat) + 1)
        parts[named[b"IDAT"]] = chunk(b"IDAT", dice.choice((idat[:cut], garble(dice, idat), idat[cut:], b"", BOMB)))
    elif what == "pixels":
        raw = garble(dice, zlib.decompress(idat), 0, 300)
        parts[named[b"IDAT"]] = chunk(b"IDAT", zlib.compress(raw[: dice.choice((len(raw), len(raw) // 2, 1))]))
    elif what == "lengths":
        at = dice.randrange(len(parts))
        parts[at] = poke(dice, parts[at], 0, 4, ">")
    elif what == "animated":
        control = struct.pack(">LLLLLHHBB", 0, dice.choice(WEIRD), 9, dice.choice(WEIRD), 0, 1, 0, 3, 2)
        parts[1:1] = [chunk(b"acTL", struct.pack(">LL", dice.choice(WEIRD), 0)), chunk(b"fcTL", control)]
    else:
        texts = [(b"iCCP", b"x\0\0" + BOMB), (b"zTXt", b"x\0\0" + BOMB), (b"iTXt", b"x\0\1\0\0\0" + BOMB)]
        odd = [(name, dice.randbytes(dice.choice((0, 1, 6, 800)))) for name in (b"tRNS", b"PLTE", b"gAMA", b"cHRM")]
        choice = {"bomb": texts, "exif": [(b"eXIf", tiff_block(dice))], "extra": [*odd, (b"sBIT", b"\xff" * 4)]}[what]
        parts.insert(dice.randrange(1, len(parts)), chunk(*dice.choice(choice)))
    return what, PNG_START + b"".join(parts)


def fuzz_webp(dice: random.Random, data: bytes) -> tuple[str, bytes]:
    parts, at = list[bytes](), 12
    while at + 8 <= len(data):
        end = at + 8 + int.from_bytes(data[at + 4 : at + 8], "little")
        parts.append(data[at : end + end % 2])
        at = end + end % 2
    what = dice.choice(["order", "riff", "lengths", "header", "canvas", "animated", "data"])
    at = dice.randrange(len(parts))
    if what == "order":
        parts = shuffle(dice, parts)
    elif what == "lengths":
        parts[at] = poke(dice, parts[at], 4, 4)
    elif what == "header":  # the frame tag and size of VP8, the signature and size of VP8L
        parts[-1] = garble(dice, parts[-1][:20], 8, 3) + parts[-1][20:]
    elif what in ("canvas", "animated"):
        canvas = bytes([dice.choice((0, 2, 16, 18, 255)), 0, 0, 0]) + dice.randbytes(1) + b"\0\0" + dice.randbytes(3)
        parts.insert(0, b"VP8X" + struct.pack("<L", len(canvas)) + canvas)
        if what == "animated":
            frame = dice.randbytes(12) + bytes(4) + parts[-1]
            parts[1:] = [b"ANIM\6\0\0\0" + bytes(6), b"ANMF" + struct.pack("<L", len(frame)) + frame]
    elif what == "data":
        parts[at] = garble(dice, parts[at], 8, 60)
    body = b"WEBP" + b"".join(parts)
    size = dice.choice(WEIRD) if what == "riff" else len(body)
    return what, b"RIFF" + struct.pack("<L", size) + body


def fuzz_gif(dice: random.Random, data: bytes) -> tuple[str, bytes]:
    frame = data.rfind(b"\x2c", 0, 900)
    spots = {
        "screen": (6, 2),
        "table": (10, 1),
        "place": (frame + 1, 2),
        "size": (frame + 5, 2),
        "flags": (frame + 9, 1),
    }
    what = dice.choice([*spots, "codes", "blocks"])
    if what in spots:
        return what, poke(dice, data, *spots[what])
    if what == "blocks":
        return what, data[:frame] + b"\x21\xff\x0bNETSCAPE2.0\3\1\0\0\0" * 3000 + data[frame:]
    return what, garble(dice, data, frame + 10, 20)


def fuzz_tiff(dice: random.Random, data: bytes) -> tuple[str, bytes]:
    first = int.from_bytes(data[4:8], "little")
    count = int.from_bytes(data[first : first + 2], "little")
    what = dice.choice(["loop", "count", "tag", "type", "length", "value", "compression", "whole"])
    entry = first + 2 + 12 * dice.randrange(max(count, 1))
    if what == "loop":
        return what, data[: first + 2 + 12 * count] + struct.pack("<L", first) + data[first + 6 + 12 * count :]
    if what == "compression":
        entry = data.find(b"\x03\x01\x03\x00", first)
        value = struct.pack("<H", dice.choice((2, 3, 4, 5, 6, 7, 8, 32773, 34712, 50000, 50001, 0)))
        return what, data[: entry + 8] + value + data[entry + 10 :]
    if what == "whole":
        return what, tiff_block(dice) + data
    spots = {"count": (first, 2), "tag": (entry, 2), "type": (entry + 2, 2), "length": (entry + 4, 4)}
    return what, poke(dice, data, *spots.get(what, (entry + 8, 4)))


def fuzz_bmp(dice: random.Random, data: bytes) -> tuple[str, bytes]:
    what, *spot = dice.choice(
        (
            ("offset", 10, 4),
            ("header", 14, 4),
            ("width", 18, 4),
            ("height", 22, 4),
            ("bits", 28, 2),
            ("compression", 30, 4),
            ("colours", 46, 4),
        )
    )
    return what, poke(dice, data, *spot)


def fuzz_any(dice: random.Random, data: bytes, other: bytes) -> tuple[str, bytes]:
    """Damage that knows no structure, and files that are two things at once."""
    what = dice.choice(["flips", "cut", "insert", "erase", "zeros", "repeat", "splice", "polyglot"])
    a, b = sorted(dice.randrange(len(data) + 1) for _ in range(2))
    cut = dice.randrange(len(other) + 1)
    if what == "flips":
        return what, garble(dice, data, 0, dice.choice((1, 10, 200)))
    changed = {
        "cut": data[:a],
        "insert": data[:a] + dice.randbytes(dice.choice((1, 100, 5000))) + data[a:],
        "erase": data[:a] + data[b:],
        "zeros": data[:a] + bytes(b - a) + data[b:],
        "repeat": data[:b] + data[a:],
        "splice": data[:a] + other[cut:],
        "polyglot": dice.choice((data + other, other[:4] + data, data[:b] + other + data[b:], b"<html>" + data)),
    }
    return what, changed[what]


FUZZERS = {"jpeg": fuzz_jpeg, "png": fuzz_png, "webp": fuzz_webp, "gif": fuzz_gif, "tiff": fuzz_tiff, "bmp": fuzz_bmp}


def seeds() -> dict[str, list[tuple[str, bytes]]]:
    """Healthy files of every kind, (suffix, bytes), by format; a kind of `GOOD` is named format-more."""
    found: dict[str, list[tuple[str, bytes]]] = {}
    for kind, make in GOOD.items():
        if "1500" not in kind and "641" not in kind:
            for variant in range(2):
                found.setdefault(kind.split("-")[0], []).append(make(np.random.default_rng([variant, len(kind)])))
    return found


def fuzzed(number: int, seed: int, healthy: dict[str, list[tuple[str, bytes]]]) -> tuple[str, str, bytes]:
    """The fuzzed file `number`: how it was made (`format-damage`), its suffix and its bytes."""
    dice = random.Random(f"{seed} {number}")
    weights = {"jpeg": 6, "png": 5, "webp": 5, "gif": 2, "tiff": 2, "bmp": 1}
    name = dice.choices(list(healthy), [weights.get(name, 0.4) for name in healthy])[0]
    suffix, data = dice.choice(healthy[name])
    _, other = dice.choice(healthy[name if dice.random() < 0.5 else dice.choice(list(healthy))])
    fuzzer = FUZZERS.get(name)
    what = "plain"
    if fuzzer and dice.random() < 0.75:
        what, data = fuzzer(dice, data)
        if dice.random() < 0.1:
            what, data = f"{what}-more", fuzz_any(dice, data, other)[1]
    else:
        what, data = fuzz_any(dice, data, other)
    return f"{name}-{what}", suffix, data
