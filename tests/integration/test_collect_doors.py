"""A registry's processes asked at their own addresses: a certificate is held against the registry's name, whatever they are reached by."""

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from ledger.access import RegistryAccess
from ledger.errors import RegistryUnavailable
from tests.integration.registry_server import Certificate, RegistryServer, run_registry
from worker.collect.doors import Doors
from worker.collect.site import Door
from worker.registry.credentials import Anonymous


def serving(folder: Path, name: str, *, readonly: bool = False) -> tuple[Certificate, AbstractContextManager[RegistryServer]]:
    folder.mkdir()
    certificate = Certificate.make(folder, name)
    return certificate, run_registry(folder / "registry", tls=certificate, readonly=readonly)


async def refusing(registry: str, access: RegistryAccess, *servers: RegistryServer) -> list[bool]:
    doors = [Door(str(number), server.host) for number, server in enumerate(servers)]
    return await Doors(registry, access, Anonymous()).refusing(doors, "team/app")


@pytest.mark.parametrize("registry", ["registry.example.com", "registry.example.com:5000"])
async def test_a_certificate_of_the_registrys_name_is_taken_at_an_address_that_it_does_not_name(tmp_path, registry):
    certificate, serves = serving(tmp_path / "tls", "DNS:registry.example.com")
    with serves as server:
        assert await refusing(registry, RegistryAccess(certificate=certificate.path), server) == [False]


async def test_each_door_has_its_own_answer(tmp_path):
    certificate, serves = serving(tmp_path / "tls", "DNS:registry.example.com")
    with serves as open_one, run_registry(tmp_path / "closed", tls=certificate, readonly=True) as closed_one:
        access = RegistryAccess(certificate=certificate.path)
        assert await refusing("registry.example.com", access, open_one, closed_one) == [False, True]


async def test_a_certificate_of_the_address_alone_is_not_the_registrys(tmp_path):
    certificate, serves = serving(tmp_path / "tls", "IP:127.0.0.1")
    with serves as server, pytest.raises(RegistryUnavailable, match=r"certificate is not valid for 'registry\.example\.com'"):
        await refusing("registry.example.com", RegistryAccess(certificate=certificate.path), server)


async def test_a_certificate_of_an_authority_that_nobody_named_is_refused_with_what_to_do(tmp_path):
    _, serves = serving(tmp_path / "tls", "DNS:registry.example.com")
    with serves as server, pytest.raises(RegistryUnavailable, match="name its CA certificate under `registries`"):
        await refusing("registry.example.com", RegistryAccess(), server)
