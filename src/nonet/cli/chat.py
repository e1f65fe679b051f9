"""`nonet chat`: a conversation in the terminal, with an engine of its own or with a running server.

`/new` forgets the conversation, `/quit` or the end of input leaves; an interrupt stops the answer being written.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from dataclasses import dataclass
from typing import Annotated

from cyclopts import Parameter

from nonet.cli.flags import ENGINE, configured
from nonet.cli.sampling import SamplingFlags
from nonet.cli.terminal import note
from nonet.config.load import Loaded
from nonet.core.errors import NonetError, UnavailableError

__all__ = ["command"]

Conversation = list[dict[str, object]]


@dataclass(frozen=True, slots=True)
class Piece:
    """New text of an answer, and how many tokens the answer has so far."""

    text: str
    num_tokens: int


@dataclass(slots=True)
class Answer:
    """What has been written so far."""

    text: str = ""


# A conversation in, its answer piece by piece out.
Speaker = Callable[[Conversation], AsyncIterator[Piece]]


def chat(
    loaded: Loaded,
    *,
    system: Annotated[str | None, Parameter(help="what the model is told first")] = None,
    url: Annotated[
        str | None, Parameter(help="talk to this server instead of loading a model")
    ] = None,
    api_key: Annotated[str | None, Parameter(help="key for the server at --url")] = None,
    sampling: SamplingFlags | None = None,
) -> int:
    """Talk to a model in the terminal."""
    flags = sampling or SamplingFlags()
    first: Conversation = [{"role": "system", "content": system}] if system else []
    if url is None:
        asyncio.run(_with_engine(loaded, flags, first))
    else:
        asyncio.run(_with_server(url, api_key, loaded.config.model.served_name, flags, first))
    return 0


command = configured(chat, *ENGINE, model_first=True)


async def _with_engine(loaded: Loaded, flags: SamplingFlags, first: Conversation) -> None:
    from nonet.engine.async_llm import AsyncLLM
    from nonet.engine.prepare import default_params

    llm = AsyncLLM(config=loaded.config)
    _remark(f"loading {llm.resolved.served_name} ...")
    async with llm:
        params = flags.over(default_params(llm.spec.generation))

        async def speak(conversation: Conversation) -> AsyncIterator[Piece]:
            seen = 0
            async with contextlib.aclosing(llm.chat(conversation, params)) as outputs:
                async for output in outputs:
                    answer = output.outputs[0]
                    yield Piece(answer.text[seen:], len(answer.token_ids))
                    seen = len(answer.text)
                    if answer.finish_reason == "error":
                        raise UnavailableError("the engine could not go on with this answer")

        await _converse(speak, first)


async def _with_server(
    url: str, api_key: str | None, model: str | None, flags: SamplingFlags, first: Conversation
) -> None:
    from nonet.bench.http import error_text, stream_events
    from nonet.bench.serving import ask_model

    served = await ask_model(url, api_key, model)
    _remark(f"talking to {served.name} at {url}")

    async def speak(conversation: Conversation) -> AsyncIterator[Piece]:
        body = {"model": served.name, "messages": conversation, "stream": True, **flags.given()}
        events = stream_events(url, "/v1/chat/completions", body, api_key)
        deliveries = 0
        async with contextlib.aclosing(events):
            async for event in events:
                if event.get("error"):
                    raise UnavailableError(error_text(event))
                for choice in event.get("choices") or ():
                    text = choice.get("delta", {}).get("content") or ""
                    deliveries += bool(text)
                    yield Piece(text, deliveries)

    await _converse(speak, first)


async def _converse(speak: Speaker, first: Conversation) -> None:
    conversation = list(first)
    while True:
        line = await _read_line()
        if line is None or line.strip() in ("/quit", "/exit"):
            return
        if line.strip() == "/new":
            conversation = list(first)
            continue
        if not line.strip():
            continue
        conversation.append({"role": "user", "content": line})
        answer = Answer()
        try:
            await _until_interrupt(_write(answer, speak, conversation))
        except (NonetError, OSError) as error:
            note(str(error))
            conversation.pop()
            continue
        conversation.append({"role": "assistant", "content": answer.text})


async def _read_line() -> str | None:
    """A line of the user, None at the end of input. The thread that waits for it does not keep the process alive."""
    loop = asyncio.get_running_loop()
    line: asyncio.Future[str | None] = loop.create_future()
    prompt = "> " if sys.stdin.isatty() else ""

    def hand_over(found: str | None) -> None:
        if not line.cancelled():
            line.set_result(found)

    def read() -> None:
        try:
            found: str | None = input(prompt)
        except EOFError:
            found = None
        loop.call_soon_threadsafe(hand_over, found)

    threading.Thread(target=read, daemon=True).start()
    return await line


async def _until_interrupt(writing: Coroutine[None, None, None]) -> None:
    """Run `writing`; an interrupt ends it and nothing else."""
    task = asyncio.create_task(writing)
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGINT, task.cancel)
    try:
        await asyncio.wait([task])
    finally:
        loop.remove_signal_handler(signal.SIGINT)
    if not task.cancelled():
        task.result()


async def _write(answer: Answer, speak: Speaker, conversation: Conversation) -> None:
    """Print the answer as it comes, then its speed."""
    began = time.monotonic()
    first_s, tokens = 0.0, 0
    try:
        async for piece in speak(conversation):
            if piece.num_tokens and not tokens:
                first_s = time.monotonic() - began
            answer.text, tokens = answer.text + piece.text, piece.num_tokens
            print(piece.text, end="", flush=True)
    finally:
        print()
    after_first_s = time.monotonic() - began - first_s
    rate = f", {(tokens - 1) / after_first_s:.1f} tokens/s" if tokens > 1 else ""
    _remark(f"[{tokens} tokens{rate}, first after {first_s:.2f} s]")


def _remark(text: str) -> None:
    if sys.stderr.isatty():
        note(text)
