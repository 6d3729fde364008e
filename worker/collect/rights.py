"""Whether workers may do in Kubernetes what a collection does there, for `crabpot doctor`: a run that lacks a right finds out at night."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable

from ledger.collected import AnyCollected, CollectedInKubernetes
from ledger.errors import CrabpotError
from ledger.fitness import Finding
from ledger.settings import Settings
from worker.cluster.connection import Api
from worker.cluster.rights import is_allowed, told
from worker.cluster.watching import Pace

_GROUPS = {"deployments": "apps", "statefulsets": "apps", "jobs": "batch"}
_COMMON = (
    ("get", "persistentvolumeclaims", ""), ("list", "pods", ""),
    ("get", "jobs", ""), ("list", "jobs", ""), ("delete", "jobs", ""),
)  # fmt: skip
_BY = {
    "job": (("create", "jobs", ""), ("get", "pods", "log")),
    "exec": (("get", "pods", "exec"), ("create", "pods", "exec")),
}


def rights_of(settings: CollectedInKubernetes) -> tuple[tuple[str, str, str], ...]:
    """(verb, resource, subresource) that the account needs in the registry's namespace. Jobs are looked for and ended in any case: the settings
    may have been others before.
    """
    kind = settings.workload.partition("/")[0] + "s"
    return (("get", kind, ""), ("patch", kind, ""), *_COMMON, *_BY[settings.how])


async def check_collections(settings: Settings, collected: Iterable[AnyCollected]) -> AsyncIterator[Finding]:
    """A finding for each registry that is collected in Kubernetes. Only workers need these rights: another account is let off."""
    here = [one for one in collected if isinstance(one, CollectedInKubernetes)]
    if not here:
        return
    api = Api(settings.kubeconfig, settings.context, Pace())
    try:
        for one in here:
            try:
                yield await _finding(api, settings, one)
            except CrabpotError as error:
                yield Finding(_title(one), False, str(error), "check CRABPOT_KUBECONFIG: the registry's cluster is reached by it as well")
    finally:
        await api.close()


async def _finding(api: Api, settings: Settings, one: CollectedInKubernetes) -> Finding:
    missing = await lacking(api, one)
    if not missing:
        return Finding(_title(one), True, f"this account may collect {one.workload} in {one.namespace}")
    if settings.cluster != "local" and not await is_allowed(api, settings.namespace, "create", "pods"):
        return Finding(_title(one), True, "not looked at: this is no worker's account, and only workers collect")
    value = f"{{namespace: {one.namespace}, workload: {one.workload}, claim: {one.claim}, how: {one.how}}}"
    return Finding(
        _title(one),
        False,
        f"in {one.namespace} this account may not {', '.join(missing)}",
        f"add {value} to the chart's `collect`, which makes the Role …-collect-N in {one.namespace}; or bind a Role with these rights",
    )


async def lacking(api: Api, one: CollectedInKubernetes) -> list[str]:
    """What the account may not do and a collection does, in words. ClusterError."""
    kind, _, workload = one.workload.partition("/")
    names = {f"{kind}s": workload, "persistentvolumeclaims": one.claim}
    missing = []
    for verb, resource, subresource in rights_of(one):
        name, group = names.get(resource, ""), _GROUPS.get(resource, "")
        if not await is_allowed(api, one.namespace, verb, resource, subresource, group=group, name=name):
            missing.append(told(verb, resource, subresource, name))
    return missing


def _title(one: CollectedInKubernetes) -> str:
    return f"rights to collect {one.registry}"
