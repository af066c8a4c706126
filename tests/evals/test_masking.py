"""An API key in texts that others wrote: masked in every form, and ordinary text left alone."""

import base64
import html
import json
from urllib.parse import quote, quote_plus

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from rlif.evals.backends.masking import HIDDEN, SHORTEST, Mask

KEYS = st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=SHORTEST, max_size=60)
WORDS = st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=20)

FORMS = {
    "as it is": lambda key: key,
    "as a header": lambda key: f"Bearer {key}",
    "upper case": str.upper,
    "lower case": str.lower,
    "in an address": lambda key: quote(key, safe=""),
    "in an address, small digits": lambda key: quote(key, safe="").lower(),
    "in a path": quote,
    "in a query": quote_plus,
    "in a page": html.escape,
    "in JSON": lambda key: json.dumps(key),
    "in PHP's JSON": lambda key: json.dumps(key).replace("/", "\\/"),
    "in hexadecimal": lambda key: key.encode().hex(),
    "in base64": lambda key: base64.b64encode(key.encode()).decode(),
    "in base64 without padding": lambda key: base64.b64encode(key.encode()).decode().rstrip("="),
    "in base64 for addresses": lambda key: base64.urlsafe_b64encode(key.encode()).decode(),
    "a header in base64": lambda key: base64.b64encode(f"Bearer {key}".encode()).decode(),
    "a user and password in base64": lambda key: base64.b64encode(f"user:{key}".encode()).decode(),
    "headers in base64": lambda key: base64.b64encode(f"a\r\nAuthorization: Bearer {key}\r\n".encode()).decode(),
}


@pytest.mark.parametrize("form", FORMS)
@given(key=KEYS, before=WORDS, after=WORDS)
def test_no_form_of_a_key_comes_through(form: str, key: str, before: str, after: str) -> None:
    written = FORMS[form](key)
    assume(key.lower() not in before.lower() and key.lower() not in after.lower())
    masked = Mask(key)(f"{before}{written}{after}")
    assert HIDDEN in masked
    assert written not in masked
    assert key.lower() not in masked.lower()


@given(key=KEYS, text=st.text())
def test_other_text_is_left_alone(key: str, text: str) -> None:
    text = text.replace("*", "")
    masked = Mask(key)(text)
    if HIDDEN not in masked:
        assert masked == text


@pytest.mark.parametrize("length", range(3, 28))
def test_a_key_cut_off_by_the_end_is_masked_from_half_of_it_on(length: int) -> None:
    key = "sk-this-must-be-seen-nowhere"
    masked = Mask(key)(f"it is {key[:length]}")
    assert masked == (f"it is {HIDDEN}" if length >= 14 else f"it is {key[:length]}")


@pytest.mark.parametrize("key", ["EMPTY", "none", "1", "x", "token", "1234567", "****", "a.b"])
def test_a_short_key_is_no_secret_and_ordinary_text_stays(key: str) -> None:
    mask = Mask(key)
    for text in (f"The set is {key}.", f"\\boxed{{{key}}}", key, f"{key}{key}", "5", f"Bearer{key}", f"Bearer {key}s"):
        assert mask(text) == text
    assert mask(f"authorization: bearer {key}!") == "authorization: bearer ***!"


@pytest.mark.parametrize("key", [None, ""])
def test_without_a_key_nothing_is_masked(key: str | None) -> None:
    assert Mask(key)("Bearer abcdefgh") == "Bearer abcdefgh"
