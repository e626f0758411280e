# SPDX-License-Identifier: MIT
"""Keep access tokens of the Hub out of messages: a server may send back what it was sent."""

import re

from huggingface_hub import get_token

_TOKEN = re.compile(r"\bhf_[A-Za-z0-9]{16,}|(?<=Bearer )\S+")


def without_tokens(text: str, token: str | bool | None = None) -> str:
    """Replace every access token in a text by "[token]".

    Args:
        text: an error's message, for example.
        token: the one in use, if it is not that of `hf auth login` or HF_TOKEN.
    """
    for known in (token, _stored_token()):
        if isinstance(known, str) and known:
            text = text.replace(known, "[token]")
    return _TOKEN.sub("[token]", text)


def _stored_token() -> str | None:
    try:
        return get_token()
    except OSError:  # a file that this user may not read
        return None


__all__ = ["without_tokens"]
