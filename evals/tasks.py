"""Which tasks there are, and running them: benchmarks by name, lm-eval's tasks, and any prompts with any rewards.

    ready = open_tasks(["gsm8k", "gym:chain_sum"], tokenizer, how)      # before weights are read: bad input is told
    for task in ready: samples = task.run(subject)
"""

import dataclasses
import importlib.util
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from data.chat import encode_prompt
from data.encode import check_ids, missing_start
from data.prompts import Prompt
from data.sources import open_source, parse_source
from data.specs import split_outside
from data.templates import check_template_kwargs
from errors import InputError, shown
from evals.cache import NOTHING_KEPT, Cache
from evals.graded import Graded, is_graded, open_graded, run_graded, without_template
from evals.named import ALIASES, NAMED, UNTIL_NEXT, Named
from evals.samples import Sample
from evals.subject import Subject
from rewards.registry import load_rewards
from sharding.hosts import is_main


@dataclasses.dataclass(frozen=True)
class How:
    """How tasks are run; None leaves it to them."""

    limit: int | None = None
    """questions of each task, the first so many"""
    num_samples: int | None = None
    """answers to each question; None: one, or as many as a task of lm-eval's says"""
    seed: int = 0
    temperature: float | None = None
    max_new_tokens: int | None = None
    num_fewshot: int | None = None
    """examples in a prompt"""
    chat: Literal["auto", "always", "never"] = "auto"
    """prompts are chats: where answers are written and the model has a chat template, always, or never"""
    template_kwargs: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    task_data: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """NAME or NAME:SPLIT -> file"""
    include_path: Sequence[str] = ()
    """folders with task files of lm-eval's form"""
    unsafe: bool = False
    """code runs where nothing isolates it"""
    dtype: str | None = None
    """that a reward model computes in; None: the fastest here"""


@dataclasses.dataclass(frozen=True)
class Server:
    """A model behind a server with OpenAI's interface, in place of a tokenizer and of a Subject: it answers lm-eval's
    tasks."""

    url: str
    name: str = ""
    """the model's, there"""
    cache: Cache = NOTHING_KEPT
    chat_template: str = "the server's"


@dataclasses.dataclass(frozen=True)
class Task:
    """A task that is ready to be run."""

    name: str
    run: Callable[[Subject], dict[str, list[Sample]]]
    """-> samples, by the names of the tasks that it is made of"""
    prompts: Sequence[Prompt] = ()
    """what is asked, where that is known beforehand: not of lm-eval's tasks"""
    makes: Sequence[str] = ()
    """the names of the tasks that it is made of"""


def evaluate(subject: Subject, names: Sequence[str], **how: Any) -> dict[str, list[Sample]]:
    """The samples of every task, by name; `how` as How has it. Raises InputError as open_tasks does."""
    ready = open_tasks(names, subject.tokenizer, How(**how), subject.model.config.vocab_size, subject.layout)
    return {name: samples for task in ready for name, samples in task.run(subject).items()}


def split_names(text: str) -> list[str]:
    """The tasks of --tasks. Raises InputError where there is none, or one twice."""
    names = [name.strip() for name in split_outside(text, ",")]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None or not all(names):
        raise InputError(f"--tasks {text!r}: {f'{twice} is there twice' if twice else 'a name is empty'}; give each "
                         f"once, as NAME[,...]")
    return names


def parse_task_data(texts: Sequence[str], flag: str) -> dict[str, str]:
    """NAME=FILE and NAME:SPLIT=FILE -> files by what stands before. Raises InputError, which names the `flag`, for
    another form, for a file that there is not, and where two files are one's."""
    pairs = [text.partition("=") for text in texts]
    wrong = next((name for name, _, file in pairs if not name or not Path(file).is_file()), None)
    if wrong is not None:
        raise InputError(f"{flag} {wrong}: no such file is named; give NAME=FILE or NAME:SPLIT=FILE")
    found = {name: file for name, _, file in pairs}
    twice = next((name for name in found if sum(each[0] == name for each in pairs) > 1), None)
    if twice is not None:
        raise InputError(f"{flag} {twice}: is given two files; give one (rows of several go into one file)")
    return found


def open_tasks(names: Sequence[str], tokenizer: Any, how: How, vocab_size: int, layout: Any = None) -> list[Task]:
    """The tasks, their data read. Raises InputError for an unknown name, for data that cannot be had, where the model
    lacks what one needs, and where two are the same."""
    names = [ALIASES.get(name, name) for name in names]
    how = dataclasses.replace(how, task_data={ALIASES.get(name, name): file for name, file in how.task_data.items()})
    _check_read(names, how)
    if not isinstance(tokenizer, Server):
        check_template_kwargs(how.template_kwargs, without_template(tokenizer) if how.chat == "never" else tokenizer)
    managers: list[Any] = []
    tasks = [_open(name, tokenizer, how, vocab_size, layout, managers) for name in names]
    made = [name for task in tasks for name in task.makes]
    twice = next((name for name in made if made.count(name) > 1), None)
    if twice is not None:
        raise InputError(f"--tasks {','.join(names)}: {twice} would be asked twice; leave out one that has it")
    return tasks


def _check_read(names: Sequence[str], how: How) -> None:
    """Raises InputError for what no task looks at."""
    harness = [name for name in names if not is_graded(name) and (name not in NAMED or NAMED[name].task)]
    for each, file in how.task_data.items():
        name, _, split = each.partition(":")
        if name not in names or (split and name not in harness):
            raise InputError(f"--task-data {each}={file}: no such task among --tasks {','.join(names)}"
                             f"{f' has a split {split}' if name in names else ''}; mend the name")
    unread = {"num-fewshot": how.num_fewshot, "include-path": how.include_path or None}
    wrong = next((flag for flag, value in unread.items() if value is not None), None)
    if wrong and not harness:
        raise InputError(f"--{wrong} {shown(unread[wrong])}: is for tasks of lm-eval's, and none of --tasks "
                         f"{','.join(names)} is one; leave it out")


def _open(name: str, tokenizer: Any, how: How, vocab_size: int, layout: Any, managers: list[Any]) -> Task:
    named = NAMED.get(name)
    if isinstance(tokenizer, Server) and (is_graded(name) or (named and not named.task)):
        raise InputError(f"task {name} is asked of weights that are loaded here; a server ({tokenizer.url}) answers "
                         f"lm-eval's tasks")
    if isinstance(tokenizer, Server) and how.template_kwargs:
        raise InputError(f"--chat-template-kwargs: the server ({tokenizer.url}) has the template, and is asked without "
                         f"them; leave them out")
    _check_chat(name, named, tokenizer, how)
    if is_graded(name):
        task = open_graded(name, tokenizer, vocab_size, limit=how.limit, layout=layout, unsafe=how.unsafe,
                           chat=how.chat != "never", template_kwargs=how.template_kwargs, dtype=how.dtype)
        return _graded(task, how)
    if named and not named.task:
        return _graded(_own(name, named, tokenizer, how, vocab_size, layout), how, named.max_new_tokens)
    return _harness(name, named, tokenizer, how, managers)


def _check_chat(name: str, named: Named | None, tokenizer: Any, how: How) -> None:
    wanted = how.chat == "always" or (how.chat == "auto" and named is not None and named.needs_chat)
    if wanted and not tokenizer.chat_template:
        raise InputError(f"task {name} is a conversation, and the model has no chat template; put chat_template.jinja "
                         f"into its folder, take a model that has one, or give --chat never")


# ------------------------------------------------------------------------------------------------ our own graders


def _graded(task: Graded, how: How, max_new_tokens: int | None = None) -> Task:
    def run(subject: Subject) -> dict[str, list[Sample]]:
        return {task.name: run_graded(task, subject, num_samples=how.num_samples or 1, seed=how.seed,
                                      temperature=how.temperature, max_new_tokens=how.max_new_tokens or max_new_tokens)}

    return Task(task.name, run, task.prompts, [task.name])


def _own(name: str, named: Named, tokenizer: Any, how: How, vocab_size: int, layout: Any) -> Graded:
    """A benchmark that is asked in words of our own."""
    chat = bool(tokenizer.chat_template) and how.chat != "never"
    source = _source(name, named, how.task_data.get(name))
    rows = [_row(name, named, source[index], chat, source.place(index)) for index in range(len(source))]
    kept = [row for row in rows if row is not None]
    if len(kept) < len(rows):
        print(f"note: {name}: {len(rows) - len(kept)} of {len(rows)} rows are not of its test split, and are left out")
    prompts = [_prompt(row, tokenizer, chat, how.template_kwargs, vocab_size) for row in kept[: how.limit]]
    if not prompts:
        raise InputError(f"task {name}: no question is left of {len(rows)} rows; give other data")
    rewards = load_rewards(named.rewards, layout=layout, unsafe=how.unsafe, chat=chat, dtype=how.dtype)
    return Graded(name, prompts, rewards, () if chat else named.stops)


def _source(name: str, named: Named, file: str | None) -> Any:
    """The rows of a file, of the distribution that carries them, or of the Hub."""
    carried = _carried(named.package) if named.package else None
    try:
        return open_source(parse_source(file or carried or f"hf:{named.data}"))
    except InputError as error:
        raise InputError(f"task {name}: its data cannot be had: {error}"
                         + ("" if file else f"; or give --task-data {name}=FILE")) from None


def _carried(package: str) -> str | None:
    module, _, path = package.partition(":")
    spec = importlib.util.find_spec(module)
    file = Path(spec.submodule_search_locations[0], path) if spec and spec.submodule_search_locations else None
    return str(file) if file and file.exists() else None


def _row(name: str, named: Named, row: Mapping[str, Any], chat: bool, place: str) -> dict[str, Any] | None:
    try:
        return named.row(row, chat)
    except (KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{place}: no row of {name} ({type(error).__name__}: {error}); it has {', '.join(row)}, and "
                         f"{named.data} on the Hub has what is expected") from None


def _prompt(row: dict[str, Any], tokenizer: Any, chat: bool, template_kwargs: Mapping[str, Any],
            vocab_size: int) -> Prompt:
    text = row.pop("text")
    tokens = encode_prompt(tokenizer, [{"role": "user", "content": text}],
                           chat_template_kwargs=dict(template_kwargs)).tokens if chat else [
        *missing_start(text, tokenizer), *tokenizer.encode(text)]
    check_ids(tokens, tokenizer, vocab_size)
    return Prompt(tokens, text, row)


# -------------------------------------------------------------------------------------------------------- lm-eval


def _harness(name: str, named: Named | None, tokenizer: Any, how: How, managers: list[Any]) -> Task:
    from evals.lm_eval_tasks import is_mean_of_questions, load_tasks, open_manager

    managers += [] if managers else [open_manager(name, how.include_path)]
    task = named.task if named else name
    _check_known(task, managers[0])
    data = {split.partition(":")[2]: file for split, file in how.task_data.items() if split.partition(":")[0] == name}
    loaded = load_tasks(managers[0], task, data, _settings(named, tokenizer, how), name)
    whole = is_mean_of_questions(managers[0], task)

    def run(subject: Subject | Server) -> dict[str, list[Sample]]:
        from evals.harness import judge

        model = _model(subject, how)
        found: dict[str, list[Sample]] = {}
        for each in loaded:
            judged = judge(each, model, how.limit, _in_chat(each, tokenizer, how))
            found |= _called(name, task, judged.samples)
            if judged.corpus and is_main():
                figures = ", ".join(f"{metric} {value:.4f}" for metric, value in judged.corpus.items())
                print(f"note: {each.config.task}, of all documents together: {figures}")
        return found | ({name: _joined(name, found)} if whole else {})

    makes = [*_called(name, task, {each.config.task: [] for each in loaded}), *([name] if whole else [])]
    return Task(name, run, makes=makes)


def _called(name: str, task: str, samples: Mapping[str, list[Sample]]) -> dict[str, list[Sample]]:
    """Of a benchmark that goes by another name than lm-eval's `task`, by that name."""
    if name == task:
        return dict(samples)
    names = {each: name + each.removeprefix(task) if each.startswith(task) else each for each in samples}
    return {names[each]: [dataclasses.replace(sample, task=names[each]) for sample in own]
            for each, own in samples.items()}


def _model(subject: Subject | Server, how: How) -> Any:
    """As harness.judge takes it."""
    from evals.harness import Generation, HarnessModel

    generation = Generation(how.max_new_tokens, how.temperature, how.seed, how.num_samples)
    if isinstance(subject, Server):
        from evals.remote import RemoteModel

        return RemoteModel(subject.url, subject.name, generation, subject.cache)
    return HarnessModel(subject, generation, how.template_kwargs)


def _joined(name: str, members: Mapping[str, list[Sample]]) -> list[Sample]:
    """A group's questions as one task's."""
    return [dataclasses.replace(sample, task=name) for samples in members.values() for sample in samples]


def _settings(named: Named | None, tokenizer: Any, how: How) -> dict[str, Any]:
    """What a task has other than lm-eval's YAML says."""
    shots = {} if how.num_fewshot is None else {"num_fewshot": how.num_fewshot}
    if named is None:
        return shots
    chat = bool(tokenizer.chat_template) and how.chat != "never"
    return shots | {"generation_kwargs": {"until": [] if chat else list(UNTIL_NEXT), "do_sample": False,
                                          "max_gen_toks": named.max_new_tokens}}


def _in_chat(task: Any, tokenizer: Any, how: How) -> bool:
    """Whether prompts are chats: log-likelihoods are of plain text, unless --chat says otherwise."""
    written = task.OUTPUT_TYPE == "generate_until"
    return how.chat == "always" or (how.chat == "auto" and written and bool(tokenizer.chat_template))


def _check_known(name: str, manager: Any) -> None:
    from evals.lm_eval_tasks import known_names, nearest

    names = list(dict.fromkeys([*NAMED, *known_names(manager)]))
    if name not in names:
        close = nearest(name, names)
        meant = f"did you mean {' or '.join(close)}" if close else "--list shows those that have a name here"
        raise InputError(f"no task {name!r}; {meant}? lm-eval's tasks go by its names, others by math:FILE, code:FILE, "
                         f"gym:TASK and REWARDS:FILE")
