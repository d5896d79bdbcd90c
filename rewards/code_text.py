"""Where in a completion the code stands: fences of every kind, in one block or in several.

A text that is Python as it is, is the code. Else its fenced blocks are looked at, which need not be tagged: what is
tagged as Python, and what reads as Python and defines something. Several blocks make one program: their definitions, in
order; of a block that defines no function and no class, which shows how to use the others, only imports and
assignments are kept. A block that does not close ends where it is no Python any more. Code without a fence is what is
Python among the lines, from an import, a definition or an assignment on. Time is linear in the text, but for CLOSERS.
"""

import ast
import re
import warnings
from collections.abc import Iterator
from typing import Any, NamedTuple

from rewards.answers import after_thought, completion_text, tagged
from rewards.execution.load import READS_INPUT, UNREADABLE, parsed

_OPENING = re.compile(r"^(?P<before>[^\n]*?)(?P<fence>`{3,}|(?<![^ \t>])~{3,})(?P<info>[^`\n]*)$", re.MULTILINE)
_ONE_LINE = re.compile(r"(?<!`)(`{3,})(?!`)([^`\n]+)\1(?!`)")
_PYTHON = re.compile(r"(?:lang(?:uage)?-)?i?py(?:thon)?[23]?(?:\.\d+)*")
_TAG = re.compile(r"^\s*(?:\{?\.?(?:python|py)[23]?(?:\.\d+)*\}?)(?=\s)", re.IGNORECASE)
_AROUND = re.compile(r"\A\s*\[[A-Z]+\][ \t]*\n|\n[ \t]*\[/?[A-Z]+\]\s*\Z")
_MARK = re.compile(r"[<\[](/?)(?:answer|code|solution|python)\b[^>\]\n]{0,40}[>\]]", re.IGNORECASE)
CLOSERS = 20
"""fences in a block that are tried as its end; stretches of bare code, and ends of each, that are tried"""
_STARTS = re.compile(r"^(?:(?:(?:async[ \t]+)?def|class|import|from)[ \t]+\w|@\w|\w+[ \t]*(?::[^=\n]*)?=[^=])",
                     re.MULTILINE)
"""how a line of bare code begins"""
_DEFINITIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
_BINDINGS = (ast.Import, ast.ImportFrom, ast.Assign, ast.AnnAssign)


class Block(NamedTuple):
    """A fenced block; `kind` is "python", "markdown" or "" for any other."""

    kind: str
    code: str


def code_of(text: Any) -> str:
    """The program in a text or in the last of its messages: all of its blocks of Python; without any, the whole."""
    content = _plain(completion_text(text))
    return content if reads(content) else _joined(_blocks_of(content)) or _bare(content)


def script_of(text: Any) -> str:
    """As code_of, for a program that is run as a script: the last block that reads standard input, else the last, with
    the definitions of those before it that it lacks."""
    content = _plain(completion_text(text))
    if reads(content):
        return content
    blocks = _blocks_of(content)
    if not blocks:
        return _bare(content)
    reading = [at for at, code in enumerate(blocks) if READS_INPUT.search(code)]
    at = reading[-1] if reading else len(blocks) - 1
    return "\n".join([*_earlier_definitions(blocks[:at], blocks[at]), blocks[at]])


def reads(code: str) -> bool:
    """Whether it is Python, of a module or of a function's body."""
    return parsed(code) is not None or (code[:1] in " \t\n" and parsed("if 1:\n" + code) is not None)


def _plain(text: str) -> str:
    """Line ends as Python has them, no byte order mark, and no [BEGIN] and [DONE] around, which Python could read."""
    return _AROUND.sub("", text.replace("\r\n", "\n").replace("\r", "\n").replace("\ufeff", ""))


def _blocks_of(text: str) -> list[str]:
    """Of what stands in <answer>, else behind </think>, else anywhere: the first that has blocks of Python."""
    found = tagged(text)
    if found and _binds(found[1]):
        return [found[1]]
    places = [*([found[1]] if found else []), after_thought(text), text]
    return next((blocks for place in places if (blocks := _python_blocks(place))), [])


def _bare(text: str) -> str:
    """Code in no fence: the last that stands between tags (<answer>, [PYTHON]) and is Python, else what stands behind
    </think>, if that is, else the stretches of lines that are, else the whole."""
    marked = [each for each in list(_marked(text))[-CLOSERS:] if _binds(each)]
    found = tagged(text)
    places = [*([found[1]] if found else []), after_thought(text)]
    whole = next((place for place in (*marked[-1:], *places) if reads(place)), None)
    return whole or next((code for place in (*places, text) if (code := _joined(_stretches(place)))), text)


def _marked(text: str) -> Iterator[str]:
    """What stands between an opening tag and the next closing one."""
    opening = None
    for tag in _MARK.finditer(text):
        if tag[1] and opening:
            yield text[opening.end() : tag.start()]
        opening = None if tag[1] else tag


def _stretches(text: str) -> list[str]:
    """Lines in the midst of prose that are Python and bind a name."""
    found, at = [], 0
    for _ in range(CLOSERS):
        start = _STARTS.search(text, at)
        if not start:
            break
        code = _first_lines(text[start.start() :])
        found += [code] if _binds(code) else []
        at = max(start.end(), start.start() + len(code))
    return found


def _first_lines(text: str) -> str:
    """As many lines as are Python: without the one at which the parser stops, and what is behind it."""
    lines = text.splitlines(keepends=True)
    for _ in range(CLOSERS):
        error = _first_error("".join(lines))
        if not error:
            return "".join(lines)
        lines = lines[: min(error, len(lines)) - 1]
    return ""


def _first_error(code: str) -> int:
    """The line at which a parser stops; 0 where it does not."""
    with warnings.catch_warnings(action="ignore"):
        try:
            ast.parse(code)
        except UNREADABLE as error:
            return getattr(error, "lineno", None) or 1
    return 0


def _python_blocks(text: str) -> list[str]:
    """All that is tagged as Python or reads as Python that binds a name."""
    found = []
    for block in _fenced(text):
        if block.kind == "markdown":
            found += _python_blocks(block.code)
        elif block.kind == "python" or _binds(block.code):
            found.append(block.code)
    return found


def _binds(code: str) -> bool:
    tree = parsed(code)
    return tree is not None and any(isinstance(node, _DEFINITIONS + _BINDINGS) for node in tree.body)


def _fenced(text: str) -> Iterator[Block]:
    """The blocks, from the first on; one that does not close goes to the end."""
    at = 0
    while opening := _OPENING.search(text, at):
        if "```" in opening["before"]:  # both ends of a block on one line
            yield from _on_one_line(opening[0])
            at = opening.end()
        else:
            code, at = _content(text, opening)
            yield Block(_kind(opening["info"]), code)


def _on_one_line(text: str) -> Iterator[Block]:
    """```def f(x): return x```"""
    for inline in _ONE_LINE.finditer(text):
        tag = _TAG.match(inline[2])
        yield Block("python" if tag else "", inline[2][tag.end() if tag else 0 :].strip())


def _kind(info: str) -> str:
    """Of what stands behind the opening fence: a language, attributes, a file's name."""
    words = re.findall(r"[\w.+#-]+", info.lower())[:2]
    if any(_PYTHON.fullmatch(word.lstrip(".")) or word.endswith(".py") for word in words):
        return "python"
    return "markdown" if words and words[0] in ("markdown", "md") else ""


def _content(text: str, opening: re.Match[str]) -> tuple[str, int]:
    """What a block holds and where the text goes on: at the first closing fence up to which it reads as Python, else
    at the first on a line of its own, else at the end."""
    fence, start = opening["fence"], opening.end() + 1
    closing = re.compile(rf"^(?P<code>[^\n]*?)(?<!{fence[0]}){fence}{fence[0]}*(?P<rest>[^\w\n`~'\"][^`\n]*)?$",
                         re.MULTILINE)
    first = None
    ends = (end for end in closing.finditer(text, start) if _kind(end["rest"] or "") != "python")
    for _, end in zip(range(CLOSERS), ends):
        alone = not (end["code"].strip(" \t>") or (end["rest"] or "").strip())
        code = _unquoted(text[start : end.start() if alone else end.end("code")], opening["before"])
        if reads(code):
            return code, end.end()
        first = first or ((code, end.end()) if alone else None)
    return first or (_uncut(_unquoted(text[start:], opening["before"])), len(text))


def _uncut(code: str) -> str:
    """What a block that does not close has of Python: what follows may be prose, or half a line."""
    return code if reads(code) else _first_lines(code) or code


def _unquoted(code: str, before: str) -> str:
    """Lines without the indentation, or the quote's mark, that the opening fence has."""
    if before.strip(" \t>"):
        return code
    indent = len(before) - len(before.rstrip(" \t"))
    mark = r"(?: {0,3}> ?)" * before.count(">") + rf"[ \t]{{0,{indent}}}"
    return re.sub(f"^{mark}", "", code, flags=re.MULTILINE)


def _joined(blocks: list[str]) -> str:
    """One program of several blocks. Where none defines a function, all of them; blocks that are no Python are left
    out where others are."""
    trees = [(code, parsed(code)) for code in blocks]
    readable = [(code, tree) for code, tree in trees if tree is not None]
    if len(blocks) < 2 or not readable:
        return blocks[-1] if blocks else ""
    defined = {node.name for _, tree in readable for node in tree.body if isinstance(node, _DEFINITIONS)}
    whole = [not at if not defined else any(isinstance(node, _DEFINITIONS) for node in tree.body)
             for at, (_, tree) in enumerate(readable)]
    return "\n".join(code if every else _bindings(tree, defined) for every, (code, tree) in zip(whole, readable))


def _bindings(tree: ast.Module, defined: set[str]) -> str:
    """The imports and assignments of a block, but for those that would replace a function."""
    kept = [node for node in tree.body if isinstance(node, _BINDINGS) and not _bound(node) & defined]
    return ast.unparse(ast.Module(kept, []))


def _bound(node: ast.AST) -> set[str]:
    names = {each.id for each in ast.walk(node) if isinstance(each, ast.Name) and isinstance(each.ctx, ast.Store)}
    return names | {(each.asname or each.name).split(".")[0] for each in ast.walk(node) if isinstance(each, ast.alias)}


def _earlier_definitions(blocks: list[str], main: str) -> list[str]:
    """What `blocks` import and define, but for names that `main` defines itself."""
    own = parsed(main)
    defined = {node.name for node in own.body if isinstance(node, _DEFINITIONS)} if own else set()
    kept = [node for code in blocks for node in getattr(parsed(code), "body", ())
            if isinstance(node, (ast.Import, ast.ImportFrom))
            or (isinstance(node, _DEFINITIONS) and node.name not in defined)]
    return [ast.unparse(ast.Module(kept, []))] if kept else []
