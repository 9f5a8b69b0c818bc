"""Log-mel features in float64 PyTorch, straight from the recipe, to check `jaxprune.log_mel` against.

They share no code with `jaxprune.features`, which folds the same steps into one matrix product.
"""

import math

import torch
from torch import Tensor


def model_input(waveform: Tensor, *, frames: int, mean: float, std: float, padding: str, mels: int = 128) -> Tensor:
    """A clip's normalised log-mel `(frames, mels)`: cut, or filled with its minimum or with 0, as `padding` says."""
    mel = log_mel(waveform, mels=mels)[:frames]
    fill = {"minimum": mel.min(), "zero": torch.zeros((), dtype=mel.dtype)}[padding]
    missing = fill.expand(frames - len(mel), mels)
    return (torch.cat([mel, missing]) - mean) / (2 * std)


def log_mel(waveform: Tensor, *, mels: int = 128) -> Tensor:
    """Kaldi's log-mel filterbank of a 16 kHz mono clip `(samples,)`, `(t, mels)` float64.

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
    return (power @ mel_triangles(mels)).clamp_min(floor).log()


def mel_triangles(mels: int = 128) -> Tensor:
    """Weight of each of the 257 FFT bins in each mel bin, `(257, mels)` float64."""
    low, high = (1127 * math.log(1 + hertz / 700) for hertz in (20, 8000))
    step = (high - low) / (mels + 1)
    mel = 1127 * torch.log1p(torch.arange(257, dtype=torch.float64) * (16000 / 512) / 700)
    columns = []
    for i in range(mels):
        left, centre, right = (low + (i + j) * step for j in range(3))
        up, down = (mel - left) / (centre - left), (right - mel) / (right - centre)
        columns.append(torch.minimum(up, down).clamp_min(0))
    columns = torch.stack(columns, dim=1)
    columns[256] = 0  # Kaldi leaves out the Nyquist bin
    return columns
