"""What reaches a terminal: text without control codes, and progress bars."""

from __future__ import annotations

import re

# C0 and C1 control codes, and surrogates that stand for bytes of a name that is not UTF-8.
_UNPRINTABLE = re.compile(
    r"[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]"
)


def printable(text: object) -> str:
    r"""Text that cannot steer a terminal or break a line: control codes appear as `\x1b`.

    Names of files and classes come from others, and may hold escape sequences, line breaks, marks
    that reverse the direction of writing, or bytes that are not UTF-8.
    """
    return _UNPRINTABLE.sub(_escaped, str(text))


def _escaped(match: re.Match[str]) -> str:
    code = ord(match[0])
    if 0xDC80 <= code <= 0xDCFF:  # a byte that os.fsdecode could not decode
        code -= 0xDC00
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"
