"""/tokenize, /detokenize and /tokenizer_info, as vLLM has them: what clients need who count tokens themselves."""

from typing import Any

from serving.conversations import encode_chat
from serving.refusals import Refusal
from serving.schemas import DetokenizeBody, TokenizeBody
from serving.served import Served


def tokenize(served: Served, body: TokenizeBody) -> dict[str, Any]:
    """Of a prompt, with the special tokens that its tokenizer adds unless they are not wanted, or of messages."""
    if (body.prompt is None) == (body.messages is None):
        raise Refusal(400, "give either prompt or messages", param="prompt")
    if body.messages is not None:
        tokens = encode_chat(served, body, [tool.model_dump(exclude_none=True) for tool in body.tools or ()])
    else:
        tokens = served.text.encode(body.prompt, add_special_tokens=body.add_special_tokens is not False)
    return {"tokens": tokens, "count": len(tokens), "max_model_len": served.max_length}


def detokenize(served: Served, body: DetokenizeBody) -> dict[str, Any]:
    """Special tokens are written as they are."""
    served.check_tokens(body.tokens or [0])
    return {"prompt": served.text.decode(body.tokens, skip_special_tokens=False)}


def describe(served: Served) -> dict[str, Any]:
    """What the tokenizer's configuration says."""
    tokenizer = served.text
    return {"tokenizer_class": type(tokenizer).__name__, "bos_token": tokenizer.bos_token or None,
            "eos_token": tokenizer.eos_token, "pad_token": getattr(tokenizer, "pad_token", None),
            "chat_template": tokenizer.chat_template, "model_max_length": served.max_length}
