"""The kinds of Kubernetes' objects that are pods, or from which pods are made: what is asked for when it is to be known which images run."""

from __future__ import annotations

from enum import StrEnum


class Workload(StrEnum):
    """A kind, as `kubectl auth can-i list` and a Role name it: resource and group. The account needs `list` of each, in all namespaces."""

    DEPLOYMENT = "deployments.apps"
    STATEFUL_SET = "statefulsets.apps"
    DAEMON_SET = "daemonsets.apps"
    CRON_JOB = "cronjobs.batch"
    JOB = "jobs.batch"
    REPLICA_SET = "replicasets.apps"
    """A deployment's revisions, and those that somebody else makes."""
    CONTROLLER_REVISION = "controllerrevisions.apps"
    """The revisions of stateful sets and daemon sets."""
    REPLICATION_CONTROLLER = "replicationcontrollers"
    POD = "pods"
    """Last: what makes pods is read before them, so that a pod made meanwhile has its maker among what was read, or is read itself."""

    @property
    def resource(self) -> str:
        return self.value.partition(".")[0]

    @property
    def group(self) -> str:
        """Empty for the core group."""
        return self.value.partition(".")[2]

    @property
    def path(self) -> str:
        """Where the objects of all namespaces are listed."""
        return f"/apis/{self.group}/v1/{self.resource}" if self.group else f"/api/v1/{self.resource}"
