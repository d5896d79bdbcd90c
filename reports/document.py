"""A page in one file: its frame, its style in light and in dark, and text and data that can never become markup."""

import html
import json
from typing import Any

STYLE = """
:root { color-scheme: light dark; --paper: #fff; --ink: #1c2430; --faint: #66707d; --line: #e1e5ea; --tint: #f5f7f9;
  --bad: #b3261e; --good: #2f6f4f; --bar: #4a78b5; --before: #b9c4d0;
  --c0: #2f6db5; --c1: #c8641b; --c2: #2f8f5b; --c3: #9a4fb0; --c4: #b3261e; --c5: #1592a0; --c6: #8a6d1f;
  --c7: #5c6570 }
@media (prefers-color-scheme: dark) { :root { --paper: #14181d; --ink: #dfe4ea; --faint: #98a3b0; --line: #2b323b;
  --tint: #1d232a; --bad: #ff8a80; --good: #7fcfa2; --bar: #6f9fe0; --before: #4b5764;
  --c0: #7db2f5; --c1: #f3a05f; --c2: #74d3a0; --c3: #d59aea; --c4: #ff8a80; --c5: #63d3e0; --c6: #d9bb5c;
  --c7: #aab4bf } }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 68rem; margin: 2rem auto; padding: 0 1rem;
  color: var(--ink); background: var(--paper) }
h1 { font-size: 1.5rem } h2 { font-size: 1.15rem; margin-top: 2.2rem; border-bottom: 1px solid var(--line) }
h3 { font-size: 1rem; margin: 1.4rem 0 .3rem }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums }
th, td { text-align: left; padding: .25rem .7rem .25rem 0; border-bottom: 1px solid var(--line); vertical-align: top }
td.number, th.number { text-align: right } .over { color: var(--bad); font-weight: 600 }
pre, code { font: .85rem/1.45 ui-monospace, monospace }
pre { background: var(--tint); padding: .6rem .8rem; overflow-x: auto; white-space: pre-wrap; overflow-wrap: anywhere }
details { margin: .3rem 0 } summary { cursor: pointer } .faint { color: var(--faint) }
"""


def escape(value: Any) -> str:
    """A value as text of a page, whatever is in it; half a surrogate pair, which no file holds, by its escape."""
    return html.escape(str(value).encode(errors="backslashreplace").decode())


def as_data(value: Any, name: str) -> str:
    """A block of JSON that a script of the page reads by its id. No text in it can end the block: "<" is written by
    its escape."""
    text = json.dumps(value, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")
    return f"<script type='application/json' id='{escape(name)}'>{text}</script>"


def document(title: str, body: str, style: str = "", scripts: tuple[str, ...] = ()) -> str:
    """A whole page, which loads nothing: its policy lets no address be asked for anything."""
    policy = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data: blob:"
    return (f"<!doctype html>\n<html lang=en><meta charset=utf-8>\n"
            f"<meta http-equiv=Content-Security-Policy content=\"{policy}\">\n"
            f"<meta name=viewport content='width=device-width'><title>{escape(title)}</title>\n"
            f"<style>{STYLE}{style}</style>\n<body>\n{body}\n"
            + "".join(f"<script>{script}</script>\n" for script in scripts) + "</body></html>\n")
