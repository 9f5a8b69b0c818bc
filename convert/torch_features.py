"""Log-mel features once more, in float64 PyTorch, straight from the recipe: what `jaxprune.log_mel` is checked against.

Written apart from `jaxprune.features`, which folds the same steps into one matrix product.
"""

import math

import torch
from torch import Tensor


def log_mel(waveform: Tensor) -> Tensor:
    """Kaldi's log-mel filterbank of a 16 kHz mono clip `(samples,)`, `(t, 128)` float64.

    The clip's mean is subtracted; then per 25 ms frame, 10 ms apart: mean removal, pre-emphasis 0.97 with the first
    sample as its own predecessor, symmetric Hann window, 512-point power spectrum, 128 triangles from 20 Hz to 8 kHz.
    """
    clip = waveform.double() - waveform.double().mean()
    frames = clip.unfold(0, 400, 160)
    frames = frames - frames.mean(dim=1, keepdim=True)
    before = torch.cat([frames[:, :1], frames[:, :-1]], dim=1)
    window = torch.hann_window(400, periodic=False, dtype=torch.float64)
    power = torch.fft.rfft((frames - 0.97 * before) * window, n=512).abs() ** 2
    floor = torch.finfo(torch.float32).eps
    return (power @ mel_triangles()).clamp_min(floor).log()


def mel_triangles() -> Tensor:
    """Weight of each of the 257 FFT bins in each of 128 mel bins, `(257, 128)` float64."""
    low, high = (1127 * math.log(1 + hertz / 700) for hertz in (20, 8000))
    step = (high - low) / 129
    mel = 1127 * torch.log1p(torch.arange(257, dtype=torch.float64) * (16000 / 512) / 700)
    columns = []
    for i in range(128):
        left, centre, right = (low + (i + j) * step for j in range(3))
        up, down = (mel - left) / (centre - left), (right - mel) / (right - centre)
        columns.append(torch.minimum(up, down).clamp_min(0))
    columns = torch.stack(columns, dim=1)
    columns[256] = 0  # Kaldi leaves out the Nyquist bin
    return columns
