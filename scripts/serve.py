"""A server with OpenAI's interface."""

import dataclasses
import os
from typing import Annotated, Any, Literal

import tyro

from cli import command
from cli.checks import check_positive, compute_in, resolve_dtype
from cli.flags import SamplingMeshFlags
from errors import InputError
from sharding.hosts import HostsConfig
from sharding.settings import MeshConfig

DESCRIPTION = """Serve a model to clients of OpenAI's interface (pip install -r requirements-serve.txt).

  python -m scripts.serve --model smollm2-135m-instruct
  python -m scripts.serve --model runs/mine --served-name mine --port 8001

A reward model answers /v1/score alone. docs/serving.md says what is supported. SIGTERM and Ctrl-C end the server once
answers on their way are complete, or after 30 s."""

KEY = "TEMPER_API_KEY"
"""the environment variable that may hold the key"""
NEEDED = ("starlette", "uvicorn", "pydantic", "prometheus_client", "llguidance")
CACHED = 2048
"""tokens of each slot that the cache holds by default, where memory allows"""


@dataclasses.dataclass(frozen=True)
class Config:
    model: str
    """This model is served: embedded (smollm2-135m-instruct), Hub id, preset, folder, .gguf file, PEFT adapter or run
    directory (RUN@best and RUN@STEP are one of its checkpoints)."""
    host: str = "127.0.0.1"
    """The server listens at this address; beyond this machine (0.0.0.0, say) it needs a key."""
    port: int = dataclasses.field(default=8000, metadata={"largest": 2**16 - 1})
    """The server listens at this port."""
    api_key: str | None = None
    """Requests must bear this key (Authorization: Bearer KEY); TEMPER_API_KEY in the environment, which others on this
    machine do not see, does as well."""
    served_name: tuple[str, ...] = ()
    """Requests call the model by these names; by default as --model has it."""
    max_length: int | None = None
    """A prompt and its completion may have this many tokens; by default the model's context."""
    max_new_tokens: int | None = None
    """A completion may have this many tokens; by default what --max-length leaves."""
    num_slots: int = 64
    """This many completions are decoded at a time."""
    max_queue: int = 256
    """This many completions may wait for a slot; who comes then is told to come back (429)."""
    cache_tokens: int | None = None
    """The cache holds this many tokens of all requests together; by default 2,048 a slot, --max-length at the least, as
    far as a quarter of the memory goes."""
    timeout: float = 600.0
    """A request is given up after this many seconds (504)."""
    tool_format: Literal["auto", "hermes", "llama3", "mistral", "pythonic"] = "auto"
    """Tool calls are written like this; auto is what the chat template writes. A template without tools has them told
    in the system's message."""
    split_reasoning: bool = False
    """What an answer has in <think> is given as reasoning_content; a request's separate_reasoning comes before it."""
    chat_template_kwargs: str | None = None
    """The chat template gets these besides, such as "{enable_thinking: false}"; a request's come before them."""
    dtype: Literal["auto", "bfloat16", "float32"] = "auto"
    """Matmuls are computed in this type; auto is what is fastest here, on CPUs as measured at the first start."""
    sampling_layout: Annotated[SamplingMeshFlags, tyro.conf.arg(name="sampling")] = SamplingMeshFlags()
    mesh: MeshConfig = MeshConfig()
    hosts: HostsConfig = HostsConfig()


def main(config: Config) -> None:
    from data.tokenizer import open_tokenizer
    from serving.app import make_app
    from serving.grammar import Grammars
    from serving.jobs import Jobs
    from serving.listening import is_loopback, serve, take_port
    from serving.metrics import Metrics
    from serving.sample_requests import request_maker
    from serving.scoring import Scorer
    from serving.ticks import Ticks
    from sharding.exchange import broadcast
    from sharding.hosts import connect, is_main
    from sharding.mesh import make_layout
    from training.runs import open_model

    api_key = check(config)
    connect(config.hosts)
    listener = take_port(config.host, config.port) if is_main() else None
    broadcast(None)  # no process goes on where the port is refused
    layout = make_layout(config.mesh)
    opened = open_model(config.model)
    tokenizer = open_tokenizer(opened.tokenizer)
    served = open_served(config, opened.config, tokenizer)
    dtype = compute_in(resolve_dtype(config.dtype))
    model, variables = opened.load(layout, dtype=dtype, param_dtype=dtype)
    engine = None if model.config.reward_head else open_engine(config, served, model, variables, layout)
    grammars = Grammars(tokenizer, model.config.vocab_size)
    ticks = Ticks(engine, request_maker(tokenizer, grammars), Scorer(model, variables, layout))
    if listener is None:
        run_beside(ticks)
        return
    jobs = Jobs(ticks, engine.num_slots if engine else config.num_slots, config.max_queue, Metrics())
    app = make_app(served, jobs, grammars, api_key, only_here=api_key is None and is_loopback(config.host))
    address = f"[{config.host}]" if ":" in config.host else config.host
    line = f"serving {' '.join(served.names)} at http://{address}:{listener.getsockname()[1]}/v1"
    serve(app, listener, ticks, lambda: print(line, flush=True))


def run_beside(ticks: Any) -> None:
    """In the processes that do not listen."""
    ticks.run()
    if ticks.error:
        raise ticks.error


def open_served(config: Config, model: Any, tokenizer: Any) -> Any:
    """Names and limits. Raises InputError for a limit beyond the model's context, and for end tokens or template
    arguments that do not fit the model."""
    from data.chat import open_template
    from data.encode import check_ends
    from data.messages import parse_template_kwargs
    from data.templates import check_template_kwargs
    from data.tool_calls import FORMATS, find_format
    from serving.served import Served

    max_length = config.max_length or model.max_length
    if max_length > model.max_length:
        raise InputError(f"--max-length {max_length} is beyond the model's context of {model.max_length} tokens")
    if tokenizer is not None and not model.reward_head:
        check_ends(tokenizer, model.vocab_size)
    kwargs = parse_template_kwargs(config.chat_template_kwargs)
    check_template_kwargs(kwargs, tokenizer)
    template = open_template(tokenizer) if tokenizer is not None and tokenizer.chat_template else None
    own = find_format(template) if template else None
    return Served(config.served_name or (config.model,), model, tokenizer, max_length, config.max_new_tokens,
                  own if config.tool_format == "auto" else FORMATS[config.tool_format],
                  writes_tools=template is not None and not template.reads("tools"),
                  splits_thoughts=config.split_reasoning, template_kwargs=kwargs, timeout=config.timeout)


def open_engine(config: Config, served: Any, model: Any, variables: Any, layout: Any) -> Any:
    """With all that it needs compiled."""
    import sys

    from rollouts.engine import Engine
    from rollouts.layout import num_shares
    from rollouts.memory import PAGE, capacity_for

    sampling = config.sampling_layout.mesh
    shares = num_shares(layout, model, sampling)
    held = capacity_for(model, config.num_slots, served.max_length, shares=shares)
    least = shares * (served.max_length + PAGE)
    capacity = config.cache_tokens or min(held, max(least, config.num_slots * CACHED))
    engine = Engine(model, config.num_slots, capacity, layout=layout, sampling=sampling)
    engine.load(variables)
    command.print_once(engine.describe(), sys.stderr)
    engine.warm_up(served.max_length)
    return engine


def check(config: Config) -> str | None:
    """The key, if any. Raises InputError for flags that make no sense, alone or together."""
    import importlib.util

    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise InputError(f"scripts.serve needs {', '.join(missing)}; run: pip install -r requirements-serve.txt")
    from serving.listening import is_loopback

    check_positive(config, "num_slots", "max_queue", "timeout", "max_length", "max_new_tokens", "cache_tokens")
    if config.port < 0:
        raise InputError(f"--port {config.port}: ports are from 1 to {2**16 - 1}, and 0 is any that is free")
    if "" in config.served_name:
        raise InputError("--served-name: a name is empty; give it a letter")
    key = config.api_key or os.environ.get(KEY)
    if key is not None and not (key.isascii() and key.isprintable() and key.strip() == key and key):
        raise InputError("--api-key: a key has letters, digits and the like, and no space at its ends; give another")
    if key is None and not is_loopback(config.host):
        raise InputError(f"--host {config.host} can be reached from other machines, and there is no key; give "
                         f"--api-key KEY, or set {KEY}")
    return key


if __name__ == "__main__":
    command.run(main, Config, DESCRIPTION)
