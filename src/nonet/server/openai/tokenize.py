"""POST /tokenize and /detokenize, in vLLM's shapes."""

from __future__ import annotations

from nonet.core.errors import InvalidRequestError
from nonet.server.call import Call
from nonet.server.limits import check_depth, check_token_ids
from nonet.server.openai.messages import template_messages
from nonet.server.openai.schemas import DetokenizeRequest, TokenizeRequest
from nonet.server.prompts import encode_text, off_loop, render_chat
from nonet.server.tools import checked_tools

__all__ = ["detokenize", "tokenize"]


async def tokenize(call: Call) -> None:
    """Token ids of a prompt, or of messages as the chat template writes them."""
    body = await call.json(TokenizeRequest)
    state = call.state
    state.find_model(body.model)
    if (body.prompt is None) == (body.messages is None):
        raise InvalidRequestError("give either prompt or messages", "prompt")
    if body.messages is not None:
        check_depth(body.chat_template_kwargs, "chat_template_kwargs")
        use = checked_tools(body.tools, None)
        text = await render_chat(
            state,
            state.tools.plain_history(template_messages(body.messages), use),
            tools=state.tools.template_tools(use),
            template_kwargs=body.chat_template_kwargs,
            add_generation_prompt=body.add_generation_prompt is not False,
        )
        ids = await encode_text(
            state, text, "messages", add_special=body.add_special_tokens is True
        )
    else:
        ids = await encode_text(
            state, body.prompt or "", "prompt", add_special=body.add_special_tokens is not False
        )
    strings = [state.tokenizer.id_to_token(i) for i in ids] if body.return_token_strs else None
    await call.respond(
        {
            "count": len(ids),
            "max_model_len": state.model.max_model_len,
            "tokens": ids,
            "token_strs": strings,
        }
    )


async def detokenize(call: Call) -> None:
    """The text of token ids, control tokens included."""
    body = await call.json(DetokenizeRequest)
    state = call.state
    state.find_model(body.model)
    check_token_ids(body.tokens, state.model.vocab_size, "tokens")
    text = await off_loop(
        state,
        len(body.tokens),
        lambda: state.tokenizer.decode(body.tokens, skip_special=False),
    )
    await call.respond({"prompt": text})
