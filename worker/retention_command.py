"""`crabpot retention`: making, reading, approving and undoing plans; and trying a policy on a saved inventory, without any registry.

All but `inventory` and `try` works on the ledger: what is asked for here is done by the workers, and waited for.
"""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any, BinaryIO

import click
from pydantic import ValidationError

from ledger.console import JSON, me, say_json, say_size, say_table, say_time
from ledger.documents import read_yaml
from ledger.errors import InputInvalid
from ledger.plans import StoredPlan
from ledger.request import problems_of
from ledger.retention import Retention
from ledger.store import Ledger
from worker.command_line import HOST, WAIT, ended, on_ledger
from worker.inventory_command import save_inventory
from worker.retention.decisions import Action, Plan, read_plan
from worker.retention.inventory import read_inventory
from worker.retention.plan import plan as make
from worker.retention.policy import Policies
from worker.retention.protection import Protected


@click.group()
def command() -> None:
    """Plan which old images go, see why, and let them go, or come back."""


@command.command("plan")
@click.argument("registry", type=HOST)
@WAIT
@JSON
def make_plan(registry: str, timeout: float, as_json: bool) -> None:
    """Plan a registry now. Nothing is deleted by it, unless a policy says `apply: automatic`."""

    async def work(ledger: Ledger) -> StoredPlan:
        await ledger.chores.start(f"plan:{registry}", registry)
        return await ledger.plans.read(await ended(ledger, f"plan:{registry}", timeout))

    _say_plans([on_ledger(work)], as_json)


@command.command("ls")
@click.argument("registry", type=HOST, required=False)
@JSON
def list_plans(registry: str | None, as_json: bool) -> None:
    """List plans, newest first."""
    _say_plans(on_ledger(lambda ledger: ledger.plans.all(registry)), as_json)


@command.command()
@click.argument("sha", metavar="PLAN")
@click.option("--all", "everything", is_flag=True, help="Also what stays.")
@JSON
def show(sha: str, everything: bool, as_json: bool) -> None:
    """Show what a plan decides about each tag and why, and what became of it."""

    async def work(ledger: Ledger) -> tuple[StoredPlan, str, dict[str, str]]:
        found = await ledger.plans.find(sha)
        return found, await ledger.plans.text(found.sha256), await ledger.plans.report(found.sha256)

    stored, text, report = on_ledger(work)
    made = read_plan(text, stored.sha256)
    if as_json:
        say_json({**stored.told(), "decisions": _decisions(made, report, everything=everything)})
        return
    click.echo(f"{stored.sha256}  {stored.registry}  {stored.state}  {say_time(stored.made)}")
    for why in stored.awaits:
        click.echo(f"to be approved: {why}")
    if stored.approved_by is not None:
        click.echo(f"approved by: {stored.approved_by}" + (f", despite {', '.join(stored.despite)}" if stored.despite else ""))
    for one in made.repositories:
        if one.freed:
            click.echo(f"frees at most: {say_size(one.freed)} of {one.name}")
    rows = _decisions(made, report, everything=everything)
    say_table(
        ("IMAGE", "ACTION", "WHY", "OUTCOME"), ((one["image"], one["action"], "; ".join(one["reasons"]), one["outcome"]) for one in rows)
    )


@command.command()
@click.argument("sha", metavar="PLAN")
@click.option("--despite", multiple=True, metavar="CLUSTER", help="Take on yourself that this cluster does not say what it runs.")
@WAIT
@JSON
def approve(sha: str, despite: tuple[str, ...], timeout: float, as_json: bool) -> None:
    """Let a plan be applied. What has moved, or is used by now, stays all the same."""

    async def work(ledger: Ledger) -> tuple[str, dict[str, str]]:
        (await ledger.site()).require_clusters(despite)
        found = await ledger.plans.find(sha)
        chore = await ledger.plans.approve(found.sha256, me() or "crabpot retention", await ledger.now(), despite)
        return await ended(ledger, chore, timeout), await ledger.plans.report(found.sha256)

    _say_report(*on_ledger(work), as_json)


@command.command()
@click.argument("sha", metavar="PLAN")
@WAIT
@JSON
def undo(sha: str, timeout: float, as_json: bool) -> None:
    """Put back what a plan took away, as far as its undo window has not ended."""

    async def work(ledger: Ledger) -> tuple[str, dict[str, str]]:
        found = await ledger.plans.find(sha)
        return await ended(ledger, await ledger.plans.undo(found), timeout), await ledger.plans.report(found.sha256)

    _say_report(*on_ledger(work), as_json)


@command.command("try")
@click.argument("policy", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option(
    "--inventory", required=True, type=click.File("rb"), metavar="FILE", help="What `retention inventory` printed; -: standard input."
)
@JSON
def try_policy(policy: Path, inventory: BinaryIO, as_json: bool) -> None:
    """Show what a policy (YAML: one entry of a project's `retention`) would mean for a saved inventory. Nothing is asked or changed."""
    try:
        given = Retention.model_validate(read_yaml(policy.read_text()))
    except ValidationError as error:
        raise InputInvalid(problems_of(error)) from None
    taken = read_inventory(inventory.read())
    made = make(taken, Policies((("tried", given),)), Protected(), datetime.now(UTC))
    rows = _decisions(made, {}, everything=True)
    if as_json:
        say_json({"delete": made.count(Action.DELETE), "untag": made.count(Action.UNTAG), "freed": made.freed, "decisions": rows})
    else:
        say_table(("IMAGE", "ACTION", "WHY"), ((one["image"], one["action"], "; ".join(one["reasons"])) for one in rows))


command.add_command(save_inventory)


def _say_plans(plans: list[StoredPlan], as_json: bool) -> None:
    if as_json:
        say_json([one.told() for one in plans])
        return
    rows = (
        (one.sha256[:12], one.registry, str(one.state), say_time(one.made), str(one.totals.get("delete", "")),
         str(one.totals.get("untag", "")), say_size(int(one.totals.get("freed", 0))), "; ".join(one.awaits))
        for one in plans
    )  # fmt: skip
    say_table(("PLAN", "REGISTRY", "STATE", "MADE", "DELETE", "UNTAG", "FREES", "TO BE APPROVED"), rows)


def _decisions(made: Plan, report: dict[str, str], *, everything: bool) -> list[dict[str, Any]]:
    found = []
    for repository in made.repositories:
        for one in repository.decisions:
            if everything or one.action is not Action.KEEP:
                image = f"{repository.name}:{one.tag}" if one.tag is not None else f"{repository.name}@{one.digest}"
                outcome = report.get(image) or report.get(f"{repository.name}@{one.digest}", "")
                reasons = [str(reason) for reason in one.reasons]
                found.append({"image": image, "digest": one.digest, "action": str(one.action), "reasons": reasons, "outcome": outcome})
    return found


def _say_report(said: str, report: dict[str, str], as_json: bool) -> None:
    if as_json:
        say_json({"said": said, "report": report})
    else:
        say_table(("IMAGE", "OUTCOME"), report.items())
        click.echo(said, err=True)
