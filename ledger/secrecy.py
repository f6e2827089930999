r"""What must not be shown: keys that nothing prints, and texts without what looks like a key.

    Secret             a key, or an address that may hold one; only .reveal() gives it
    SecretBytes        the same as the value of a header
    Hidden             a mapping whose values are not shown, copied or pickled
    scrubbed(text)     a text without what looks like anybody's key
    frameless(error)   an error without the frames and causes whose locals a traceback may show

A key may come spelt with JSON's escapes (`sk\u002dant…`): both scrubbings read those first.
"""

from __future__ import annotations

import re
from base64 import b64decode
from collections.abc import Iterator, Mapping
from functools import cached_property
from typing import Any, NoReturn, TypeVar

SHOWN = "[key]"  # what stands in a key's place
_SHORTEST = 8  # characters; what is shorter is a word like any other
_E = TypeVar("_E", bound=BaseException)


class Secret:
    """A text that is not shown, copied or pickled."""

    def __init__(self, text: str) -> None:
        self._text = text

    @classmethod
    def of(cls, text: str | None) -> Secret | None:
        """None, and an empty text, are no secret."""
        return cls(text) if text else None

    def reveal(self) -> str:
        return self._text

    def hidden_in(self, text: str) -> str:
        """The text without this secret, in whatever case and however escaped."""
        if len(self._text) < _SHORTEST:
            return text
        plain = unescaped(text)
        return self._spelling.sub(SHOWN, plain) if self._folded in plain.lower() else text

    @cached_property
    def _folded(self) -> str:
        return self._text.lower()

    @cached_property
    def _spelling(self) -> re.Pattern[str]:
        return re.compile(re.escape(self._text), re.IGNORECASE)

    def __repr__(self) -> str:
        return SHOWN

    def __reduce__(self) -> NoReturn:
        raise TypeError("a key is not copied or pickled; make it anew where it is needed")


class SecretBytes(bytes):
    """Bytes that are not shown; what works with bytes works with them."""

    def __repr__(self) -> str:
        return SHOWN

    __str__ = __repr__


class Hidden(Mapping[str, str]):
    """Values by name that are not shown; a copy or a pickle of it is empty."""

    def __init__(self, values: Mapping[str, str]) -> None:
        self._values = dict(values)

    def __getitem__(self, name: str) -> str:
        return self._values[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __repr__(self) -> str:
        return f"<{len(self)} hidden values>"

    def __reduce__(self) -> tuple[Any, ...]:
        return Hidden, ({},)


# Texts ----------------------------------------------------------------------------------------

_KEYS = re.compile(
    r"bearer\s+[\w.~+/=-]{8,}"
    r"|(?<![a-z0-9])(?:sk|pk|rk|key|gsk|xai)-[\w*-]{8,}|(?<![a-z0-9])aiza[\w-]{20,}"
    r"|(?<![a-z0-9])eyj[\w-]{10,}\.[\w.-]+"
    r"|(?:(?<=x-api-key)|(?<=api[_-]key)|(?<=authorization))[\\\"']*\s*[:=]\s*[\\\"']*[^\s\\\"',;]{8,}"
    r"|(?<=://)[^\s/?#\"'<>]+(?=@)",
    re.IGNORECASE,
)
_BASIC = re.compile(r"(basic\s+)([a-z0-9+/]{4,}={0,2})", re.IGNORECASE)
_MARKS = re.compile("[spr]k-|key|xai-|aiza|eyj|bearer|authoriz|basic|@", re.IGNORECASE)  # quick to rule out
_ESCAPES = re.compile(r"\\+u00(2[013-9a-f]|[346][0-9a-f]|5[0-9abd-f]|7[0-9a-e])", re.IGNORECASE)


def scrubbed(text: str) -> str:
    """The text without what looks like a key: providers' keys, tokens, passwords in addresses.

    >>> scrubbed("invalid key sk-ant-api03-abcdefgh for http://me:secret@proxy")
    'invalid key [key] for http://[key]@proxy'
    """
    plain = unescaped(text)
    if not _MARKS.search(plain):
        return text
    found = _BASIC.sub(_without_password, _KEYS.sub(SHOWN, plain))
    return text if found == plain else found


def _without_password(basic: re.Match[str]) -> str:
    """`Basic` and what follows: a user and a password, or the next word of a sentence."""
    try:
        named = b":" in b64decode(basic[2] + "=" * (-len(basic[2]) % 4))
    except ValueError:
        named = False
    return basic[1] + SHOWN if named else basic[0]


def unescaped(text: str) -> str:
    r"""The text with characters for their \u00.. escapes, all but what JSON must escape.

    >>> unescaped(r"sk\u002dant")
    'sk-ant'
    """
    return _ESCAPES.sub(lambda found: chr(int(found[1], 16)), text) if "\\u00" in text else text


# Errors ---------------------------------------------------------------------------------------


def frameless(error: _E) -> _E:
    """The error as if it were raised here: what it met on its way holds what must not be shown."""
    error.__cause__ = error.__context__ = None
    return error.with_traceback(None)
