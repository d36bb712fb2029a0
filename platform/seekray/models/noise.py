"""Random numbers that are a function of where they are used, so that nothing depends on who draws them.

A number is a hash of (stream, row, place in the row). A training step's noise depends on the step and on the
numbers of the rows that it stands beside, so N workers draw what one draws; a generated row depends on the
seed and its own number, so it is the same in any part, on any worker. SplitMix64's finaliser (Steele, Lea,
Flood, OOPSLA 2014) in wrapping 64-bit integers.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def _signed(value: int) -> int:
    value &= 2**64 - 1
    return value - 2**64 if value >= 2**63 else value


_GOLDEN = _signed(0x9E3779B97F4A7C15)
_ROW = _signed(0xD1B54A32D192ED03)
_FIRST, _SECOND = _signed(0xBF58476D1CE4E5B9), _signed(0x94D049BB133111EB)


def _shifted(x: Tensor, bits: int) -> Tensor:
    """Logical shift to the right."""
    shifted: Tensor = x >> bits
    return shifted.bitwise_and_(2 ** (64 - bits) - 1)


def _mixed(x: Tensor) -> Tensor:
    """In place, which spares a fifth of the time."""
    x.bitwise_xor_(_shifted(x, 30)).mul_(_FIRST)
    x.bitwise_xor_(_shifted(x, 27)).mul_(_SECOND)
    return x.bitwise_xor_(_shifted(x, 31))


def _hashed(stream: int, rows: Tensor, size: int) -> Tensor:
    """int64 (B, size), each bit as good as random."""
    start = rows.long() * _ROW + _signed(stream * _GOLDEN + 1)  # (B,)
    return _mixed(start[:, None] + torch.arange(1, size + 1, device=rows.device) * _GOLDEN)


def uniform(stream: int, rows: Tensor, size: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """(B, size) in the open interval (0, 1). stream: any integer; rows: int64 (B,) numbers of rows."""
    return _open(_hashed(stream, rows, size), dtype)


def _open(bits: Tensor, dtype: torch.dtype) -> Tensor:
    """23 bits and a half: exact in float32, never 0 or 1."""
    return _shifted(bits, 41).to(dtype).add_(0.5).mul_(2.0**-23)


def normal(stream: int, rows: Tensor, size: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """(B, size) of the standard normal distribution (Box and Muller, 1958): two of each hash."""
    half = -(-size // 2)
    bits = _hashed(stream, rows, half)
    first = _open(bits, dtype)
    second = bits.bitwise_and_(2**24 - 1).to(dtype).mul_(2 * math.pi * 2.0**-24)
    radius = first.log_().mul_(-2).sqrt_()
    return torch.cat([torch.cos(second).mul_(radius), second.sin_().mul_(radius)], 1)[:, :size]


def stream(*parts: int) -> int:
    """One stream of several numbers, such as a seed and what the numbers are for."""
    found = 0
    for part in parts:
        found = (found ^ (part & (2**64 - 1))) * 0x9E3779B97F4A7C15 + 0x632BE59BD9B4E019
        found = (found ^ (found >> 29)) & (2**64 - 1)
    return found
