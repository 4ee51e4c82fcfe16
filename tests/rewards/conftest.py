"""No test of rewards reaches the network: a connection to anywhere but this machine fails."""

from __future__ import annotations

import socket

import pytest


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    """Let loopback through, for tests with a server of their own; refuse everything else."""
    connect, look_up = socket.socket.connect, socket.getaddrinfo

    def is_here(host):
        return host in (None, "", "localhost", "::1") or str(host).startswith("127.")

    def guarded_connect(self, address):
        if self.family in (socket.AF_INET, socket.AF_INET6) and not is_here(address[0]):
            raise AssertionError(f"a test opened a connection to {address}")
        return connect(self, address)

    def guarded_look_up(host, *rest, **more):
        name = host.decode() if isinstance(host, bytes) else host
        if not is_here(name):
            raise AssertionError(f"a test looked up the address of {name}")
        return look_up(host, *rest, **more)

    monkeypatch.setattr(socket.socket, "connect", guarded_connect)
    monkeypatch.setattr(socket.socket, "connect_ex", guarded_connect)
    monkeypatch.setattr(socket, "getaddrinfo", guarded_look_up)
