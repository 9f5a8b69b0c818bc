"""The page: whole, safe whatever the files are called, silent on the network, and fit for a phone."""

import base64
import io
import json
import shutil

import matplotlib.image
import numpy as np
import pytest
import soundfile
from browser import browse, chromium
from extractions import write_random
from report_cases import CLIPS, CONFIG, EVIL, FEW, FILE, Elements, analysed

from jaxprune.analysis.analyze import analyze
from jaxprune.analysis.extraction import read_extraction
from jaxprune.analysis.saved import read_analysis
from jaxprune.features import sample_count
from jaxprune.positions import covered
from jaxprune.report.clips import examples, sound_of
from jaxprune.report.html import data_uri, page, picture, table, tag
from jaxprune.report.inputs import read_runs
from jaxprune.report.report import write_report


@pytest.fixture(scope="module")
def written(home):
    """The page about all of it."""
    runs = read_runs([home / name for name in ("ast", "ast-1", "mae", "silent", "sweep")])
    out = home / "pages" / "report.html"
    return out, write_report(runs, out=out, title=f"About {EVIL}", clips=3)


# What is on it


def test_text_of_files_never_becomes_markup(written):
    seen = Elements(written[0])
    assert seen.open == []
    assert not seen.all("script")
    assert not [key for _, attributes in seen.found for key in attributes if key.startswith("on")]
    assert seen.text.count(EVIL) >= 4  # title, label, command, sweep
    assert FILE in seen.text
    assert "dog & cat" in seen.text


def test_it_needs_nothing_from_elsewhere(written):
    for element, attributes in Elements(written[0]).found:
        for key in ("src", "href", "poster", "srcset", "xlink:href"):
            assert attributes.get(key, "data:").startswith(("data:", "#part-")), (element, key)
    assert "url(" not in written[0].read_text()


def test_it_has_every_part_with_headings_and_alternatives(written):
    seen = Elements(written[0])
    for part in ("Summary", "Cost and accuracy: sweep", "Attention and intensity", "Kept patches: ", "Clips"):
        assert part in seen.text
    assert [attributes["name"] for attributes in seen.all("meta") if "name" in attributes] == ["viewport"]
    assert all(attributes["alt"] for attributes in seen.all("img"))
    assert all(attributes["aria-label"] for name in ("svg", "audio") for attributes in seen.all(name))
    assert len(seen.all("img")) == 1 + 1 + 5 + 1 + 5 + 5  # sweep, Kendall, and each analysis' own
    assert {attributes["href"][1:] for attributes in seen.all("a")} == {one["id"] for one in seen.all("h2")}
    assert "0.1235" in seen.text
    assert "No clips of silent" in seen.text


def test_a_clip_stands_once_with_all_runs_below_each_other(home, written):
    seen = Elements(written[0])
    cards = len(seen.all("article"))
    assert (cards, len(seen.all("audio")), written[1].clips, written[1].sounding) == (3, 3, 3, 3)
    assert len(seen.all("svg")) == 3 * (1 + 2 + 1 + 1)  # AST pruned twice, AudioMAE once; unpruned repeats nothing
    heard, rate = soundfile.read(io.BytesIO(base64.b64decode(seen.all("audio")[0]["src"].split(",")[1])))
    assert (len(heard), rate) == (sample_count(98), 16000)
    assert written[1].size == written[0].stat().st_size


def test_sound_is_capped_and_clips_are_counted(home, tmp_path):
    runs = read_runs([home / "x-ast"])
    one = len(sound_of(home / "sounds" / "1.wav", frames=98))
    written = write_report(runs, out=tmp_path / "a.html", title="a", clips=CLIPS, sound_megabytes=2.5 * one / 1e6)
    assert (written.clips, written.sounding) == (CLIPS, 2)
    assert "5 clips" in (text := Elements(tmp_path / "a.html").text)
    assert "2 with sound" in text
    assert "No sound" in text
    written = write_report(runs, out=tmp_path / "b.html", title="b", clips=2, sound_megabytes=0)
    assert (written.clips, written.sounding) == (2, 0)
    assert sound_of(home / "gone.wav", frames=98) is None


def test_sound_comes_only_from_the_data_set_s_folder_or_the_one_asked_for(home, tmp_path):
    shutil.copytree(home / "x-ast", tmp_path / "x")
    manifest = json.loads((tmp_path / "x" / "manifest.json").read_text())

    def sounding(root, **options):
        manifest["data"]["source"] = {"root": str(root)}
        (tmp_path / "x" / "manifest.json").write_text(json.dumps(manifest))
        written = write_report(read_runs([tmp_path / "x"]), out=tmp_path / "a.html", title="a", clips=2, **options)
        return written.sounding, (tmp_path / "a.html").read_text().count("--sound-from")

    assert sounding(home / "sounds") == (2, 0)
    assert sounding(tmp_path) == (0, 2)
    assert sounding("/") == (0, 2)
    assert sounding(home / "sounds" / ".." / "x-ast") == (0, 2)
    assert sounding(tmp_path, sound_from=home / "sounds") == (2, 0)


def test_panels_show_what_was_kept_the_right_way_up(home):
    extraction = read_extraction(home / "x-mae")
    write_report(read_runs([home / "x-mae"]), out=home / "panels.html", title="a", clips=1)
    images = [image["href"].split(",")[1] for image in Elements(home / "panels.html").all("image")]
    whole, left = [matplotlib.image.imread(io.BytesIO(base64.b64decode(image))) for image in images]
    frames = int(extraction.column("frames")[0])
    seen = covered(extraction.config, extraction.kept(1)[0].astype(int))
    seen[frames:] = False
    shown = whole.shape[1]
    np.testing.assert_array_equal(left[..., 3] > 0, seen[:shown].T[::-1])
    assert (whole[:, : min(frames, shown), 3] == 1).all()
    loudest = np.unravel_index(extraction.rows("mel", [0])[0, :frames].argmax(), (frames, 128))
    assert tuple(whole[127 - loudest[1], loudest[0], :3]) == pytest.approx((0.993248, 0.906157, 0.143936), abs=0.01)


def test_examples_are_the_extraction_s_rows(home):
    extraction = read_extraction(home / "x-ast")
    found = examples(extraction, count=3)
    rows = [0, 2, 4]
    assert [str(one.path) for one in found] == extraction.column("path")[rows].tolist()
    for one, row in zip(found, rows, strict=True):
        np.testing.assert_array_equal(one.mel, extraction.column("mel")[row])
        np.testing.assert_array_equal(one.kept[2], extraction.kept(2)[row])
        labels = extraction.manifest["data"]["labels"]
        assert one.truth == (labels[extraction.column("target")[row].argmax()],)
        assert one.top[0][0] == labels[extraction.column("logits")[row].argmax()]
        assert sum(probability for _, probability in one.top) == pytest.approx(1)  # three classes
    assert len(examples(extraction, count=99)) == CLIPS


# How it is written and read


def test_an_analysis_comes_back_as_it_was(home):
    for name in ("ast", "ast-1"):
        extraction = read_extraction(home / f"x-{name}")
        saved = read_analysis(home / name)
        assert saved.analysis.to_json() == analyze(extraction, bootstrap=FEW).to_json()
        assert (saved.config, saved.extraction) == (extraction.config, extraction.path)


def test_equal_runs_make_equal_pages_and_a_failure_leaves_the_old_one(home, tmp_path):
    pages = [tmp_path / "a.html", tmp_path / "b.html"]
    for out in pages:
        write_report(read_runs([home / "ast-1"]), out=out, title="a", clips=1)
    before = pages[0].read_bytes()
    assert pages[1].read_bytes() == before
    with pytest.raises(ValueError, match=r"x-silent.* holds no mel: it was not extracted; extract again with --mel"):
        write_report(read_runs([home / "x-silent"]), out=pages[0], title="a")
    assert (sorted(tmp_path.iterdir()), pages[0].read_bytes()) == (pages, before)


def test_the_keep_rates_that_a_model_was_trained_for_are_said(tmp_path):
    extraction = write_random(tmp_path / "x", CONFIG, clips=CLIPS, keep={1: 0.7})
    manifest = json.loads((extraction / "manifest.json").read_text())
    manifest["checkpoint"]["card"] |= {"keep_rates": [1.0, 0.75, 0.5]}
    (extraction / "manifest.json").write_text(json.dumps(manifest))
    runs = read_runs([analysed(extraction, tmp_path / "a")])
    write_report(runs, out=tmp_path / "a.html", title="a", clips=0)
    text = Elements(tmp_path / "a.html").text
    assert "ast noise test keep 0.7: the model was trained for keep rates 1, 0.75, 0.5." in text


def test_runs_of_one_name_are_told_apart(home, tmp_path):
    again = analysed(home / "x-ast", tmp_path / "again")
    names = list(read_runs([home / "ast", again, home / "mae"]).analyses)
    assert names == [
        "ast: ast noise test keep 0.7",
        "again: ast noise test keep 0.7",
        "audiomae noise test keep 0.5",
    ]


def test_extractions_of_one_name_are_all_shown(home, tmp_path):
    other = write_random(tmp_path / "other", CONFIG, clips=CLIPS, keep={1: 0.7, 2: 0.7}, weights="b")
    assert list(read_runs([home / "ast", other]).extractions) == [
        "ast: ast noise test keep 0.7",
        "other: ast noise test keep 0.7",
    ]


def test_an_extraction_that_has_gone_is_said(home, tmp_path):
    gone = write_random(tmp_path / "x", CONFIG, clips=CLIPS, keep={1: 0.5})
    analysed(gone, tmp_path / "a")
    (gone / "manifest.json").unlink()
    runs = read_runs([tmp_path / "a"])
    assert runs.notes == ("No clips of a: the extraction it was made from is no longer where it was.",)
    assert not runs.extractions


def test_escaping_is_in_the_elements_themselves():
    assert tag("p", "<b>", tag("i", "&"), title='"<') == '<p title="&quot;&lt;">&lt;b&gt;<i>&amp;</i></p>'
    assert "<b>" not in table(["<b>"], [["<b>", "<b>"]], caption="<b>")
    assert "<b>" not in picture(b"", inches=1, alt="<b>", caption="<b>")
    assert "<b>" not in page("<b>", title="<b>")
    assert data_uri(b"a", kind="text/plain") == "data:text/plain;base64,YQ=="


# In a browser


@pytest.mark.skipif(chromium() is None, reason="no Chromium here: install it (Debian: chromium) to look at the page")
def test_chromium_shows_it_on_a_desk_and_on_a_phone(written, tmp_path):
    with browse(chromium(), profile=tmp_path / "profile") as seen:
        for width in (1280, 390):
            seen.open(written[0], width=width, dark=width == 390)
            assert seen.run("document.documentElement.scrollWidth") == width  # only tables and pictures scroll
            seen.screenshot(tmp_path / "shot.png", whole=False)
            assert matplotlib.image.imread(tmp_path / "shot.png").std() > 0.05
            columns = "getComputedStyle(document.querySelector('.panels')).gridTemplateColumns.split(' ').length"
            assert (seen.run(columns) == 1) == (width == 390)
            assert seen.run("[...document.images].every(image => image.complete && image.naturalWidth > 1)")
            small = "[...document.querySelectorAll('.picture img')].map(image => image.clientWidth)"
            assert min(seen.run(small)) >= 300
        durations = "Promise.all([...document.querySelectorAll('audio')].map(sound => sound.duration || new Promise("
        durations += "done => { sound.onloadedmetadata = () => done(sound.duration) })))"
        assert seen.run(durations) == pytest.approx([sample_count(98) / 16000] * 3, abs=1e-3)
        assert [one for one in seen.requests if not one.startswith("data:")] == [written[0].resolve().as_uri()] * 2
        assert not seen.errors
