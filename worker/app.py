"""The Celery application, and why each setting is as it is (read in celery 5.7 and kombu 5.7).

Celery carries nudges: short, idempotent steps whose loss costs seconds, because the ledger's due times repeat them.
"""

from __future__ import annotations

from celery import Celery
from kombu.entity import Queue

from ledger.queue import ROUTES, SCHEDULE
from ledger.settings import settings

_REDIS = {
    "visibility_timeout": 600,  # far longer than any step; a message that a dead worker held comes back after it, but due times are quicker
    "socket_timeout": 10,  # a half-open connection is noticed, not waited on for ever (celery#8030, #8091); a consumer is answered every second
    "socket_connect_timeout": 5,
    "socket_keepalive": True,
    "health_check_interval": 20,
    "retry_on_timeout": True,
    "global_keyprefix": f"{settings().prefix}:broker:",  # several crabpots may share one Redis
}

app = Celery("crabpot", include=["worker.tasks"])
app.conf.update(
    broker_url=settings().broker,
    broker_transport_options=_REDIS,
    broker_connection_retry_on_startup=True,  # Redis may come up after the worker
    broker_connection_max_retries=None,  # and may be away for long: the worker waits, it does not end
    task_ignore_result=True,  # results are records and events; a result backend would keep keys that nobody reads
    task_routes=ROUTES,
    task_queues=[
        Queue(name, routing_key=name) for name in sorted({route["queue"] for route in ROUTES.values()})
    ],  # a worker takes every step unless -Q says otherwise
    task_default_queue="crabpot.dispatch",
    task_serializer="json",
    accept_content=["json"],  # never pickle: whoever can write to Redis must not run code here
    task_acks_late=True,  # a step is safe to run twice, and must not be lost with its worker
    task_acks_on_failure=True,  # a step that failed is repeated by its due time, not by redelivery in a hot loop
    task_acks_on_timeout=True,
    task_reject_on_worker_lost=False,  # it ignores max_retries (celery#9082); the due time repeats the step
    worker_prefetch_multiplier=1,  # no step waits in a busy worker's memory while another worker is idle
    worker_disable_prefetch=True,
    worker_pool="threads",  # all steps of a process share one event loop and its clients; nothing is forked, so none is copied
    worker_concurrency=16,  # steps wait for Kubernetes and registries, not for the CPU
    worker_cancel_long_running_tasks_on_connection_loss=False,  # a step that runs on does no harm: each of its writes names its version
    worker_soft_shutdown_timeout=20,  # steps in flight finish; below Kubernetes' grace period of 30 s
    worker_enable_soft_shutdown_on_idle=False,  # it is for countdowns held in memory, which we have none of: an idle worker ends at once
    worker_hijack_root_logger=False,  # structlog is set up by us
    worker_send_task_events=False,
    task_send_sent_event=False,
    worker_enable_remote_control=False,  # no pidbox keys and no broadcast; revoke lives in workers' memory, a cancel in the record
    timezone="UTC",
    # Only that time passes: what is due by which expression in which zone, the step knows. One that comes late is of no use any more.
    beat_schedule={SCHEDULE: {"task": SCHEDULE, "schedule": 60.0, "options": {"expires": 55}}},
)
