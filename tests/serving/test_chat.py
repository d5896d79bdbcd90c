"""/v1/chat/completions: the chat template's prompt, the engine's answer, calls of tools, and JSON of a schema."""

import json

import pytest
from chat_model import CHARACTERS
from serving_client import expected, post, streamed

from data.chat import render

BRACE = CHARACTERS.index("{") + 2
PATH = "/v1/chat/completions"
ASK = [{"role": "user", "content": "Hi"}]
TOOLS = [{"type": "function", "function": {"name": "now", "description": "The time", "parameters": {
    "type": "object", "properties": {}, "additionalProperties": False}}},
    {"type": "function", "function": {"name": "at", "parameters": {
        "type": "object", "properties": {"n": {"enum": [1, 2]}}, "required": ["n"], "additionalProperties": False}}}]
SCHEMA = {"type": "object", "properties": {"ok": {"type": "boolean"}}, "required": ["ok"],
          "additionalProperties": False}


def chat(client, messages=ASK, **body):
    response = post(client, PATH, messages=messages, **body)
    assert response.status_code == 200, response.text
    return response.json()


def merged(chunks, index=0):
    """The message that a stream makes up, as OpenAI's client adds deltas up; finish reasons; log-probabilities."""
    message, reasons, logprobs = {"tool_calls": []}, [], []
    for choice in (each for chunk in chunks for each in chunk["choices"] if each["index"] == index):
        reasons.append(choice["finish_reason"])
        logprobs += (choice["logprobs"] or {}).get("content", [])
        for name, value in choice["delta"].items():
            if name != "tool_calls":
                message[name] = message.get(name, "") + value
            for call in value if name == "tool_calls" else ():
                if call["index"] == len(message["tool_calls"]):
                    message["tool_calls"].append({"id": call["id"], "name": call["function"]["name"], "arguments": ""})
                message["tool_calls"][call["index"]]["arguments"] += call["function"]["arguments"]
    return message, reasons, logprobs


def test_answers_are_the_engines_of_the_same_seed(client, parts):
    messages = [{"role": "developer", "content": "Be brief."}, {"role": "user", "content": [
        {"type": "text", "text": "H"}, {"type": "text", "text": "i"}]}]
    answer = chat(client, messages, n=2, temperature=0.9, user="me", store=False, metadata={})
    prompt = render(parts.tokenizer, [{"role": "system", "content": "Be brief."}, ASK[0]], True)
    assert prompt == "s:Be brief.<end>u:Hi<end>a:"
    found = expected(parts, [prompt], 2, temperature=0.9)
    assert [choice["message"]["content"] for choice in answer["choices"]] == [
        parts.tokenizer.decode(each.tokens) for each in found]
    assert [choice["finish_reason"] for choice in answer["choices"]] == [each.finish_reason for each in found]
    assert answer["usage"]["prompt_tokens"] == len(parts.tokenizer.encode(prompt))
    assert answer["object"] == "chat.completion"
    assert answer["choices"][0]["message"]["role"] == "assistant"


def test_a_stream_is_the_same_in_parts(client):
    body = {"n": 2, "logprobs": True, "top_logprobs": 2, "messages": ASK}
    whole, chunks = chat(client, **body), streamed(client, PATH, **body, stream_options={"include_usage": True})
    assert chunks[-1]["usage"] == whole["usage"]
    assert chunks[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    for choice in whole["choices"]:
        message, reasons, logprobs = merged(chunks, choice["index"])
        assert message["content"] == choice["message"]["content"]
        assert reasons == [None] * (len(reasons) - 1) + [choice["finish_reason"]]
        assert logprobs == choice["logprobs"]["content"]
        assert all(len(each["top_logprobs"]) == 2 for each in logprobs)
        text = b"".join(bytes(each["bytes"]) for each in logprobs if each["token"] != "<unk>").decode()
        assert text == choice["message"]["content"]


def test_the_whole_context_is_used_where_no_limit_is_given(client):
    answer = client.post(PATH, json={"messages": ASK, "ignore_eos": True, "max_tokens": None}).json()
    assert answer["usage"]["total_tokens"] == 128
    assert answer["choices"][0]["finish_reason"] == "length"


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "at"}}])
def test_a_call_that_must_come_is_one(client, choice):
    body = {"messages": ASK, "tools": TOOLS, "tool_choice": choice, "max_completion_tokens": 90, "logprobs": True,
            "parallel_tool_calls": False}
    whole = chat(client, **body)["choices"][0]
    [call] = whole["message"]["tool_calls"]
    assert whole["finish_reason"] == "tool_calls"
    assert whole["message"]["content"] is None
    name, arguments = call["function"]["name"], json.loads(call["function"]["arguments"])
    assert (name == "now" and arguments == {}) or (name == "at" and arguments["n"] in (1, 2))
    assert choice == "required" or name == "at"
    message, reasons, logprobs = merged(streamed(client, PATH, **body))
    assert [(each["name"], each["arguments"]) for each in message["tool_calls"]] == [(
        name, call["function"]["arguments"])]
    assert reasons[-1] == "tool_calls"
    assert logprobs == whole["logprobs"]["content"]
    assert "".join(each["token"] for each in logprobs).startswith('{"name": "')


def test_calls_and_what_tools_answer_are_told_to_the_model(client, parts):
    call = {"id": "call_1", "type": "function", "function": {"name": "at", "arguments": '{"n": 1}'}}
    messages = [*ASK, {"role": "assistant", "content": None, "tool_calls": [call]},
                {"role": "tool", "tool_call_id": "call_1", "content": "12"}]
    answer = chat(client, messages, tools=TOOLS)
    prompt = 'u:Hi<end>a:{"name": "at", "parameters": {"n": 1}}<end>t:12<end>2a:'
    [found] = expected(parts, [prompt])
    assert answer["choices"][0]["message"]["content"] == parts.tokenizer.decode(found.tokens)
    none = chat(client, tools=TOOLS, tool_choice="none")
    assert none["usage"]["prompt_tokens"] == len(parts.tokenizer.encode("u:Hi<end>a:"))


def test_a_strict_function_is_held_to_its_schema_where_it_is_called(client):
    tools = [{**tool, "function": {**tool["function"], "strict": True}} for tool in TOOLS]
    answer = chat(client, tools=tools, logit_bias={BRACE: 100}, max_tokens=80, temperature=0)
    assert answer["choices"][0]["finish_reason"] == "tool_calls"


@pytest.mark.parametrize("response_format", [{"type": "json_object"}, {"type": "json_schema", "json_schema": {
    "name": "answer", "schema": SCHEMA, "strict": True}}])
def test_an_answer_is_json_of_its_schema(client, response_format):
    bias = {BRACE + 2: 20}  # random weights would write on for long
    answer = chat(client, response_format=response_format, max_tokens=100, logit_bias=bias)
    content = json.loads(answer["choices"][0]["message"]["content"])
    assert isinstance(content, dict)
    if "json_schema" in response_format:
        assert content["ok"] in (True, False)


def test_thoughts_are_kept_apart_where_that_is_asked_for(start):
    bias = dict.fromkeys(range(2), -100)
    served = start()
    plain = chat(served.client, logit_bias=bias)["choices"][0]["message"]
    assert "reasoning_content" not in plain
    opened = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "<think>"}]
    body = {"continue_final_message": True, "add_generation_prompt": False, "logit_bias": bias}
    thought = chat(served.client, opened, separate_reasoning=True, **body)["choices"][0]["message"]
    whole = chat(served.client, opened, **body)["choices"][0]["message"]
    assert whole["content"].strip() == thought["reasoning_content"]
    assert thought["content"] == ""


def test_an_answer_can_be_gone_on_with(client, parts):
    messages = [*ASK, {"role": "assistant", "content": "Hello"}]
    went_on = chat(client, messages, continue_final_message=True, add_generation_prompt=False)
    [found] = expected(parts, ["u:Hi<end>a:Hello"])
    assert went_on["choices"][0]["message"]["content"] == parts.tokenizer.decode(found.tokens)
    another = chat(client, messages)
    [found] = expected(parts, ["u:Hi<end>a:Hello<end>a:"])
    assert another["choices"][0]["message"]["content"] == parts.tokenizer.decode(found.tokens)


def test_template_arguments_are_the_servers_and_the_requests(start):
    template = "{% for m in messages %}{{ m.content }}{{ style }}{% endfor %}:"
    served = start(template_kwargs={"style": "!"})
    served.served.tokenizer.chat_template, before = template, served.served.tokenizer.chat_template
    try:
        counts = [chat(served.client, **more)["usage"]["prompt_tokens"] for more in (
            {}, {"chat_template_kwargs": {"style": "!!!"}})]
    finally:
        served.served.tokenizer.chat_template = before
    assert counts == [4, 6]
