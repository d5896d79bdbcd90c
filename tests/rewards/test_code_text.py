"""Where the code of a completion stands: the same function, written down in all the ways that models write it."""

import time

import pytest

from rewards.code_text import code_of, script_of

F = "def f(x):\n    return x * x"
WRONG = "def f(x):\n    return 0"


def fenced(code, tag="python", fence="```"):
    return f"{fence}{tag}\n{code}\n{fence}"


FENCES = {
    "none": F, "a byte order mark": "\ufeff" + F, "untagged": f"Here:\n{fenced(F, '')}\nDone.",
    "capitals": fenced(F, "Python"), "py": fenced(F, "py"), "a version": fenced(F, "python3.12"),
    "a space before": fenced(F, " python"), "a title": fenced(F, "python title='a.py'"), "braces": fenced(F,
    "{.python}"),
    "braces and options": fenced(F, "{python} #| echo: false"), "a cell": fenced(F, "{code-cell} ipython3"),
    "a file": fenced(F, "main.py"), "language and file": fenced(F, "python:main.py"), "tildes": fenced(F, "py", "~~~"),
    "five backticks": fenced(F, "python", "`````"), "a longer end": f"```python\n{F}\n`````",
    "in Markdown": fenced(fenced(F), "markdown", "````"), "in a list": "- so:\n\n  " + fenced(F).replace("\n", "\n  "),
    "behind a tab": "\t" + fenced(F).replace("\n", "\n\t"), "in a quote": "> " + fenced(F).replace("\n", "\n> "),
    "behind prose": "The code is: " + fenced(F), "before prose": fenced(F) + " That is all.",
    "closed on the line": f"```python\n{F}```", "on one line": "It is ```def f(x): return x * x``` alone.",
    "on one line, tagged": "```python f = lambda x: x * x```", "cut": f"Here:\n```python\n{F}\n",
    "carriage returns": fenced(F).replace("\n", "\r\n"), "old line ends": fenced(F).replace("\n", "\r"),
    "a mark in the block": "```python\n\ufeff" + F + "\n```", "answer": f"<answer>\n{F}\n</answer>",
    "answer with a fence": f"<answer>{fenced(F)}</answer>",
    "answer after a draft": fenced(WRONG) + f"\n<answer>{F}</answer>",
    "fence in a docstring": fenced("def f(x):\n    '''\n    ```\n    f(2)\n    ```\n    '''\n    return x * x"),
    "fence in a string": fenced("s = '```'\n" + F), "thought before": f"{fenced(WRONG)}\n</think>\n{fenced(F)}",
    "only in thought": f"{fenced(F)}\n</think>\nThat is it.", "usage after": fenced(F) + "\n" + fenced("print(f(3))"),
    "usage that is wrong": fenced(F) + "\n" + fenced("assert f(3) == 10"),
    "usage that imports": fenced(F) + "\n" + fenced("from solution import f\nassert f(3) == 9"),
    "usage that binds its name": fenced(F) + "\n" + fenced("f = f(3)\nprint(f)"),
    "usage in between": fenced(WRONG) + "\n" + fenced("f(3)", "") + "\n" + fenced(F),
    "output after": fenced(F) + "\nOutput:\n" + fenced("9", ""),
    "shell after": fenced(F) + "\n" + fenced("python a.py", "bash"),
    "a session before": fenced(">>> f(2)\n4", "pycon") + "\n" + fenced(F),
    "another language": fenced("function f(x) { return x * x }", "javascript") + "\n" + fenced(F),
    "helper first": fenced("def sq(x): return x * x") + "\nthen\n" + fenced("def f(x): return sq(x)"),
    "constant first": fenced("import math\nK = 2") + "\nthen\n" + fenced("def f(x): return math.pow(x, K)"),
    "draft first": fenced(WRONG) + "\nBetter:\n" + fenced(F),
    "lambdas": fenced("g = 2") + "\n" + fenced("f = lambda x: x ** g"),
    "other tags": f"<code>\n{F}\n</code>", "brackets": f"[PYTHON]\n{F}\n[/PYTHON] is it.",
    "prose around": f"Here is the function.\n\n{F}\n\nIt squares x.", "a version of its own": fenced(F, "py3"),
    "response": "### Response:\n" + fenced(F, "Python 3"),
    "bare behind a thought": f"<think>def f is easy</think>\n{F}",
    "bare in prose": f"Here it is:\n\n{F}\n\nIt's good.",
    "bare helper first": f"import math\n\nFirst a helper, def g:\n{WRONG}\n\nx = 5 is next.\nThen:\n{F}\n\nSo it is 4.",
    "marks": f"[BEGIN]\n{F}\n[DONE]",
    "no end, and prose": f"```python\n{F}\n\nIt's the square of x.",
    "cut in a use": f"```python\n{F}\n\nprint(f(2), f(",
    "inline code before": "With `f` and ```x```:\n" + fenced(F),
}


@pytest.mark.parametrize("name", FENCES)
def test_one_function_in_all_ways_of_writing_it_down(name):
    names = {}
    exec(code_of(FENCES[name]), names)
    assert names["f"](42) == 1764


@pytest.mark.parametrize(("text", "code"), [
    ("x = 1", "x = 1"), ("", ""), ("I cannot.", "I cannot."), (fenced("    return x"), "    return x\n"),
    ("Cut:\n```Python\nx = 1\ny", "x = 1\ny"), ([{"role": "assistant", "content": fenced("x = 2")}], "x = 2\n"),
    (fenced("no such", "text"), "```text\nno such\n```")])
def test_what_is_left_as_it_is(text, code):
    assert code_of(text) == code


@pytest.mark.parametrize(("text", "output"), [
    ("print(int(input()) * 2)", "8\n"), (fenced("print(int(input()) * 2)") + "\nTry:\n" + fenced("print(3)"), "8\n"),
    (fenced("def g(x): return 2 * x") + "\nand\n" + fenced("print(g(int(input())))"), "8\n"),
    (fenced("def g(x): return 0\nprint(g(int(input())))") + "\nBetter:\n"
     + fenced("def g(x): return 2 * x\nprint(g(int(input())))"), "8\n")])
def test_a_script_is_the_block_that_reads_its_input(text, output, capsys, monkeypatch):
    monkeypatch.setattr("builtins.input", lambda: "4")
    exec(script_of(text), {})
    assert capsys.readouterr().out == output


@pytest.mark.parametrize("text", ["```" * 9999, "```\n" * 9999, "```python\n" + "x```\n" * 9999, "~~~\n" * 9999,
                                  "a```" * 9999, "import x y\n" * 9999, "x = (\n" * 9999, "```python\n(\n```\n" * 99,
                                  "(" * 9999, "<answer>" * 9999, "[CODE]" * 9999, "def f(\n\n" * 999])
def test_a_text_of_fences_alone_takes_no_long_time(text):
    start = time.process_time()
    code_of(text)
    assert time.process_time() - start < 5
