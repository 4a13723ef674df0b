"""Claude through the official SDK; the only file that imports it.

No sampling arguments are sent: current models refuse them. Hidden thinking is left as the model has it and is paid
for out of `feedback.max_output_tokens`; only text blocks are read.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Final

import anthropic
import anyio

from fd_async.config.schema import FeedbackTable
from fd_async.errors import FeedbackAccountError
from fd_async.feedback.failures import UNREADABLE, Reply, broken_off, count, failure_of, plain, unreadable
from fd_async.feedback.rates import Kind, Rate, read_rates
from fd_async.feedback.remote import GenerateText, StopReason, TextAnswer

_DEFAULT_KEY_ENV: Final = "ANTHROPIC_API_KEY"
_NO_KEY: Final = f"No key for Claude: export {_DEFAULT_KEY_ENV}, or name another variable in feedback.api_key_env."

_PLACEHOLDER: Final = "none"
"""Sent as the key to a server of one's own (`feedback.base_url`) where there is none; the SDK refuses to send none."""

_STOP_REASONS: Final[dict[str, StopReason]] = {
    reason: reason for reason in ("end_turn", "max_tokens", "refusal", "model_context_window_exceeded")
}


@asynccontextmanager
async def open_anthropic(config: FeedbackTable) -> AsyncIterator[GenerateText]:
    """Open one client for the whole run.

    Raises:
        FeedbackAccountError: no key is to be found for Claude's own address.
    """
    client = await anyio.to_thread.run_sync(_client, config)  # reads certificates and profiles from disk
    async with client:

        async def generate_text(system: str, user: str, max_tokens: int) -> TextAnswer:
            try:
                response = await client.messages.with_raw_response.create(
                    model=config.model,
                    max_tokens=max_tokens,
                    system=system,
                    messages=[{"role": "user", "content": user}],
                )
                return _answer(await response.parse(), read_rates(response.headers))
            except anthropic.AnthropicError as error:
                raise _meaning(error, config, str(client.base_url)) from error
            except UNREADABLE as error:
                raise unreadable(error, str(client.base_url)) from error

        yield generate_text


def _client(config: FeedbackTable) -> anthropic.AsyncAnthropic:
    key = os.environ.get(config.api_key_env) if config.api_key_env else None
    if config.api_key_env and not key:
        raise FeedbackAccountError(
            f"{config.api_key_env}, named by feedback.api_key_env, is not set: export the Claude key in it."
        )
    try:
        client = anthropic.AsyncAnthropic(
            api_key=key, base_url=config.base_url or None, max_retries=0, timeout=config.request_timeout_s
        )
    except anthropic.CredentialsError as error:
        raise FeedbackAccountError(f"{_NO_KEY} ({error})") from error
    if client.api_key is None and client.auth_token is None and client.credentials is None:
        if not config.base_url:
            raise FeedbackAccountError(_NO_KEY)
        return client.copy(api_key=_PLACEHOLDER)
    return client


def _answer(message: anthropic.types.Message, rates: Mapping[Kind, Rate]) -> TextAnswer:
    usage = message.usage
    read, written = count(usage.cache_read_input_tokens or 0), count(usage.cache_creation_input_tokens or 0)
    return TextAnswer(
        text=plain("".join(block.text for block in message.content if block.type == "text")),
        stop_reason=_STOP_REASONS.get(message.stop_reason or "", "other"),
        input_tokens=count(usage.input_tokens) + read + written,
        output_tokens=count(usage.output_tokens),
        cache_read_tokens=read,
        cache_write_tokens=written,
        model=plain(message.model),
        request_id=plain(message._request_id or ""),
        rates=rates,
    )


def _meaning(error: anthropic.AnthropicError, config: FeedbackTable, address: str) -> Exception:
    if isinstance(error, anthropic.APIStatusError):
        reply = Reply(
            status=error.status_code,
            code=str(error.error_code or error.type or ""),
            kind=str(error.type or ""),
            message=str(error.api_message or error.message),
            headers=error.response.headers,
        )
        return failure_of(reply, config, key_env=config.api_key_env or _DEFAULT_KEY_ENV, address=address)
    if isinstance(error, anthropic.CredentialsError):
        return FeedbackAccountError(f"{_NO_KEY} ({error})")
    return broken_off(error, address)
