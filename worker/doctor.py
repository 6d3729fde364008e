"""`crabpot doctor`: looks at everything that builds need, and says of each fault how to mend it."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from datetime import UTC, datetime
from typing import Any

import click
import structlog

from ledger.audit import Audit
from ledger.errors import CrabpotError, InputInvalid
from ledger.fitness import Finding, examine
from ledger.logging import set_up
from ledger.projects import Projects, ProjectSettings, read_projects
from ledger.redaction import clean
from ledger.settings import Settings
from ledger.site import ClusterSource, Site
from ledger.store import Ledger
from worker.cluster import Cluster
from worker.cluster.workloads import Workload
from worker.collect.rights import check_collections
from worker.place import namespaces_of, open_cluster
from worker.registries import Registries
from worker.retention.inquiries import NOW, Inquiries, Silence

log = structlog.get_logger()
_SKEW = 2.0
"""Seconds that this machine's clock may be off Redis's."""
_NOTHING_GOES = "nothing is deleted automatically"


async def diagnose(settings: Settings) -> AsyncIterator[Finding]:
    """Every finding, in the order in which a newcomer mends them."""
    projects = None
    if settings.projects:
        projects, finding = _projects_file(settings)
        yield finding
    ledger = Ledger.open(settings)
    try:
        try:
            for finding in await examine(ledger.connection):
                yield finding
            yield await _clock(ledger)
            stored = await ledger.projects()
        except CrabpotError as error:
            yield Finding(
                "redis", False, str(error), f"start Redis, or set CRABPOT_REDIS_URL (now {settings.redis_url.rpartition('@')[2]})"
            )
            return
        known = projects.projects if projects else stored
        if not known:
            yield Finding(
                "projects",
                False,
                "the ledger knows none",
                "write a projects file and set CRABPOT_PROJECTS for `crabpot serve` and `crabpot watch`",
            )
        leader = await ledger.leases.holder("watch")
        yield Finding("watcher", leader is not None, f"{leader} leads" if leader else "none leads", "start `crabpot watch`")
        namespaces = namespaces_of(settings, await ledger.projects())
        cluster = open_cluster(settings, namespaces, await ledger.identity())
        registries = Registries(cluster, settings)
        site = projects.site if projects else await ledger.site()
        try:
            for name, look in _looks(settings, ledger, cluster, namespaces, registries, known, site):
                async for finding in _looked(name, look):
                    yield finding
        finally:
            await registries.close()
            await cluster.close()
    finally:
        await ledger.close()


def _looks(
    settings: Settings,
    ledger: Ledger,
    cluster: Cluster,
    namespaces: list[str],
    registries: Registries,
    projects: dict[str, ProjectSettings],
    site: Site,
) -> Iterator[tuple[str, AsyncIterator[Finding]]]:
    """What is looked at once the ledger is there, each by the name under which it is told that the look itself is broken."""
    yield f"cluster ({settings.cluster})", _cluster(settings, cluster, namespaces)
    for name, source in site.clusters.items():
        yield f"cluster {name}", _running(ledger, name, source)
    for name, project in projects.items():
        for image in dict.fromkeys(rule.image for rule in project.rules):
            yield f"registry {image}", _registry(registries, name, project, image)
    for one in site.collect:
        yield f"rights to collect {one.registry}", check_collections(settings, [one])


async def _looked(name: str, look: AsyncIterator[Finding]) -> AsyncIterator[Finding]:
    """What a look finds. One that is broken is a finding as well, and the others go on: who runs this is in trouble already."""
    try:
        async for finding in look:
            yield finding
    except CrabpotError as error:
        yield Finding(name, False, str(error), "mend what is told, and run this again")
    except Exception as error:
        log.error("look_broken", look=name, exc_info=error)
        told = clean(f"crabpot has a fault here: {type(error).__name__}: {error}")
        yield Finding(name, False, told, "report it, with what stands in standard error (event look_broken)")


def _projects_file(settings: Settings) -> tuple[Projects | None, Finding]:
    assert settings.projects is not None
    try:
        projects = read_projects(settings.projects)
    except InputInvalid as error:
        return None, Finding("projects file", False, str(error), "mend the lines named")
    return projects, Finding("projects file", True, f"{settings.projects}: {len(projects.projects)} projects")


async def _clock(ledger: Ledger) -> Finding:
    seconds, microseconds = await ledger.connection.command("TIME")
    skew = abs(datetime.now(UTC).timestamp() - int(seconds) - int(microseconds) / 1e6)
    return Finding(
        "clock",
        skew < _SKEW,
        f"{skew:.3f} s off Redis's",
        "let chrony or systemd-timesyncd set the clocks: deadlines are compared across machines",
    )


async def _cluster(settings: Settings, cluster: Cluster, namespaces: list[str]) -> AsyncIterator[Finding]:
    name = f"cluster ({settings.cluster})"
    try:
        pods = (await cluster.pods()).pods
        yield Finding(name, True, f"answers; {len(pods)} pods of ours in {', '.join(namespaces)}")
    except CrabpotError as error:
        yield Finding(
            name,
            False,
            str(error),
            "check CRABPOT_KUBECONFIG and CRABPOT_NAMESPACE, and install deploy/helm/crabpot for accounts and rights",
        )
        return
    check_rights = getattr(cluster, "check_rights", None)  # a cluster without accounts has no rights to look at
    if check_rights is not None:
        for namespace in namespaces:
            yield await _rights(check_rights, namespace)
        async for finding in _strangers(cluster, namespaces):
            yield finding


async def _strangers(cluster: Any, namespaces: list[str]) -> AsyncIterator[Finding]:
    """Pods that no crabpot may be watching any more."""
    for namespace in namespaces:
        if found := await cluster.strangers(namespace):
            yield Finding(
                f"pods in {namespace}",
                True,
                f"{len(found)} of another crabpot, or of this one before Redis lost its data, as {found[0]}; if nobody watches them any"
                f' more: kubectl -n {namespace} patch pod {found[0]} --type merge -p \'{{"metadata":{{"finalizers":null}}}}\'',
            )


async def _rights(check_rights: Callable[..., Awaitable[list[str]]], namespace: str) -> Finding:
    """An account is well when it may do all that one of the processes does; each has an account of its own."""
    from worker.cluster.kubernetes import WATCH_RIGHTS, WORKER_RIGHTS

    missing = {"worker": await check_rights(namespace, WORKER_RIGHTS), "watch": await check_rights(namespace, WATCH_RIGHTS)}
    enough = [role for role, lacking in missing.items() if not lacking]
    found = (
        f"enough for {' and '.join(enough)}"
        if enough
        else "; ".join(f"{role} lacks {', '.join(lacking)}" for role, lacking in missing.items())
    )
    return Finding(f"rights in {namespace}", bool(enough), found, "bind the Roles of deploy/helm/crabpot to this account")


async def _running(ledger: Ledger, name: str, source: ClusterSource) -> AsyncIterator[Finding]:
    """Does a cluster that may use images say which? It is asked the very question that a plan asks."""
    title, mend = f"cluster {name}", f"mend clusters.{name} in the projects file, or what it names"
    if source.reports:
        well = await ledger.usage.report(name, await ledger.now()) is not None
        found = "has reported within the hour" if well else f"has not reported for an hour, so {_NOTHING_GOES}"
        yield Finding(
            title, well, found, f"let it send what it runs to PUT /v1/clusters/{name}/images, with the token of clusters.{name}.token"
        )
        return
    inquiries = Inquiries()
    try:
        lacking = await inquiries.lacking(name, source)
    except CrabpotError as error:
        yield Finding(title, False, f"{error}; {_NOTHING_GOES}", mend)
        return
    if lacking:
        found = f"its account may not list {', '.join(lacking)}; {_NOTHING_GOES}"
        yield Finding(
            title, False, found, "bind the ClusterRole of deploy/running to the account (in_cluster: running.enabled of the chart)"
        )
        return
    answer = await inquiries.ask(name, source, NOW)
    if isinstance(answer, Silence):
        yield Finding(title, False, f"{answer.why}; {_NOTHING_GOES}", f"mend what is told, or clusters.{name} in the projects file")
    else:
        yield Finding(title, True, f"answers, and may be asked for {', '.join(Workload)}; it names {len(answer)} images")


async def _registry(registries: Registries, name: str, project: ProjectSettings, image: str) -> AsyncIterator[Finding]:
    """Does the registry of a project's image answer, and may a worker read and tag there?"""
    host, _, repository = image.partition("/")
    try:
        client = registries.client(name, project, host)
        await client.ping(host)
        async for _ in client.tags(host, repository):
            break
        await client.can_push(host, repository)
        yield Finding(f"registry {image}", True, "answers; read and tag allowed")
    except CrabpotError as error:
        mend = f"projects.{name}.registries.{host}: give docker_config or secret (and insecure: true for plain HTTP)"
        yield Finding(f"registry {image}", False, str(error), mend)


async def diagnose_ledger(settings: Settings, *, mend: bool) -> AsyncIterator[Finding]:
    """Every place where an index of the ledger and its records disagree; one finding that all is well where there is none."""
    async with Ledger.opened(settings) as ledger:
        faults = 0
        async for found in Audit(ledger.connection, mend=mend).all():
            for fault in found:
                faults += 1
                if mend:
                    yield Finding("ledger", True, f"{fault}; mended")
                else:
                    yield Finding("ledger", False, str(fault), "`crabpot doctor --ledger --mend` writes it anew from the records")
        if not faults:
            builds = sum((await ledger.count()).values())
            yield Finding("ledger", True, f"every index agrees with the records of {builds} builds")


@click.command()
@click.option("--ledger", is_flag=True, help="Hold every index of the ledger against every record instead.")
@click.option("--mend", is_flag=True, help="With --ledger: write the indexes anew where they are wrong.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line.")
def command(ledger: bool, mend: bool, as_json: bool) -> None:
    """Check Redis, the cluster, rights, registries and clocks, and say how to mend what is wrong. Exits 1 on a fault."""
    if mend and not ledger:
        raise click.UsageError("--mend goes with --ledger")
    show = _as_json if as_json else _as_text
    try:
        settings = Settings.load()
        set_up(settings.model_copy(update={"log_level": "error"}))  # findings are told once, on standard output
        findings = diagnose_ledger(settings, mend=mend) if ledger else diagnose(settings)
        faults = asyncio.run(_run(findings, show))
    except CrabpotError as error:
        raise click.ClickException(str(error)) from None
    sys.exit(1 if faults else 0)


async def _run(findings: AsyncIterator[Finding], show: Callable[[Finding], None]) -> int:
    faults = 0
    async for finding in findings:
        show(finding)
        faults += not finding.well
    return faults


def _as_text(finding: Finding) -> None:
    mark = click.style("ok   ", fg="green") if finding.well else click.style("FAULT", fg="red", bold=True)
    click.echo(f"{mark} {finding.name}: {finding.found}")
    if not finding.well and finding.mend:
        click.echo(f"      {finding.mend}")


def _as_json(finding: Finding) -> None:
    click.echo(
        json.dumps({"name": finding.name, "well": finding.well, "found": finding.found, "mend": None if finding.well else finding.mend})
    )
