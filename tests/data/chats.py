"""Chat templates of several kinds, and conversations to render with them."""

import json
import pathlib
from collections.abc import Sequence
from typing import Any

Message = dict[str, Any]

# As those of ChatML, Zephyr and Llama 2, Qwen 3 (which drops the thoughts before earlier answers) and DeepSeek-R1.
CHATML = (
    "{% for m in messages %}{{ '<|start|>' + m.role + '\n' + m.content + '<|end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start|>assistant\n' }}{% endif %}"
)
STRIPPED = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}{{ '[INST] ' + m.content | trim + ' [/INST]' }}"
    "{% elif m.role == 'assistant' %}{{ ' ' + m.content | trim + ' ' + eos_token }}"
    "{% else %}{{ raise_exception('no role ' + m.role) }}{% endif %}{% endfor %}"
)
THINKING = (
    "{% for m in messages %}{{ '<|start|>' + m.role + '\n' }}{% set c = m.content %}"
    "{% if m.role == 'assistant' %}{% set thought = '' %}"
    "{% if '</think>' in c %}{% set thought = c.split('</think>')[0].split('<think>')[-1].strip('\n') %}"
    "{% set c = c.split('</think>')[-1].lstrip('\n') %}{% endif %}"
    "{% if loop.last %}{{ '<think>\n' + thought + '\n</think>\n\n' + c }}{% else %}{{ c }}{% endif %}"
    "{% else %}{{ c }}{% endif %}{{ '<|end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start|>assistant\n' }}{% endif %}"
)
UNENDED = "{% for m in messages %}{{ '### ' + m.role + ':\n' + m.content + '\n\n' }}{% endfor %}"


def turns(*contents: str, system: str | None = None) -> list[Message]:
    """User and assistant in turn, after a system message if there is one."""
    messages = [{"role": ("user", "assistant")[n % 2], "content": text} for n, text in enumerate(contents)]
    return messages if system is None else [{"role": "system", "content": system}, *messages]


def with_template(folder: pathlib.Path, template: Any) -> pathlib.Path:
    """Puts a chat template into the `tokenizer_config.json` of a folder."""
    file = folder / "tokenizer_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "chat_template": template}))
    return folder


def write_chats(path: pathlib.Path, chats: Sequence[Sequence[Message]], field: str = "messages") -> pathlib.Path:
    """Conversations as JSON lines."""
    path.write_text("".join(json.dumps({field: chat}) + "\n" for chat in chats), encoding="utf-8")
    return path
