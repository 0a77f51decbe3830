"""Names and texts that look like credentials: what is refused, left out of records, or covered."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping

# MAX_TOKENS and TOKENIZERS_PARALLELISM are settings, HF_TOKEN is not.
NAME = re.compile(
    r"\w*(?:PASSWORD|PASSWD|PASSPHRASE|TOKEN(?!IZER|S)|SECRET|CREDENTIAL|API_?KEY|ACCESS_?KEY"
    r"|PRIVATE_?KEY|WEBHOOK)\w*",
    re.IGNORECASE,
)
# In a line of shell: a value that is written there, not read from elsewhere.
_ASSIGNMENT = re.compile(rf"({NAME.pattern})=[\"']?(?![\"'$`])\S", re.IGNORECASE)
_IN_URL = re.compile(r"//[^/@\s:]+:[^/@\s]+@")
_USER_IN_URL = re.compile(r"//[^/@\s]+@")
SHORTEST = 4
# Values of switches, which are no credentials whatever the switch is called.
_SWITCH = {"true", "false", "none", "null", "auto"}
COVERED = "[redacted]"


def is_secret_name(name: str) -> bool:
    """Return whether a variable of this name probably holds a credential."""
    return NAME.search(name) is not None


def secret_set_in(line: str) -> str | None:
    """Return the name of a secret that a line of shell writes out, "a URL" for one in a URL."""
    named = _ASSIGNMENT.search(line)
    if named:
        return named[1]
    return "a URL" if has_password(line) else None


def has_password(text: str) -> bool:
    """Return whether `text` holds a URL with a user's name and password."""
    return _IN_URL.search(text) is not None


def without_user(text: str) -> str:
    """Return `text` with the user's name and password taken out of every URL."""
    return _USER_IN_URL.sub("//", text)


def redacted(text: str, environment: Mapping[str, str] | None = None) -> str:
    """Return `text` without the values of secrets, and without users in URLs.

    Secrets are variables of `environment` (default: this process's) that `is_secret_name` knows.
    """
    values = {
        value
        for name, value in (os.environ if environment is None else environment).items()
        if is_secret_name(name) and len(value) >= SHORTEST and value.lower() not in _SWITCH
    }
    for value in sorted(values, key=len, reverse=True):
        text = text.replace(value, COVERED)
    return without_user(text)
