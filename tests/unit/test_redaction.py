"""Promise 10: no secret is stored with a log line or a message."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ledger.redaction import MARK, clean

SECRET = "hunter2hunter2hunter2"


@pytest.mark.parametrize(
    "line",
    [
        f"fatal: unable to access 'https://crab:{SECRET}@git.example.com/r.git/'",
        f"Authorization: Bearer {SECRET}",
        f"> authorization: Basic {SECRET}==",
        f"curl -H 'Proxy-Authorization: {SECRET}'",
        f"export DB_PASSWORD={SECRET}",
        f'{{"password": "{SECRET}"}}',
        f"api_key: {SECRET}",
        f"MY_SECRET={SECRET} make",
        "token ghp_abcdefghijklmnopqrstuvwxyz0123456789".replace("ghp_abcdefghijklmnopqrstuvwxyz0123456789", f"ghp_{SECRET}"),
        f"glpat-{SECRET}",
        f"redis://:{SECRET}@host/0",
    ],
)
def test_secrets_are_taken_out(line):
    assert SECRET not in clean(line)
    assert MARK in clean(line)


@pytest.mark.parametrize(
    "line",
    [
        "INFO[0001] RUN --mount=type=secret,id=npm npm ci",
        "Pushed registry.example.com/team/app:1@sha256:" + "0" * 64,
        "COPY secret-santa.txt /",
        "password = $PASSWORD",
        "12 % done in 3 s",
    ],
)
def test_the_rest_stays(line):
    assert clean(line) == line


def test_colours_go():
    assert clean("\x1b[31mred\x1b[0m \x1b]0;title\x07text\r") == "red text"


@given(st.text())
def test_no_line_breaks_it_and_no_control_character_stays(text):
    assert not any(ord(char) < 32 and char not in "\t\n" for char in clean(text))
