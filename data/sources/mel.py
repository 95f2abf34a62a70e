"""Sound → log-mel frames.

A frame is n samples under a Hann window w; its power spectrum P_k = |Σ_t w_t x_t exp(−2πi k t / n_fft)|², k = 0 …
n_fft/2, where n_fft is the next power of two; its mel energies E_m = Σ_k H_mk P_k with triangular filters whose peaks
(H = 1) are evenly spaced on the HTK mel scale, mel(f) = 2595 log10(1 + f/700), from 0 to half the sample rate; and the
value kept is ln max(E_m, 1e-10).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

FLOOR = 1e-10


@dataclass(frozen=True)
class LogMel:
    """length, hop: samples per frame and from one frame's start to the next's."""

    sample_rate: int
    mels: int
    length: int
    hop: int

    def num_frames(self, num_samples: int) -> int:
        return max(0, 1 + (num_samples - self.length) // self.hop)

    def frames(self, sound: np.ndarray) -> np.ndarray:
        """(num_samples,) → (num_frames, mels) float32, nats."""
        if self.num_frames(len(sound)) == 0:
            return np.zeros((0, self.mels), np.float32)
        cut = np.lib.stride_tricks.sliding_window_view(sound, self.length)[:: self.hop]
        energy = self.power(cut) @ self.filters.T
        return np.log(np.maximum(energy, FLOOR)).astype(np.float32)

    def power(self, frames: np.ndarray) -> np.ndarray:
        """(n, length) → (n, n_fft/2 + 1): the power spectra."""
        spectrum = np.fft.rfft(frames * self.window, self.fft_length, axis=1)
        return np.square(spectrum.real) + np.square(spectrum.imag)

    @property
    def fft_length(self) -> int:
        return 1 << (self.length - 1).bit_length()

    @cached_property
    def window(self) -> np.ndarray:
        """(length,): Hann, periodic."""
        return 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(self.length) / self.length)

    @cached_property
    def filters(self) -> np.ndarray:
        """(mels, n_fft/2 + 1): triangles over frequency."""
        edges = hertz(np.linspace(0, mel(self.sample_rate / 2), self.mels + 2))
        frequency = np.fft.rfftfreq(self.fft_length, 1 / self.sample_rate)
        rising = (frequency - edges[:-2, None]) / (edges[1:-1] - edges[:-2])[:, None]
        falling = (edges[2:, None] - frequency) / (edges[2:] - edges[1:-1])[:, None]
        return np.maximum(0, np.minimum(rising, falling))

    @property
    def bounds(self) -> tuple[float, float]:
        """Of the values, for sound in [−1, 1]; above: Parseval, Σ_k P_k ≤ n_fft Σ_t w_t² x_t², |x| < 2 resampled."""
        return float(np.log(FLOOR)), float(np.log(4 * self.fft_length * np.square(self.window).sum()))


def mel(frequency: np.ndarray | float) -> np.ndarray:
    return np.asarray(2595 * np.log10(1 + np.asarray(frequency) / 700))


def hertz(mels: np.ndarray) -> np.ndarray:
    return np.asarray(700 * (10 ** (mels / 2595) - 1))
