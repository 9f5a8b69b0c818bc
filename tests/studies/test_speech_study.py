"""Speech and kept patches: where a burst sounds, and shares by a plain count."""

import numpy as np
from helpers import small

from scripts.studies.speech import columns_with_speech, kept_by_speech


def test_a_burst_is_speech_and_thirty_decibels_below_is_not():
    config = small("ast", frames=98, classes=2)
    mel = np.full((2, 98, config.mels), -5.0)
    mel[0, 16:48] = 0.0  # two columns of patches
    mel[1, 16:24] = 0.0  # half of one
    mel[1, 64:80] = -2.8 * np.log(10) / (2 * 3.0)  # 28 dB below
    mel[1, 80:96] = -3.2 * np.log(10) / (2 * 3.0)  # 32 dB below
    speech = columns_with_speech(mel, std=3.0, config=config)
    assert speech.tolist() == [[False, True, True, False, False, False], [False, True, False, False, True, False]]


def test_shares_and_their_ratio_are_those_of_a_plain_count():
    random = np.random.default_rng(0)
    speech = random.random((40, 6)) < 0.4
    kept = random.random((40, 6, 8)) < np.where(speech, 0.6, 0.2)[:, :, None]
    shares, times = kept_by_speech(kept, speech)
    counts = {True: [0, 0], False: [0, 0]}
    for clip, time, freq in np.ndindex(*kept.shape):
        of = counts[bool(speech[clip, time])]
        of[0] += kept[clip, time, freq]
        of[1] += 1
    expected = [counts[value][0] / counts[value][1] for value in (True, False)]
    np.testing.assert_allclose(shares.value, expected, rtol=1e-12)
    np.testing.assert_allclose(times.value, expected[0] / expected[1], rtol=1e-12)
    assert (shares.low < shares.value).all()
    assert times.low > 1
