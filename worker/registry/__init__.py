"""Image registries: what is read there, what is changed, and where the credentials come from.

`wire` sends to whom `trust` lets it, and `pace` says how fast; `answers` knows what an answer means; `auth` answers `challenges`, with what
`credentials` finds; `manifests`, `listing` and `referrers` read what comes back, `products` and `pulls` what some say beside the protocol. `reader`
is for all that only looks, `client` writes too, `rehearsal` writes without sending, and `copying` moves whole images.
"""

from worker.registry.client import RegistryClient
from worker.registry.credentials import Anonymous, ByRegistry, Credential, Credentials, DockerConfig, DockerConfigFile
from worker.registry.manifests import Descriptor, Manifest
from worker.registry.pace import IMPATIENT, PATIENT, Budgets, Patience
from worker.registry.reader import RegistryReader
from worker.registry.wire import Timeouts

__all__ = [
    "IMPATIENT",
    "PATIENT",
    "Anonymous",
    "Budgets",
    "ByRegistry",
    "Credential",
    "Credentials",
    "Descriptor",
    "DockerConfig",
    "DockerConfigFile",
    "Manifest",
    "Patience",
    "RegistryClient",
    "RegistryReader",
    "Timeouts",
]
