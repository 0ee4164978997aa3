"""Draws: (t, ε) pairs that all classes of an image share (paper, section 3.3).

A draw is a function of (seed, image content, draw index) alone. It does not depend on batch size, order of classes,
number of workers or resumption. The first n draws of a longer schedule are a schedule of n.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from math import prod

import numpy as np
import torch
from torch import Tensor

from ..errors import InputError
from .schedules import Schedule

_NOISE_STREAM, _TIME_STREAM = 0, 1


def _generator(seed: int, key: int, draw: int, stream: int) -> np.random.Generator:
    # Philox (Salmon et al. 2011) encrypts a counter, so that any draw is computed without those before it. The lowest
    # word of the counter counts the numbers within a draw.
    # An array, because a list with a number from 2^63 on would pass through float64 and lose its low bits.
    words = np.array([seed % 2**64, key % 2**64], dtype=np.uint64)
    return np.random.Generator(np.random.Philox(key=words, counter=[0, draw, stream, 0]))


def van_der_corput(index: int) -> float:
    """Return the index-th number of the van der Corput sequence in base 2: 0, ½, ¼, ¾, ⅛ …"""
    result, weight = 0.0, 0.5
    while index:
        result += weight * (index & 1)
        index, weight = index >> 1, weight / 2
    return result


@dataclass(frozen=True)
class Timesteps:
    """Choice of the timesteps of draws (paper, section 4.1 and figure 4). All kinds are nested.

    Args:
        kind: "even": the van der Corput sequence from its second term on. It never reaches the noise-free end, and its
            first 2^k - 1 terms are exactly evenly spaced. "random": uniform, per image. "fixed": `values` in turn.
        window: Part (low, high) of the schedule, as fractions, for "even" and "random".
        values: Timesteps for "fixed".
    """

    kind: str = "even"
    window: tuple[float, float] = (0.0, 1.0)
    values: tuple[float, ...] = field(default=())

    def __post_init__(self) -> None:
        low, high = self.window
        if not 0 <= low < high <= 1:
            raise InputError(f"the window of timesteps must satisfy 0 <= low < high <= 1; got {low}, {high}")
        if self.kind == "fixed" and not self.values:
            raise InputError("a fixed list of timesteps needs at least one timestep")
        if self.kind not in ("even", "random", "fixed"):
            raise InputError(
                f"timesteps {self.kind!r} are not known; use even, random, middle:WIDTH or a list as 250,500"
            )

    @classmethod
    def parse(cls, text: str) -> Timesteps:
        """Parse "even", "random", "even:0.1-0.9", "middle:0.5" (the middle half of the schedule), or "250,500,750".

        Raises:
            InputError: The text has another form.
        """
        kind, colon, argument = text.strip().partition(":")
        try:
            if kind == "middle":
                return cls("even", (0.5 - float(argument) / 2, 0.5 + float(argument) / 2))
            if colon:
                low, high = argument.split("-")
                return cls(kind, (float(low), float(high)))
            if re.fullmatch(r"[\d.,\s]+", text):
                return cls("fixed", values=tuple(float(v) for v in text.split(",")))
        except InputError:
            raise
        except ValueError as e:
            raise InputError(f"timesteps {text!r} cannot be read; use even, even:0.1-0.9, middle:0.5 or 250,500") from e
        return cls(kind)

    def __str__(self) -> str:
        """Return the text that `parse` accepts."""
        if self.kind == "fixed":
            return ",".join(map(_decimal, self.values))
        return self.kind if self.window == (0, 1) else f"{self.kind}:{'-'.join(map(_decimal, self.window))}"

    def __call__(self, schedule: Schedule, draws: Sequence[int], seed: int = 0, key: int = 0) -> Tensor:
        """Return t of the draws, (N,), in the schedule's dtype, on the CPU."""
        if self.kind == "fixed":
            times = torch.tensor([self.values[d % len(self.values)] for d in draws], dtype=torch.float64)
            schedule(times)  # raises if a time lies outside
            return times.to(schedule.timesteps(torch.zeros(1)).dtype)
        if self.kind == "even":
            u = [van_der_corput(d + 1) for d in draws]
        else:
            u = [_generator(seed, key, d, _TIME_STREAM).random() for d in draws]
        low, high = self.window
        return schedule.timesteps(low + (high - low) * torch.tensor(u, dtype=torch.float64))


def _decimal(value: float) -> str:
    return np.format_float_positional(value, trim="-")


@dataclass(frozen=True)
class Draws:
    """The draws of a run.

    Args:
        timesteps: Choice of the timesteps.
        seed: Seed of the noise, and of random timesteps.
        given: Noise to use instead, (N, *), float32: row i is the noise of draw i.
    """

    timesteps: Timesteps = field(default_factory=Timesteps)
    seed: int = 0
    given: Tensor | None = None

    def times(self, schedule: Schedule, draws: Sequence[int], key: int) -> Tensor:
        """Return t, (N,), of these draws for the image with this key, in the schedule's dtype, on the CPU."""
        return self.timesteps(schedule, draws, self.seed, key)

    def noise(self, draw: int, key: int, shape: Sequence[int]) -> Tensor:
        """Return ε of one draw for the image with this key: standard normal, float32, on the CPU."""
        if self.given is not None:
            return self.given[draw]
        values = _generator(self.seed, key, draw, _NOISE_STREAM).standard_normal(prod(shape), dtype=np.float32)
        return torch.from_numpy(values).view(*shape)
