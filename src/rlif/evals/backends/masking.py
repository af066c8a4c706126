"""An API key, kept out of everything that is stored or printed: `Mask` replaces it in texts that others wrote.

Servers repeat keys: in complaints, in request echoes, and a model may be told to. A key is masked as it is, in any
case, as an URL, HTML or JSON would write it, in hexadecimal and in base64 (alone, as ``Bearer KEY``, or inside a longer
text).
"""

import base64
import html
import json
import re
from urllib.parse import quote

HIDDEN = "***"

SHORTEST = 8
"""Characters from which a key is masked wherever it stands.

A shorter one (``EMPTY``, ``none``, ``1``: what local servers are given that want any key) is no secret, and is a word
or a number that answers hold by right; it is masked behind ``Bearer`` alone.
"""


class Mask:
    """Replaces a key in a text by ``***``. Called with a text it returns the masked text; None masks nothing."""

    def __init__(self, key: str | None) -> None:
        self._key = key if key and len(key) >= SHORTEST else ""
        forms = sorted(_forms(self._key), key=len, reverse=True) if self._key else []
        if key and not self._key:
            self._pattern: re.Pattern[str] | None = re.compile(rf"(?<=Bearer ){re.escape(key)}(?!\w)", re.IGNORECASE)
        else:
            self._pattern = re.compile("|".join(map(re.escape, forms)), re.IGNORECASE) if forms else None

    def __call__(self, text: str) -> str:
        """The text without the key: no whole one, and none that the text's end cuts off after its first half."""
        if self._pattern is None:
            return text
        text = self._pattern.sub(HIDDEN, text)
        for length in range(len(self._key) - 1, max(SHORTEST, len(self._key) // 2) - 1, -1):
            if text.endswith(self._key[:length]):
                return text[:-length] + HIDDEN
        return text


def _forms(key: str) -> set[str]:
    """How a text may write a key of `SHORTEST` characters or more."""
    as_json = json.dumps(key)[1:-1]
    forms = {key, quote(key), quote(key, safe=""), html.escape(key), as_json, as_json.replace("/", r"\/")}
    forms.add(key.encode().hex())
    for encode in (base64.b64encode, base64.urlsafe_b64encode):
        for before in range(3):
            # Three bytes make four characters: a key's characters depend on where among the three it begins. Those that
            # it shares with its neighbours are left out.
            encoded = encode(b"\0" * before + key.encode()).decode().rstrip("=")
            shared = (before + len(key)) % 3
            forms.add(encoded[(0, 2, 3)[before] : len(encoded) - (1 if shared else 0)])
    return forms
