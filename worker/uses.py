"""What is used, for commands that remove by hand: what clusters run, what is pinned, what is being built, as a plan asks for it."""

from __future__ import annotations

import click

from ledger.errors import LedgerUnavailable
from ledger.store import Ledger
from worker.command_line import on_ledger
from worker.retention.flights import Flights
from worker.retention.inquiries import NOW, Inquiries
from worker.retention.planning import protected_now
from worker.retention.protection import Protected, silence_of


def known_uses() -> Protected:
    """All uses that somebody tells of now. Who removes what no crabpot knows has no ledger, and who is asked may be silent: that is said."""

    async def read(ledger: Ledger) -> Protected:
        return await protected_now(ledger, Flights(), Inquiries(), NOW)

    try:
        found = on_ledger(read)
    except LedgerUnavailable as error:
        click.echo(f"crabpot: nobody could see what is used or pinned ({error})", err=True)
        return Protected()
    for name, why in found.silent.items():
        click.echo(f"crabpot: {silence_of(name, why)}", err=True)
    return found
