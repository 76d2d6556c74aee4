"""Which protocol is read by what. Pure."""

from __future__ import annotations

from typing import Final

from orchestrator.gateway.format_chat import ChatFormat
from orchestrator.gateway.format_messages import MessagesFormat
from orchestrator.gateway.format_port import Format
from orchestrator.gateway.format_responses import ResponsesFormat
from orchestrator.models import ModelApi

FORMATS: Final[dict[ModelApi, Format]] = {
    ModelApi.MESSAGES: MessagesFormat(),
    ModelApi.CHAT: ChatFormat(),
    ModelApi.RESPONSES: ResponsesFormat(),
}
