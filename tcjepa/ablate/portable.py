"""Results are committed and read elsewhere: where files lay on one machine is no part of them."""

from __future__ import annotations

import re
from typing import Any, Final

_PART: Final = r"[^\s/\"',;()\[\]]+"
#: A path from the root or a home folder; what stands before it is no part of a URL or "w/o".
_ABSOLUTE: Final = re.compile(rf"(?<![\w.:/~])~?/(?:{_PART}/)*({_PART}/?)")


def portable(value: Any) -> Any:
    """Return text, or plain data with texts, with absolute paths cut to their last part."""
    if isinstance(value, str):
        return _ABSOLUTE.sub(r"\1", value)
    if isinstance(value, dict):
        return {portable(key): portable(item) for key, item in value.items()}
    return [portable(item) for item in value] if isinstance(value, list) else value


__all__ = ["portable"]
