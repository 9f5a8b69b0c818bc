"""The same file gives the same probabilities in `transformers.pipeline("audio-classification")` and in `classify`.

The pipeline decodes files with ffmpeg and resamples with torchaudio, neither of which the tests have. So it gets the
samples that soundfile reads, channels averaged, at 16 kHz by librosa's soxr. Its features are the extractor's own.
"""

import librosa
import numpy as np
import pytest
import soundfile
import torch
from jaxprune.convert.command import About, convert
from transformers import ASTConfig, ASTFeatureExtractor, ASTForAudioClassification, pipeline

from jaxprune import checkpoint
from jaxprune.checkpoint import load_card
from jaxprune.inference import classify

SECONDS = (0.1, 0.5, 1.0, 3.7, 10.0, 10.24, 12.0)
SOUNDS = ((8000, 1), (16000, 1), (16000, 2), (22050, 1), (44100, 2), (48000, 1))  # rate and channels
LABELS = tuple("abcde")


@pytest.fixture(scope="module")
def recordings(tmp_path_factory):
    """A file of every length, and one of each rate and number of channels."""
    folder = tmp_path_factory.mktemp("sounds")
    rng = np.random.default_rng(0)
    kinds = {(seconds, 16000, 1) for seconds in SECONDS} | {(s, *sound) for s in (0.5,) for sound in SOUNDS}
    paths = []
    for seconds, rate, channels in sorted(kinds):
        time = np.arange(int(seconds * rate)) / rate
        tone = 0.3 * np.sin(2 * np.pi * (200 + 150 * time) * time)[:, None]
        samples = tone + 0.05 * rng.standard_normal((len(time), channels)) + 0.02  # with an offset
        paths.append(folder / f"{seconds}-{rate}-{channels}.wav")
        soundfile.write(paths[-1], samples, rate, subtype="FLOAT")
    return paths


@pytest.fixture(scope="module", params=[10, 16])
def published(request, tmp_path_factory):
    """A small AST with large random weights, as transformers saves it, at a stride."""
    folder = tmp_path_factory.mktemp("published")
    torch.manual_seed(request.param)
    config = ASTConfig(
        hidden_size=48,
        num_hidden_layers=2,
        num_attention_heads=3,
        intermediate_size=96,
        time_stride=request.param,
        frequency_stride=request.param,
        id2label=dict(enumerate(LABELS)),
        problem_type="single_label_classification",
    )
    model = ASTForAudioClassification(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.15)
    model.save_pretrained(folder)
    ASTFeatureExtractor().save_pretrained(folder)
    return folder


def in_transformers(folder, paths):
    """The pipeline's probabilities, in the order of the labels."""
    ask = pipeline("audio-classification", model=str(folder), device="cpu")
    found = []
    for path in paths:
        samples, rate = soundfile.read(path, dtype="float32", always_2d=True)
        mono = samples.mean(axis=1)
        at_16k = mono if rate == 16000 else librosa.resample(mono, orig_sr=rate, target_sr=16000, res_type="soxr_vhq")
        answers = ask({"raw": at_16k, "sampling_rate": 16000}, top_k=len(LABELS))
        scores = {answer["label"]: answer["score"] for answer in answers}
        found.append([scores[label] for label in LABELS])
    return np.array(found)


def in_jaxprune(folder, paths):
    """The probabilities of each file's first window: transformers cuts off what comes after it."""
    report = classify(paths, folder, keep_rate={}, top=len(LABELS))
    first = {result.path: dict(result.top) for result in reversed(report.results)}
    return np.array([[first[path][label] for label in LABELS] for path in paths])


def test_classify_answers_as_the_pipeline_does(published, recordings, tmp_path):
    convert(published, tmp_path / "ours")
    assert load_card(tmp_path / "ours").padding == "zero"
    theirs, ours = in_transformers(published, recordings), in_jaxprune(tmp_path / "ours", recordings)
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-3)
    assert theirs.std(axis=0).max() > 0.01  # the clips are told apart


def test_the_other_padding_answers_otherwise_and_the_way_back_says_so(published, recordings, tmp_path, capsys):
    convert(published, tmp_path / "ours", about=About(padding="minimum"))
    short = [path for path in recordings if path.name.startswith("0.5")][:1]
    assert np.abs(in_jaxprune(tmp_path / "ours", short) - in_transformers(published, short)).max() > 1e-2
    capsys.readouterr()
    convert(tmp_path / "ours", tmp_path / "back", to_torch="huggingface")
    assert "ASTFeatureExtractor can only pad with log-mel 0" in capsys.readouterr().err
    assert checkpoint.load_card(tmp_path / "ours").padding == "minimum"


def test_less_than_one_frame_is_refused(tmp_path):
    soundfile.write(tmp_path / "click.wav", np.random.default_rng(0).standard_normal(399) * 0.1, 16000)
    with pytest.raises(ValueError, match="too short; at least 25 ms"):
        classify(tmp_path / "click.wav", "ast-words")
