"""Any OpenAI-compatible chat completion server through the official SDK; the only file that imports it.

`feedback.base_url` points it at vLLM, OpenRouter, a company gateway and so on. No sampling arguments are sent. The
limit on the answer is called `max_completion_tokens` by OpenAI and `max_tokens` by most others: the usual name for the
address is tried first, and the other one once the server calls it unsupported.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Final

import anyio
import openai
from openai._legacy_response import LegacyAPIResponse
from openai.types.chat import ChatCompletion

from fd_async.config.schema import FeedbackTable
from fd_async.errors import FeedbackAccountError
from fd_async.feedback.failures import (
    UNREADABLE,
    Reply,
    TransientFailure,
    broken_off,
    count,
    failure_of,
    plain,
    unreadable,
)
from fd_async.feedback.rates import Kind, Rate, read_rates
from fd_async.feedback.remote import GenerateText, StopReason, TextAnswer, estimate_tokens

_DEFAULT_KEY_ENV: Final = "OPENAI_API_KEY"
_NO_KEY: Final = "none"
"""Sent to a server of one's own that asks for no key; the SDK refuses to send none at all."""
_LIMIT_NAMES: Final = ("max_completion_tokens", "max_tokens")

_STOP_REASONS: Final[dict[str, StopReason]] = {
    "stop": "end_turn",
    "length": "max_tokens",
    "content_filter": "refusal",
}


@asynccontextmanager
async def open_openai(config: FeedbackTable) -> AsyncIterator[GenerateText]:
    """Open one client for the whole run.

    Raises:
        FeedbackAccountError: no key is to be found for OpenAI's own address.
    """
    client = await anyio.to_thread.run_sync(_client, config)  # reads certificates from disk
    async with client:
        yield _Caller(client, config).generate_text


class _Caller:
    """Remembers which name of the token limit the server knows."""

    def __init__(self, client: openai.AsyncOpenAI, config: FeedbackTable) -> None:
        self._client = client
        self._config = config
        self._address = str(client.base_url)
        self._limit_name = _LIMIT_NAMES[0] if client.base_url.host == "api.openai.com" else _LIMIT_NAMES[1]
        self._has_switched = False

    async def generate_text(self, system: str, user: str, max_tokens: int) -> TextAnswer:
        """Send one request; a second one only to learn the name of the token limit."""
        name = self._limit_name
        try:
            try:
                response = await self._create(system, user, {name: max_tokens})
            except openai.BadRequestError as error:
                if not self._is_wrong_name(error, name):
                    raise
                response = await self._create(system, user, {self._limit_name: max_tokens})
            return self._answer(response.parse(), read_rates(response.headers), system, user)
        except openai.OpenAIError as error:
            raise self._meaning(error) from error
        except UNREADABLE as error:
            raise unreadable(error, self._address) from error

    def _is_wrong_name(self, error: openai.BadRequestError, name: str) -> bool:
        """Say whether the server wants the other name of the limit; the first to learn it switches for everyone."""
        if error.param != name and name not in error.message:
            return False
        if self._limit_name == name and not self._has_switched:
            self._limit_name = _LIMIT_NAMES[1 - _LIMIT_NAMES.index(name)]
            self._has_switched = True
        return self._limit_name != name

    async def _create(self, system: str, user: str, limit: dict[str, int]) -> LegacyAPIResponse[ChatCompletion]:
        return await self._client.chat.completions.with_raw_response.create(
            model=self._config.model,
            messages=[{"role": "system", "content": system}, {"role": "user", "content": user}],
            extra_body=limit,
        )

    def _answer(self, completion: ChatCompletion, rates: Mapping[Kind, Rate], system: str, user: str) -> TextAnswer:
        """Read an answer; compatible servers leave out more than the SDK's types admit."""
        if not completion.choices:
            raise self._error_inside(completion)
        choice = completion.choices[0]
        text = plain(choice.message.content or "")
        usage = completion.usage
        details = usage.prompt_tokens_details if usage else None
        input_tokens = count(usage.prompt_tokens) if usage else estimate_tokens(system) + estimate_tokens(user)
        return TextAnswer(
            text=text,
            stop_reason="refusal"
            if choice.message.refusal
            else _STOP_REASONS.get(choice.finish_reason or "stop", "other"),
            input_tokens=input_tokens,
            output_tokens=count(usage.completion_tokens) if usage else estimate_tokens(text),
            cache_read_tokens=min(count((details and details.cached_tokens) or 0), input_tokens),
            model=plain(completion.model or ""),
            request_id=plain(completion._request_id or completion.id or ""),
            rates=rates,
        )

    def _error_inside(self, completion: ChatCompletion) -> Exception:
        """Read the error that some gateways send with status 200."""
        error = (completion.model_extra or {}).get("error")
        if not isinstance(error, dict):
            return TransientFailure(f"{self._address} sent an answer without choices", maybe_billed=True)
        code = error.get("code")
        return self._failure(
            Reply(status=code if isinstance(code, int) else 502, code=str(code), message=str(error.get("message", "")))
        )

    def _meaning(self, error: openai.OpenAIError) -> Exception:
        if isinstance(error, openai.APIStatusError):
            return self._failure(
                Reply(
                    status=error.status_code,
                    code=str(error.code or error.type or ""),
                    kind=str(error.type or ""),
                    message=str(error.message),
                    headers=error.response.headers,
                )
            )
        return broken_off(error, self._address)

    def _failure(self, reply: Reply) -> Exception:
        key_env = self._config.api_key_env or _DEFAULT_KEY_ENV
        return failure_of(reply, self._config, key_env=key_env, address=self._address)


def _client(config: FeedbackTable) -> openai.AsyncOpenAI:
    key_env = config.api_key_env or _DEFAULT_KEY_ENV
    key = os.environ.get(key_env)
    if not key and (config.api_key_env or not config.base_url):
        raise FeedbackAccountError(
            f"The environment variable {key_env} is not set: export the key in it, or name another variable in"
            " feedback.api_key_env."
        )
    return openai.AsyncOpenAI(
        api_key=key or _NO_KEY, base_url=config.base_url or None, max_retries=0, timeout=config.request_timeout_s
    )
