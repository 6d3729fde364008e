"""How commands print on a terminal."""

from __future__ import annotations

from ledger import console


def test_a_narrow_terminal_never_cuts_what_people_copy(monkeypatch, capsys):
    monkeypatch.setattr(console, "on_terminal", lambda: True)
    monkeypatch.setenv("COLUMNS", "80")
    build = "01a213ef-a405-7501-8bb3-a5809956f1d3"
    console.say_table(
        ("BUILD", "PROJECT", "STATE", "IMAGE", "AGE"), [(build, "demo", "queued", "registry.example.com/team/demo/app:bbfd0018d7d7", "12s")]
    )
    printed = capsys.readouterr().out
    assert build in printed
    assert "queued" in printed
    assert "12s" in printed
    assert max(map(len, printed.splitlines())) <= 80
