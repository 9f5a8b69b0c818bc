"""Features against two independent implementations, on real recordings and on signals chosen to be hard."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import TESTS
from transformers import ASTFeatureExtractor
from transformers.audio_utils import mel_filter_bank

from jaxprune import features
from jaxprune.audio import load_audio, pad_batch
from jaxprune.features import STATIC, STATISTICS, fit_frames, frame_count, log_mel, model_input, normalize, sample_count

RECORDINGS = sorted(path for path in (TESTS / "recordings").iterdir() if path.suffix != ".md")
FLOOR = -15.942385


def synthetic(name: str) -> np.ndarray:
    rng = np.random.default_rng(0)
    time = np.arange(16000) / 16000
    signals = {
        "noise": rng.normal(0, 0.1, 16000),
        "near silence": rng.normal(0, 1e-5, 16000),
        "one-bit": 2.0**-15 * (time % 0.01 < 0.005),
        "tone over faint noise": 0.9 * np.sin(880 * np.pi * time) + rng.normal(0, 1e-4, 16000),
        "hum over faint noise": 0.9 * np.sin(120 * np.pi * time) + rng.normal(0, 1e-4, 16000),
        "16-bit tone": np.round(29000 * np.sin(880 * np.pi * time)) / 2**15,
        "faint noise on an offset": 0.5 + rng.normal(0, 1e-3, 16000),
        "int16 scale": rng.normal(0, 3000, 16000),
        "silence after a click": np.eye(1, 16000, 1000)[0],
    }
    return signals[name].astype(np.float32)


@functools.cache
def triangles() -> np.ndarray:
    def mel(hertz):
        return 1127 * math.log(1 + hertz / 700)

    low, step = mel(20), (mel(8000) - mel(20)) / 129
    weights = np.zeros((128, 257))
    for fft_bin in range(1, 257):
        at = mel(fft_bin * 31.25)
        for i in range(128):
            left, centre, right = low + i * step, low + (i + 1) * step, low + (i + 2) * step
            if left < at < right:
                weights[i, fft_bin] = (at - left) / step if at <= centre else (right - at) / step
    return weights


def reference(waveform: np.ndarray) -> np.ndarray:
    """Kaldi's filterbank in float64, one frame after the other."""
    hann = [0.5 - 0.5 * math.cos(2 * math.pi * n / 399) for n in range(400)]
    waveform = waveform.astype(np.float64)
    waveform = waveform - waveform.mean()
    rows = []
    for start in range(0, len(waveform) - 399, 160):
        frame = waveform[start : start + 400]
        frame = frame - frame.mean()
        frame = (frame - 0.97 * frame[[0, *range(399)]]) * hann
        rows.append(np.log(np.maximum(triangles() @ np.abs(np.fft.fft(frame, 512)[:257]) ** 2, 2.0**-23)))
    return np.array(rows)


def assert_matches_float64(waveform: np.ndarray):
    ours, exact = np.asarray(log_mel(waveform), np.float64), reference(waveform)
    assert ours.shape == exact.shape
    error = np.abs(ours - exact)
    assert error.max() < 4e-4  # quiet bins beside loud ones, where a float32 FFT reaches 4e-3; measured 2e-4
    assert error[exact > -10].max(initial=0) < 5e-5  # measured 2e-5


@pytest.fixture(params=[1, 2], ids=["fft", "products"])
def spectrum(request, monkeypatch):
    """Both ways to the spectrum: a CPU's, and that of accelerators and of several devices."""
    monkeypatch.setattr(jax, "device_count", lambda: request.param)


@pytest.mark.usefixtures("spectrum")
@pytest.mark.parametrize("path", RECORDINGS, ids=lambda path: path.name)
def test_log_mel_matches_float64(path):
    assert_matches_float64(load_audio(path).waveform)


@pytest.mark.usefixtures("spectrum")
@pytest.mark.parametrize(
    "name",
    [
        "noise",
        "near silence",
        "one-bit",
        "tone over faint noise",
        "hum over faint noise",
        "16-bit tone",
        "faint noise on an offset",
        "int16 scale",
        "silence after a click",
    ],
)
def test_log_mel_matches_float64_on_hard_signals(name):
    assert_matches_float64(synthetic(name))


@pytest.fixture(scope="module")
def extractor() -> ASTFeatureExtractor:
    with pytest.warns(UserWarning, match="At least one mel filter has all zero values"):  # index 3
        return ASTFeatureExtractor()


@pytest.mark.parametrize("name", ["choir.flac", "crow.wav", "vinyl.wav"])
def test_features_match_the_transformers_extractor(extractor, name):
    waveform = load_audio(TESTS / "recordings" / name).waveform
    audioset = STATISTICS["audioset"]
    theirs = extractor(waveform, sampling_rate=16000, return_tensors="np")["input_values"][0]
    ours = model_input(
        *pad_batch([waveform]), frames=audioset.frames, mean=audioset.mean, std=audioset.std, padding="minimum"
    )[0]
    assert theirs.shape == ours.shape
    real = frame_count(len(waveform))  # beyond it they pad with zeros before normalising, we with the clip's minimum
    np.testing.assert_allclose(ours[:real], theirs[:real], rtol=0, atol=2e-5)


@pytest.mark.parametrize(("seconds", "frames"), [(1, 98), (5, 498), (10, 998)])
def test_frame_counts_of_the_data_sets(seconds, frames):
    samples = 16000 * seconds
    assert frame_count(samples) == frames
    assert jax.eval_shape(log_mel, jax.ShapeDtypeStruct((samples,), jnp.float32)).shape == (frames, 128)


def test_frame_count_of_arrays_and_its_inverse():
    samples = np.array([0, 399, 400, 559, 560, 16000])
    np.testing.assert_array_equal(frame_count(samples), [0, 0, 1, 1, 2, 98])
    np.testing.assert_array_equal(jax.jit(frame_count)(samples), frame_count(samples))
    for frames in (1, 98, 1024):
        assert frame_count(sample_count(frames)) == frames
        assert frame_count(sample_count(frames) - 1) == frames - 1


@pytest.mark.parametrize("mels", [16, 40, 64, 80, 100])
def test_other_numbers_of_mel_bins_are_kaldis_as_transformers_computes_them(mels):
    waveform = load_audio(TESTS / "recordings" / "crow.wav").waveform
    theirs = ASTFeatureExtractor(num_mel_bins=mels)(waveform, sampling_rate=16000, return_tensors="np")
    audioset, real = STATISTICS["audioset"], frame_count(len(waveform))
    ours = model_input(
        *pad_batch([waveform]),
        frames=audioset.frames,
        mean=audioset.mean,
        std=audioset.std,
        padding="minimum",
        mels=mels,
    )
    assert ours.shape == theirs["input_values"].shape
    np.testing.assert_allclose(ours[0, :real], theirs["input_values"][0, :real], rtol=0, atol=2e-5)


@pytest.mark.parametrize("mels", [1, 64, 128, 255])
def test_the_triangles_are_those_of_the_kaldi_setting_of_transformers(mels):
    theirs = mel_filter_bank(
        num_frequency_bins=257,
        num_mel_filters=mels,
        min_frequency=20,
        max_frequency=8000,
        sampling_rate=16000,
        norm=None,
        mel_scale="kaldi",
        triangularize_in_mel_space=True,
    )
    np.testing.assert_allclose(features._mel_filters(mels), theirs[1:-1], atol=1e-12)
    assert not theirs[[0, -1]].any()


@pytest.mark.parametrize("mels", [0, 256])
def test_mel_bins_that_cannot_be_computed_are_refused(mels):
    with pytest.raises(ValueError, match=f"{mels} mel bins cannot be computed; the features have 1 to 255"):
        log_mel(synthetic("noise"), mels=mels)


def test_only_mel_filter_3_is_always_the_floor():
    mel = np.asarray(log_mel(synthetic("noise")))
    np.testing.assert_allclose(mel[:, 3], FLOOR, rtol=0, atol=1e-6)
    assert np.delete(mel, 3, axis=1).max(axis=0).min() > FLOOR + 1


def test_any_leading_dimensions_and_jit_give_the_same():
    clips = np.stack([synthetic("noise"), synthetic("16-bit tone"), synthetic("near silence")])
    single = np.stack([log_mel(clip) for clip in clips])
    np.testing.assert_allclose(log_mel(clips), single, rtol=0, atol=1e-4)
    np.testing.assert_allclose(jax.jit(log_mel)(clips[:, None])[:, 0], single, rtol=0, atol=1e-4)
    np.testing.assert_allclose(jax.vmap(log_mel)(clips), single, rtol=0, atol=1e-4)


def test_a_constant_offset_changes_nothing():
    waveform = np.round(synthetic("noise") * 2**12) / 2**12  # coarse enough for the offset to add exactly
    np.testing.assert_allclose(log_mel(waveform + np.float32(0.25)), log_mel(waveform), rtol=0, atol=2e-5)


@pytest.mark.compiled
@pytest.mark.usefixtures("spectrum")
def test_every_product_asks_for_the_highest_precision():
    with jax.default_matmul_precision("bfloat16"):
        lowered = jax.jit(log_mel).lower(jnp.zeros(16000)).as_text()
    products = [line for line in lowered.splitlines() if "stablehlo.dot_general" in line]
    assert products
    assert all("precision = [HIGHEST, HIGHEST]" in line for line in products)


@pytest.mark.compiled
def test_devices_that_share_clips_send_none_of_them(monkeypatch):
    """XLA would gather all clips for an FFT, so several devices do without."""

    def transforms():
        return "fft" in jax.jit(lambda x: log_mel(x)).lower(jnp.zeros((4, 4000))).as_text()

    assert transforms()
    monkeypatch.setattr(jax, "device_count", lambda: 2)
    assert not transforms()


@pytest.mark.usefixtures("spectrum")
def test_the_gradient_passes_the_rounding():
    waveform, direction = (synthetic(name)[:880].astype(np.float64) for name in ("noise", "int16 scale"))
    direction *= 1e-4
    step = 1e-6
    secant = (reference(waveform + step * direction) - reference(waveform - step * direction)).mean() / (2 * step)
    _, slope = jax.jvp(lambda x: log_mel(x).mean(), *[(jnp.float32(x),) for x in (waveform, direction)])
    np.testing.assert_allclose(slope, secant, rtol=1e-4)


def test_low_precision_input_gives_float32():
    assert log_mel(jnp.zeros((2, 400), jnp.bfloat16)).dtype == jnp.float32


@pytest.mark.parametrize("waveform", [np.ones(16000, np.int16), np.ones(399, np.float32), np.ones((2, 0), np.float32)])
def test_unusable_waveforms_are_refused(waveform):
    with pytest.raises(ValueError, match=r"must be floating point|at least 400 samples"):
        log_mel(waveform)


def test_padding_is_the_clips_own_minimum_over_its_real_frames():
    mel = np.arange(24, dtype=np.float32).reshape(2, 4, 3) + 5
    mel[0, 2:] = -100  # beyond clip 0's real frames: never read
    mel[1, 3] = np.nan
    fitted = np.asarray(fit_frames(mel, frames=5, valid=np.array([2, 3])))
    np.testing.assert_array_equal(fitted[0, :2], mel[0, :2])
    np.testing.assert_array_equal(fitted[0, 2:], np.full((3, 3), 5))
    np.testing.assert_array_equal(fitted[1, :3], mel[1, :3])
    np.testing.assert_array_equal(fitted[1, 3:], np.full((2, 3), 17))


def test_long_clips_are_cut_and_exact_ones_untouched():
    mel = np.random.default_rng(0).normal(size=(2, 7, 3)).astype(np.float32)
    np.testing.assert_array_equal(fit_frames(mel, frames=7), mel)
    np.testing.assert_array_equal(fit_frames(mel, frames=4), mel[:, :4])
    with pytest.raises(ValueError, match="frames is 0"):
        fit_frames(mel, frames=0)


def test_a_batch_gives_what_each_clip_gives_alone():
    clips = [load_audio(path).waveform for path in RECORDINGS[:4]]
    esc50 = STATISTICS["esc50"]
    batch, lengths = pad_batch(clips)
    for row, length in zip(batch, lengths, strict=True):
        row[length:] = np.nan  # what lies beyond a clip must not matter
    mapped = jax.jit(model_input, static_argnames=STATIC)(
        batch, lengths, frames=esc50.frames, mean=esc50.mean, std=esc50.std, padding="minimum"
    )
    assert mapped.shape == (4, 512, 128)
    assert {frame_count(len(clip)) > 512 for clip in clips} == {True, False}  # some are cut, some padded
    for row, clip in zip(mapped, clips, strict=True):
        alone = normalize(fit_frames(log_mel(clip), frames=512), mean=-6.6268077, std=5.358466)
        np.testing.assert_allclose(row, alone, rtol=0, atol=2e-5)


def test_normalisation_divides_by_twice_the_deviation():
    np.testing.assert_allclose(normalize(jnp.array([[-4.0, 8.0]]), mean=-4.0, std=3.0), [[0, 2]])


def test_audioset_statistics_are_those_of_the_transformers_extractor(extractor):
    ours = STATISTICS["audioset"]
    assert (ours.mean, ours.std, ours.frames) == (extractor.mean, extractor.std, extractor.max_length)


def test_zero_padding_is_log_mel_0_and_leaves_the_clips_own_frames_alone():
    mel = np.random.default_rng(0).normal(-5, 2, (2, 4, 3)).astype(np.float32)
    fitted = np.asarray(fit_frames(mel, frames=6, valid=np.array([2, 4]), padding="zero"))
    for row, valid in zip(range(2), (2, 4), strict=True):
        np.testing.assert_array_equal(fitted[row, :valid], mel[row, :valid])
        np.testing.assert_array_equal(fitted[row, valid:], np.zeros((6 - valid, 3)))


@pytest.mark.parametrize("seconds", [0.025, 0.1, 1.0, 5.11])
def test_zero_padding_is_that_of_the_hugging_face_extractor(seconds):
    waveform = synthetic("noise")[: int(seconds * 16000)]
    esc50 = STATISTICS["esc50"]
    theirs = ASTFeatureExtractor(max_length=512, mean=esc50.mean, std=esc50.std)(
        waveform, sampling_rate=16000, return_tensors="np"
    )["input_values"]
    batch = pad_batch([waveform])
    ours = model_input(*batch, frames=512, mean=esc50.mean, std=esc50.std, padding="zero")
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-4)
