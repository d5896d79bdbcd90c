"""The server's routes: bodies are read and checked, answers waited for, and given up where the client goes."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, TypeVar

import anyio.to_thread
import pydantic
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from errors import InputError
from serving import openapi, tokens
from serving.access import Access
from serving.answers import Answer
from serving.chat import ChatAnswer
from serving.completions import CompletionAnswer
from serving.grammar import Grammars
from serving.jobs import Job, Jobs
from serving.logprobs import TokenTexts
from serving.refusals import Refusal, failed, too_late
from serving.schemas import Body, ChatBody, CompletionBody, DetokenizeBody, ScoreBody, TokenizeBody
from serving.scores import ScoreAnswer
from serving.served import Served

BodyType = TypeVar("BodyType", bound=Body)
Handler = Callable[[Request], Awaitable[Response]]
CLIENT_CLOSED = 499
"""status where the client has gone, which nobody reads"""
BODY_SECONDS = 30
"""in which a body must have come"""
MAX_BODY = 2**22
"""bytes; as objects they take up to sixty times as much"""
THREAD_BODY = 2**16
"""bytes from which a body is parsed in a thread, and holds nobody up"""


class JsonResponse(Response):
    """JSON; half a character, which models may write, is a question mark."""

    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        return _dump(content)


def make_app(served: Served, jobs: Jobs, grammars: Grammars, api_key: str | None = None,
             only_here: bool = True) -> Starlette:
    """The server of a model. `only_here`: it is called by this machine's names alone."""
    handlers = _Handlers(served, jobs, grammars)
    bodies: dict[str, tuple[type[Body], Any]] = {
        "/v1/completions": (CompletionBody, handlers.complete), "/v1/chat/completions": (ChatBody, handlers.chat),
        "/v1/score": (ScoreBody, handlers.score), "/tokenize": (TokenizeBody, handlers.tokenize),
        "/detokenize": (DetokenizeBody, handlers.detokenize)}

    async def describe(request: Request) -> Response:
        return JsonResponse(openapi.document(bodies))

    gets = {"/v1/models": handlers.list_models, "/v1/models/{name:path}": handlers.show_model,
            "/tokenizer_info": handlers.tokenizer_info, "/health": handlers.health, "/metrics": handlers.metrics,
            "/openapi.json": describe}
    routes = [*(Route(path, handler) for path, handler in gets.items()),
              *(Route(path, _reading(served, *each), methods=["POST"]) for path, each in bodies.items())]
    app = Starlette(routes=routes, exception_handlers={
        Refusal: _refuse, InputError: _refuse_input, HTTPException: _refuse_http, ClientDisconnect: _client_closed,
        Exception: _fail})
    app.add_middleware(Access, api_key=api_key, only_here=only_here, metrics=jobs.metrics, paths={*gets, *bodies})
    return app


class _Handlers:
    """What each path answers. What takes a while is prepared in a thread."""

    def __init__(self, served: Served, jobs: Jobs, grammars: Grammars):
        self._served, self._jobs, self._grammars = served, jobs, grammars
        self._texts = TokenTexts(served.tokenizer)

    async def list_models(self, request: Request) -> Response:
        return JsonResponse({"object": "list", "data": [_model(self._served, name) for name in self._served.names]})

    async def show_model(self, request: Request) -> Response:
        self._served.check_name(request.path_params["name"])
        return JsonResponse(_model(self._served, request.path_params["name"]))

    async def tokenizer_info(self, request: Request) -> Response:
        return JsonResponse(tokens.describe(self._served))

    async def health(self, request: Request) -> Response:
        return Response(status_code=503 if self._jobs.ticks.ended.is_set() else 200)

    async def metrics(self, request: Request) -> Response:
        return Response(self._jobs.metrics.text(), media_type="text/plain; version=0.0.4")

    async def tokenize(self, request: Request, body: TokenizeBody) -> Response:
        return JsonResponse(await anyio.to_thread.run_sync(tokens.tokenize, self._served, body))

    async def detokenize(self, request: Request, body: DetokenizeBody) -> Response:
        return JsonResponse(await anyio.to_thread.run_sync(tokens.detokenize, self._served, body))

    async def score(self, request: Request, body: ScoreBody) -> Response:
        return await self._answer(request, False, lambda: ScoreAnswer(self._served, body))

    async def complete(self, request: Request, body: CompletionBody) -> Response:
        self._served.check_writes()
        return await self._answer(request, body.stream, lambda: CompletionAnswer(self._served, self._texts, body))

    async def chat(self, request: Request, body: ChatBody) -> Response:
        self._served.check_writes()
        return await self._answer(request, body.stream, lambda: ChatAnswer(
            self._served, self._texts, self._grammars, body))

    async def _answer(self, request: Request, streams: bool | None, prepare: Callable[[], Answer]) -> Response:
        """What a job gives, as a whole or in a stream."""
        prepared = await anyio.to_thread.run_sync(prepare)
        job = self._jobs.submit(prepared.samples, prepared.rows)
        try:
            await _accepted(job, self._served.timeout)
            if streams:
                return _Events(prepared, job, self._served.timeout)
            return await _whole(request, prepared, job, self._served.timeout)
        except BaseException:
            job.close()
            raise


def _model(served: Served, name: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": served.created, "owned_by": "temper",
            "max_model_len": served.max_length}


# ------------------------------------------------------------------------------------------------------------- reading

def _reading(served: Served, kind: type[Body], handler: Any) -> Handler:
    """A handler of a request, of one that takes its body, too."""
    async def read_and_handle(request: Request) -> Response:
        body = await _read(request, kind)
        body.check()
        served.check_name(body.model)
        return await handler(request, body)

    return read_and_handle


async def _read(request: Request, kind: type[BodyType]) -> BodyType:
    """The body. Raises Refusal for what is none."""
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        raise Refusal(415, "a body is JSON, with the header Content-Type: application/json")
    try:
        async with asyncio.timeout(BODY_SECONDS):
            content = await _content(request)
        if len(content) < THREAD_BODY:
            return kind.model_validate_json(content)
        return await anyio.to_thread.run_sync(kind.model_validate_json, content)
    except TimeoutError:
        raise Refusal(408, f"the body has not come within {BODY_SECONDS} s") from None
    except pydantic.ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        place = ".".join(map(str, first["loc"]))
        raise Refusal(400, f"{place}: {first['msg']}" if place else first["msg"], param=place or None) from None


async def _content(request: Request) -> bytes:
    parts, size = [], 0
    async for part in request.stream():
        parts.append(part)
        size += len(part)
        if size > MAX_BODY:
            raise Refusal(413, f"the body is larger than {MAX_BODY} bytes; send less at a time")
    return b"".join(parts)


# ----------------------------------------------------------------------------------------------------------- answering

async def _accepted(job: Job, seconds: float) -> None:
    """Waits until the engine, which may be compiling, has the job. Raises Refusal where that takes too long."""
    try:
        async with asyncio.timeout(job.left(seconds)):
            await job.accepted()
    except TimeoutError:
        raise too_late(seconds) from None


async def _whole(request: Request, prepared: Answer, job: Job, seconds: float) -> Response:
    """The answer; it is given up where the client goes before it is there, or where it takes too long."""
    answering, leaving = asyncio.ensure_future(prepared.whole(job)), asyncio.ensure_future(_disconnected(request))
    try:
        await asyncio.wait({answering, leaving}, timeout=job.left(seconds), return_when=asyncio.FIRST_COMPLETED)
        if answering.done():
            return JsonResponse(answering.result())
        if leaving.done():
            return Response(status_code=CLIENT_CLOSED)
        raise too_late(seconds)
    finally:
        answering.cancel()
        leaving.cancel()
        job.close()


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


class _Events(StreamingResponse):
    """An answer as server-sent events; its job is closed however that ends."""

    def __init__(self, prepared: Answer, job: Job, seconds: float):
        super().__init__(_events(prepared, job, seconds), media_type="text/event-stream",
                         headers={"Cache-Control": "no-cache"})
        self._job = job

    async def __call__(self, *args: Any) -> None:
        try:
            await super().__call__(*args)
        finally:
            self._job.close()


async def _events(prepared: Answer, job: Job, seconds: float) -> AsyncIterator[bytes]:
    """Its chunks, then [DONE]; or, after what has come, an error."""
    chunks = prepared.chunks(job)
    try:
        while True:
            chunk = await asyncio.wait_for(anext(chunks, None), job.left(seconds))
            if chunk is None:
                break
            yield _event(chunk)
        yield b"data: [DONE]\n\n"
    except TimeoutError:
        yield _event(too_late(seconds).body())
    except Refusal as refusal:
        yield _event(refusal.body())


def _event(content: Any) -> bytes:
    return b"data: " + _dump(content) + b"\n\n"


def _dump(content: Any) -> bytes:
    return json.dumps(content, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode(errors="replace")


# ------------------------------------------------------------------------------------------------------------ refusing

async def _refuse(request: Request, refusal: Refusal) -> Response:
    return JsonResponse(refusal.body(), refusal.status, refusal.headers)


async def _refuse_input(request: Request, error: InputError) -> Response:
    return await _refuse(request, Refusal(400, str(error)))


async def _refuse_http(request: Request, error: HTTPException) -> Response:
    """An unknown path, another method, a body that is too large."""
    return await _refuse(request, Refusal(error.status_code, f"{request.method} {request.url.path}: {error.detail}",
                                          headers=error.headers or {}))


async def _client_closed(request: Request, error: ClientDisconnect) -> Response:
    return Response(status_code=CLIENT_CLOSED)


async def _fail(request: Request, error: Exception) -> Response:
    """A bug, or what made the engine give up; the traceback goes to the log."""
    return await _refuse(request, failed(f"the server has failed ({type(error).__name__}); its log says why"))
