"""HTML that cannot be broken by what is put in it: elements made of text and other elements, text always escaped.

`page` makes one whole document that needs nothing else: style within, no scripts, no fonts, nothing from a network.
A template library would add a language beside Python for the thirty lines of `tag`, `join` and `table`.
"""

import base64
import html
from collections.abc import Iterable, Sequence

STYLE = """
:root { color-scheme: light dark; --text: #1b1b1b; --soft: #595959; --back: #fff; --line: #d0d0d0; --card: #f6f6f6;
  --accent: #0072b2 }
@media (prefers-color-scheme: dark) { :root { --text: #e8e8e8; --soft: #a8a8a8; --back: #161616; --line: #444;
  --card: #222; --accent: #56b4e9 } }
* { box-sizing: border-box }
body { margin: 0 auto; max-width: 76rem; padding: 1rem 1.5rem 4rem; color: var(--text); background: var(--back);
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", "DejaVu Sans", sans-serif; overflow-wrap: anywhere }
h1 { font-size: 1.7rem; line-height: 1.2; margin: 1rem 0 .3rem }
h2 { font-size: 1.3rem; margin: 2.4rem 0 .4rem; padding-top: .6rem; border-top: 1px solid var(--line) }
h3 { font-size: 1.05rem; margin: 1.6rem 0 .3rem }
p { margin: .4rem 0 .8rem; max-width: 48rem }
.soft, figcaption { color: var(--soft); font-size: .9rem }
nav a { display: inline-block; margin: 0 1rem .2rem 0 }
a { color: var(--accent) }
.scroll { overflow-x: auto; margin: .6rem 0 1rem; -webkit-overflow-scrolling: touch }
table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums; overflow-wrap: normal }
th, td { padding: .3rem .7rem; border-bottom: 1px solid var(--line); text-align: right; vertical-align: top;
  white-space: nowrap }
th:first-child { text-align: left; padding-left: 0; white-space: normal; min-width: 9rem; max-width: 15rem }
thead th { white-space: normal; vertical-align: bottom; min-width: 3.4rem }
figure { margin: .6rem 0 1.2rem }
.picture img { display: block; width: calc(var(--inches) * 8rem); max-width: 100%; height: auto; background: #fff;
  border-radius: 4px }
.clip { background: var(--card); border: 1px solid var(--line); border-radius: 6px; padding: .7rem .9rem;
  margin: 1rem 0 }
.clip h3 { margin: 0 }
.clip h4 { margin: .8rem 0 .1rem; font-size: .95rem }
.clip p { margin: .1rem 0 .5rem }
.panels { display: grid; grid-template-columns: repeat(auto-fill, minmax(15rem, 1fr)); gap: .6rem }
.panels figure { margin: 0 }
.panels svg { display: block; width: 100%; height: auto }
audio { display: block; width: 100%; max-width: 30rem; height: 2.4rem; margin: .2rem 0 .6rem }
code { font-size: .85rem }
@media (max-width: 600px) {
  body { padding: .5rem .8rem 3rem }
  th:first-child { max-width: 9rem }
  .panels { grid-template-columns: 1fr }
  .picture img { width: max(100%, calc(var(--inches) * 5rem)); max-width: none }
}
@media print { body { max-width: none } .clip, figure { break-inside: avoid } }
"""
VOID = ("img", "meta")


class Html(str):
    """Finished markup; any other text is escaped before it becomes part of a page."""


def tag(element: str, /, *inside: str, **attributes: object) -> Html:
    """An element with text or other elements inside.

    Attribute names lose a trailing underscore (`class_`), inner ones become hyphens; None leaves one out, True leaves
    it without a value.
    """
    parts = [element]
    for key, value in attributes.items():
        key = key.rstrip("_").replace("_", "-")
        if value is True:
            parts.append(key)
        elif value is not None:
            parts.append(f'{key}="{html.escape(str(value))}"')
    opening = f"<{' '.join(parts)}>"
    return Html(opening if element in VOID else f"{opening}{join(inside)}</{element}>")


def join(parts: Iterable[str]) -> Html:
    """One after the other."""
    return Html("".join(part if isinstance(part, Html) else html.escape(part) for part in parts))


def table(columns: Sequence[str], rows: Iterable[Sequence[str]], *, caption: str) -> Html:
    """A table that scrolls within its own box where it is wider than the page; reachable by keyboard for that."""
    head = tag("tr", *(tag("th", column, scope="col") for column in columns))
    body = [tag("tr", tag("th", row[0], scope="row"), *(tag("td", cell) for cell in row[1:])) for row in rows]
    whole = tag("table", tag("thead", head), tag("tbody", *body), aria_label=caption)
    box = tag("div", whole, class_="scroll", tabindex=0, role="region", aria_label=caption)
    return join([tag("p", caption, class_="soft"), box])


def picture(png: bytes, *, inches: float, alt: str, caption: str) -> Html:
    """A PNG within the page, drawn for a width in inches; on a phone it keeps a size that can be read, and scrolls."""
    image = tag("img", src=data_uri(png, kind="image/png"), alt=alt)
    box = tag(
        "div", image, class_="scroll picture", style=f"--inches:{inches:g}", tabindex=0, role="region", aria_label=alt
    )
    return tag("figure", box, tag("figcaption", caption))


def data_uri(content: bytes, *, kind: str) -> str:
    """The content itself as an address; `kind` is its media type."""
    return f"data:{kind};base64,{base64.b64encode(content).decode('ascii')}"


def page(*inside: str, title: str) -> str:
    """A whole document."""
    # Nothing may be fetched or run, whatever got into the page.
    policy = "default-src 'none'; img-src data:; media-src data:; style-src 'unsafe-inline'"
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", http_equiv="Content-Security-Policy", content=policy),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("title", title),
        tag("style", Html(STYLE)),
    )
    return f"<!DOCTYPE html>\n{tag('html', head, tag('body', *inside), lang='en')}\n"
