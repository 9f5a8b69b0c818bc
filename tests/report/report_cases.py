"""Made runs with dangerous names, and a parser of pages, that tests of the report share."""

import json
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import soundfile
from helpers import small

from jaxprune.analysis.analyze import analyze
from jaxprune.analysis.bootstrap import Bootstrap
from jaxprune.analysis.extraction import read_extraction
from jaxprune.analysis.saved import save_analysis

FEW = Bootstrap(resamples=20)
CLIPS, CONFIG = 5, small("ast", depth=3, frames=98, classes=3)
EVIL = "<script>alert(1)</script>"
FILE = "\"><img src=x onerror='alert(1)'>&amp;.wav"


def add_clips(extraction: Path, sounds: Path) -> None:
    """Adds the arrays of --mel, and sound files that exist. One has a name like markup."""
    config = read_extraction(extraction).config
    names = [FILE, *(f"{i}.wav" for i in range(1, CLIPS))]
    sounds.mkdir(exist_ok=True)
    random = np.random.default_rng(0)
    for name in names:
        soundfile.write(sounds / name, 0.1 * random.standard_normal(22050), 22050)
    manifest = json.loads((extraction / "manifest.json").read_text())
    for name in manifest["shards"]:
        with np.load(extraction / name) as shard:
            arrays = dict(shard)
        arrays["path"] = np.array([str(sounds / names[i]) for i in arrays["index"]])
        arrays["mel"] = random.standard_normal((len(arrays["index"]), config.frames, config.mels)).astype(np.float16)
        np.savez(extraction / name, **arrays)
    manifest["compute"]["mel"] = "float16"
    manifest["data"]["source"] = {"root": str(sounds)}
    manifest["data"]["labels"] = [EVIL, "dog & cat", "crow"]
    (extraction / "manifest.json").write_text(json.dumps(manifest))


def analysed(extraction: Path, out: Path) -> Path:
    read = read_extraction(extraction)
    save_analysis(analyze(read, bootstrap=FEW), extraction=read, out=out, facts={"command": f"analyze {EVIL}"})
    return out


class Elements(HTMLParser):
    """Every element with its attributes, and the text."""

    def __init__(self, path: Path):
        super().__init__()
        self.found: list[tuple[str, dict]] = []
        self.text, self.open = "", []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, name, attributes):
        self.found.append((name, dict(attributes)))
        if name not in ("img", "meta"):
            self.open.append(name)

    def handle_endtag(self, name):
        assert self.open.pop() == name

    def handle_data(self, text):
        self.text += text

    def all(self, name: str) -> list[dict]:
        return [attributes for element, attributes in self.found if element == name]
