"""A server of the tiny model, in this process: its app, its engine's thread, and a client. Where what a server needs is
not installed, its tests are left out."""

import importlib.util
import json
import threading
import types

import jax
import pytest
from chat_model import write_model

from data.tokenizer import open_tokenizer
from data.tool_calls import FORMATS
from rollouts.engine import Engine
from sharding.mesh import MeshConfig, make_layout
from training.runs import open_policy

NEEDED = ("starlette", "uvicorn", "pydantic", "prometheus_client", "llguidance")
collect_ignore_glob = [] if all(map(importlib.util.find_spec, NEEDED)) else ["test_*.py"]

TEMPLATE = """{% for m in messages %}{{ m.role[0] }}:{{ m.content }}{% for c in m.tool_calls or () %}\
{"name": "{{ c.function.name }}", "parameters": {{ c.function.arguments | tojson }}}{% endfor %}<end>{% endfor %}\
{% if tools %}{{ tools | length }}{% endif %}{% if add_generation_prompt %}a:{% endif %}"""
"""writes calls as Llama 3 does"""


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory):
    """With a chat template."""
    folder = write_model(tmp_path_factory.mktemp("served") / "model")
    config = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(config | {"chat_template": TEMPLATE}))
    return folder


@pytest.fixture(scope="session")
def parts(model_folder):
    """What a server is made of: model, variables, tokenizer, engine, grammars."""
    from serving.grammar import Grammars
    from serving.scoring import Scorer

    layout = make_layout(MeshConfig(), jax.devices()[:1])
    opened = open_policy(str(model_folder))
    tokenizer = open_tokenizer(opened.tokenizer)
    model, variables = opened.load(layout, dtype="float32", param_dtype="float32")
    engine = Engine(model, 4, 2048, 16, layout)
    engine.load(variables)
    grammars = Grammars(tokenizer, model.config.vocab_size)
    return types.SimpleNamespace(model=model, variables=variables, tokenizer=tokenizer, engine=engine,
                                 grammars=grammars, layout=layout, scorer=Scorer(model, variables, layout))


@pytest.fixture(scope="module")
def start(parts):
    """Servers of the model, with other settings; each has the engine to itself until the next one starts."""
    from starlette.testclient import TestClient

    from serving.app import make_app
    from serving.jobs import Jobs
    from serving.metrics import Metrics
    from serving.sample_requests import request_maker
    from serving.served import Served
    from serving.ticks import Ticks

    ended = []

    def begin(api_key=None, max_queue=64, engine=parts.engine, **settings):
        while ended:
            ended.pop()()
        ticks = Ticks(engine, request_maker(parts.tokenizer, parts.grammars), parts.scorer)
        thread = threading.Thread(target=ticks.run)
        thread.start()
        served = Served(("tiny", "other"), parts.model.config, parts.tokenizer, 128,
                        **{"tool_format": FORMATS["llama3"]} | settings)
        jobs = Jobs(ticks, parts.engine.num_slots, max_queue, Metrics())
        app = make_app(served, jobs, parts.grammars, api_key, only_here=False)

        def end():
            ticks.stop()
            thread.join(60)
            assert ticks.error is None

        ended.append(end)
        return types.SimpleNamespace(app=app, jobs=jobs, ticks=ticks, served=served,
                                     client=TestClient(app, base_url="http://localhost", raise_server_exceptions=False))

    yield begin
    while ended:
        ended.pop()()


@pytest.fixture(scope="module")
def usual():
    """The server with the usual settings, if it is the one that runs."""
    return []


@pytest.fixture
def client(start, usual):
    if not usual or usual[0].ticks.ended.is_set():
        usual[:] = [start()]
    return usual[0].client
