"""Groups of episodes, graded: prompts are answered by the engine, and rewards run beside it as groups finish.

    collector = Collector(engine, tokenizer, rewards, ...)
    for group in collector.collect(prompts, key, group_size, controls):
        ...

Episode i of n draws with fold_in(key, i), and its turn t with fold_in(key, i + t n): what is drawn depends on no
neighbour, slot or time. A group is yielded once it is graded, in whatever order; its `number` is its prompt's.
"""

import copy
import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from data.chat import open_template
from data.prompts import Prompt
from data.tool_calls import ToolFormat, decoder_with, find_format, read_turn
from errors import InputError
from rewards.registry import Weighted
from rewards.scoring import HEAD, Failure, Scored
from rollouts.engine import Engine, Output, Request
from rollouts.environments import (
    CallError,
    Calls,
    Environments,
    Messages,
    encode_continuation,
    encode_opening,
    read_reset,
    read_step,
)
from rollouts.episodes import Episode, Group
from rollouts.grading import Grading
from rollouts.requests import fold_keys
from rollouts.sampling import Controls
from rollouts.stops import Ends

ENVIRONMENT = "environment"
"""what an environment's steps are worth has this name among the rewards, and so have its failures"""
ENGINE = "engine"
"""failures of the engine, where log-probabilities are not finite, say, have this name"""
WAIT = 0.05
"""seconds that environments are waited for at a time, where there is nothing to decode"""


@dataclasses.dataclass(frozen=True)
class Collector:
    """What collecting needs besides prompts and a key."""

    engine: Engine
    tokenizer: Any
    rewards: Sequence[Weighted]
    max_new_tokens: int
    """of an episode after its prompt; what an environment says counts, too"""
    ends: Ends
    reward_timeout: float
    """seconds of each reward, from when the last episode has ended"""
    environments: Environments | None = None
    columns: Sequence[str] = ()
    """that rewards are given, None where a prompt has none of that name, whichever prompts are collected"""

    def collect(self, prompts: Sequence[Prompt], key: Any, group_size: int, controls: Controls,
                advance: Callable[[int], None] = lambda count: None) -> Iterator[Group]:
        """Yields every prompt's group once it is graded; `advance` is told of episodes as they end. Raises InputError
        as rewards do, and Engine.submit."""
        sampling, waiting = _Sampling(self, prompts, key, group_size, controls), {}
        columns = dict.fromkeys([*self.columns, *(name for prompt in prompts for name in prompt.columns)])
        with Grading(self.rewards, self.reward_timeout, [*columns]) as grading, sampling:
            for group in sampling.groups(advance):
                waiting[group.number] = group
                grading.add(group.number, *for_rewards(group, self.environments is not None))
                for number, scored in grading.finished():
                    yield graded(waiting.pop(number), scored)
            for number, scored in grading.wait():
                yield graded(waiting.pop(number), scored)


def for_rewards(group: Group, as_messages: bool = False) -> tuple[list[Any], list[Any], dict[str, list[Any]]]:
    """Prompts, completions and columns of a group as TRL gives them to reward functions: completions in the prompts'
    form, or as messages, and completion_ids, their tokens."""
    text, episodes = group.prompt.text, group.episodes
    as_messages |= isinstance(text, list)
    completions = [episode.messages if as_messages else episode.text for episode in episodes]
    columns = {name: [value] * len(episodes) for name, value in group.prompt.columns.items()}
    return [text] * len(episodes), completions, columns | {"completion_ids": [each.completion for each in episodes]}


def graded(group: Group, scored: Scored) -> Group:
    """The group with its rewards and failures. An episode on which a reward that counts failed, or its environment, or
    the engine, has no total."""
    for member, episode in enumerate(group.episodes):
        own = episode.values.get(ENVIRONMENT)
        episode.values = {name: values[member] for name, values in scored.values.items()} | episode.values
        failed = episode.finish_reason == "error" or (
            scored.totals[member] is None and any(failure.row == member for failure in scored.failures))
        parts = [part for part in (scored.totals[member], own) if part is not None]
        episode.reward = sum(parts) if parts and not failed else None
    group.failures += scored.failures
    return group


@dataclasses.dataclass
class _Conversation:
    """An episode on its way."""

    number: int
    """among all"""
    group: Group
    episode: Episode
    environment: Any = None
    """in process 0"""
    turns: int = 0
    """of the policy, begun"""
    turn_start: int = 0
    """where the last of them begins among the tokens"""

    @property
    def messages(self) -> Messages:
        return [*self.episode.opening, *self.episode.messages]

    # an environment gets copies, so that what it does to them changes no episode and no other environment's row

    def open(self, make: Callable[[], Any]) -> Any:
        self.environment, prompt = make(), self.group.prompt
        return self.environment.reset(copy.deepcopy(prompt.columns | {"prompt": prompt.text}))

    def go_on(self) -> Any:
        return self.environment.step(copy.deepcopy(self.messages))


class _Sampling:
    """The episodes of P prompts times `group_size`; a context manager, which drops at its end what is on its way."""

    def __init__(self, collector: Collector, prompts: Sequence[Prompt], key: Any, group_size: int, controls: Controls):
        self._collector, self._key, self._controls = collector, key, controls
        limit = collector.environments.max_prompt_length if collector.environments else None
        groups = [Group(number, prompt, [_begin(prompt, limit) for _ in range(group_size)])
                  for number, prompt in enumerate(prompts)]
        members = [(group, episode) for group in groups for episode in group.episodes]
        self._conversations = [_Conversation(number, *each) for number, each in enumerate(members)]
        self._open = {group.number: group_size for group in groups}
        self._requests: dict[int, _Conversation] = {}
        self._calls = Calls(collector.environments.timeout if collector.environments else 0.0)

    def __enter__(self) -> "_Sampling":
        return self

    def __exit__(self, *_: Any) -> None:
        self._collector.engine.cancel(list(self._requests))

    def groups(self, advance: Callable[[int], None]) -> Iterator[Group]:
        """Each group once all of its episodes have ended."""
        ended = self._begin()
        while True:
            for each in ended:
                self._open[each.group.number] -= 1
                if not self._open[each.group.number]:
                    yield each.group
            advance(len(ended))
            if not self._requests and not self._calls.running:
                return
            ended = self._go_on()

    def _begin(self) -> list[_Conversation]:
        environments = self._collector.environments
        if environments is None:
            return self._submit(self._conversations)
        for each in self._conversations:
            self._calls.start(each.number, read_reset, each.open, environments.make)
        return []

    def _go_on(self) -> list[_Conversation]:
        """Decodes some tokens, takes what environments gave; the conversations that have ended."""
        outputs = self._collector.engine.step() if self._requests else []
        ended = [each for each in map(self._add, outputs) if each and self._is_over(each)]
        answered = []
        for number, given in self._calls.finished(0.0 if self._requests else WAIT).items():
            conversation = self._conversations[number]
            (ended if self._answer(conversation, given) else answered).append(conversation)
        return ended + self._submit(answered)

    def _submit(self, conversations: Sequence[_Conversation]) -> list[_Conversation]:
        """Asks the policy for a turn of each; those for which there is no room have ended."""
        room = {each.number: self._room(each) for each in conversations}
        fitting = [each for each in conversations if room[each.number] > 0]
        keys = self._keys()
        requests = [Request(list(each.episode.tokens), room[each.number], keys[each.number], self._controls,
                            self._collector.ends) for each in fitting]
        for identity, each in zip(self._collector.engine.submit(requests), fitting, strict=True):
            each.turn_start = len(each.episode.tokens) if each.turns else each.episode.prompt_length
            each.turns += 1
            self._requests[identity] = each
        for each in conversations:
            if room[each.number] <= 0:
                each.episode.finish_reason = "length"
        return [each for each in conversations if room[each.number] <= 0]

    def _room(self, conversation: _Conversation) -> int:
        """Tokens that may follow."""
        episode = conversation.episode
        return self._collector.max_new_tokens - len(episode.tokens) + episode.prompt_length

    def _keys(self) -> np.ndarray:
        """Data of the keys that each conversation's next turn draws with; of all, so that one shape is compiled."""
        numbers = [each.number + each.turns * len(self._conversations) for each in self._conversations]
        return fold_keys(self._key, numbers)

    def _add(self, output: Output) -> _Conversation | None:
        """Takes what was drawn; the conversation whose turn that ends."""
        if output.id not in self._requests:
            return None  # another's
        conversation = self._requests[output.id]
        episode = conversation.episode
        episode.tokens += output.tokens
        episode.sampled += [True] * len(output.tokens)
        episode.logps += output.logps
        episode.version = output.version
        if output.finish_reason is None:
            return None
        del self._requests[output.id]
        episode.finish_reason = output.finish_reason
        episode.messages.append(self._read_turn(conversation, episode.tokens[conversation.turn_start :]))
        if output.error:
            self._fail(conversation, ENGINE, output.error)
        return conversation

    def _read_turn(self, conversation: _Conversation, tokens: Sequence[int]) -> dict[str, Any]:
        """What the policy says; where the prompt has tools, with its calls of them apart from the content."""
        tokenizer = self._collector.tokenizer
        tool_format = self._tool_format if conversation.group.prompt.columns.get("tools") else None
        if tool_format is None:
            return {"role": "assistant", "content": tokenizer.decode(tokens)}
        return read_turn(tool_format, decoder_with(tokenizer, tool_format.marks)(tokens)).message()

    @functools.cached_property
    def _tool_format(self) -> ToolFormat | None:
        """In which the chat template writes calls."""
        tokenizer = self._collector.tokenizer
        return find_format(open_template(tokenizer)) if tokenizer.chat_template else None

    def _is_over(self, conversation: _Conversation) -> bool:
        """Whether a conversation has ended with the policy's turn; else its environment is asked."""
        if self._collector.environments is None or conversation.episode.finish_reason != "stop":
            return True
        self._calls.start(conversation.number, read_step, conversation.go_on)
        return False

    def _answer(self, conversation: _Conversation, given: Any) -> bool:
        """Takes what an environment gave; whether that is the end."""
        try:
            if isinstance(given, Exception):
                raise given
            return self._step(conversation, given) if conversation.turns else self._reset(conversation, given)
        except Exception as error:  # noqa: BLE001 - a user's environment may raise anything, and give anything
            text = str(error) if isinstance(error, CallError) else f"{type(error).__name__}: {error}"
            self._fail(conversation, ENVIRONMENT, text)
            return True

    def _reset(self, conversation: _Conversation, given: Any) -> bool:
        episode = conversation.episode
        episode.opening = given
        tokens = encode_opening(self._collector.tokenizer, conversation.group.prompt, episode.opening)
        longest = self._collector.environments.max_prompt_length
        if len(tokens) > longest:
            raise InputError(f"reset gave {len(tokens)} tokens, more than --environment.max-prompt-length {longest}")
        episode.tokens, episode.prompt_length = tokens, len(tokens)
        return False

    def _step(self, conversation: _Conversation, given: Any) -> bool:
        messages, done, reward = given
        episode = conversation.episode
        if reward is not None:
            episode.values[ENVIRONMENT] = (episode.values.get(ENVIRONMENT) or 0.0) + reward
        if done or conversation.turns >= self._collector.environments.max_turns:
            episode.finish_reason = "stop" if done else "length"
            return True
        episode.messages += messages
        ended = episode.tokens[-1] in self._collector.ends.ids
        tokens = encode_continuation(self._collector.tokenizer, conversation.group.prompt, conversation.messages, ended)
        if len(tokens) >= self._room(conversation):
            episode.finish_reason = "length"
            return True
        episode.tokens += tokens
        episode.sampled += [False] * len(tokens)
        episode.logps += [0.0] * len(tokens)
        return False

    def _fail(self, conversation: _Conversation, name: str, text: str) -> None:
        episode = conversation.episode
        episode.finish_reason, episode.values = "error", {}
        member = next(number for number, each in enumerate(conversation.group.episodes) if each is episode)
        conversation.group.failures.append(Failure(name, member, " ".join(text.split())[:500], episode.text[:HEAD]))


def _begin(prompt: Prompt, limit: int | None) -> Episode:
    """With the prompt's tokens, up to the limit of what an environment opens a conversation with: where it opens none,
    they stay. What is drawn of an answer already counts as the policy's, with no log-probabilities."""
    opening = list(prompt.text) if isinstance(prompt.text, list) else []
    tokens, drawn = list(prompt.tokens[:limit]), prompt.drawn
    return Episode(tokens, len(tokens) - drawn, [True] * drawn, [0.0] * drawn, opening=opening)
