# SPDX-License-Identifier: Apache-2.0
"""A ledger on a PostgreSQL server of the tests' own: forks, and waits for a server that does not answer."""

import os
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path

import pytest

import draftflow
from stage import LIMIT_S, fill, finish_fork, fork, name, sample
from test_interrupts import assert_interrupted


class Server:
    def __init__(self, programs, folder, account):
        self._programs, self._folder, self._account = programs, folder, account
        self._process = None
        self.url = f"postgresql:///postgres?host={folder}&user=postgres"

    def call(self, program, *arguments):
        command = [self._programs / program, *arguments]
        subprocess.run(command, user=self._account, cwd=self._folder, check=True, capture_output=True, timeout=LIMIT_S)

    def start(self):
        options = ["-c", "listen_addresses=", "-c", f"unix_socket_directories={self._folder}", "-c", "fsync=off"]
        with open(self._folder / "log", "ab") as log:
            self._process = subprocess.Popen(
                [self._programs / "postgres", "-D", self._folder / "data", *options],
                user=self._account,
                cwd=self._folder,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        for _ in range(LIMIT_S * 10):
            if subprocess.run([self._programs / "pg_isready", "-q", "-h", self._folder], timeout=LIMIT_S).returncode == 0:
                return
            time.sleep(0.1)
        raise RuntimeError((self._folder / "log").read_text())

    def stop(self):
        if self._process is not None:
            self.freeze(signal.SIGCONT)
            self._process.send_signal(signal.SIGINT)
            self._process.wait(LIMIT_S)
            self._process = None

    def freeze(self, how=signal.SIGSTOP):
        """The server and the processes of its connections."""
        for process in Path("/proc").iterdir():
            if process.name.isdigit():
                try:
                    fields = (process / "stat").read_text().rpartition(")")[2].split()
                except OSError:
                    continue
                if int(fields[1]) == self._process.pid or int(process.name) == self._process.pid:
                    os.kill(int(process.name), how)


@pytest.fixture(scope="module")
def server():
    programs = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    if not programs:
        pytest.skip("PostgreSQL's server is not installed (Debian's postgresql)")
    account = "postgres" if os.getuid() == 0 else None
    folder = Path(tempfile.mkdtemp(prefix="dfpg.", dir="/tmp"))  # short, for its socket
    made = Server(programs[-1].parent, folder, account)
    try:
        if account is not None:
            shutil.chown(folder, account)
        made.call("initdb", "-D", folder / "data", "-U", "postgres", "-A", "trust", "-E", "UTF8", "--locale=C", "--no-sync")
        made.start()
        yield made
    finally:
        made.stop()
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def schema(server, request):
    """A ledger's URL in a schema of its own."""
    where = request.node.name.partition("[")[0]
    server.call("psql", "-q", "-h", server._folder, "-U", "postgres", "-c", f"CREATE SCHEMA {where}")
    return f"{server.url}&options=-csearch_path%3D{where}"


def test_forked_children_have_connections_of_their_own(schema, folder_store):
    ledger = draftflow.Ledger.open(schema)
    fill(folder_store, ledger, 2, close=False)

    def work(child):
        for number in range(100 * child, 100 * child + 10):
            ledger.commit_samples([folder_store.put(sample(number), name(number))])
        ledger.close()

    children = [fork(lambda child=child: work(child)) for child in (1, 2)]
    fill(folder_store, ledger, 10, first=10, close=False)
    assert [finish_fork(child) for child in children] == [0, 0]
    assert len(set(ledger.all_committed_ids())) == 32 and ledger.check() == []
    ledger.close_prompts()
    batches = list(draftflow.Stream(folder_store, ledger, group="g", window=4))
    assert [ident for batch in batches for ident in batch.sample_ids] == ledger.all_committed_ids()


def test_a_server_that_does_not_answer(server, schema, folder_store):
    ledger = draftflow.Ledger.open(schema)
    ref = folder_store.put(sample(0), name(0))
    server.freeze()
    try:
        assert_interrupted(lambda: ledger.commit_samples([ref]), lambda: server.freeze(signal.SIGCONT))
    finally:
        server.freeze(signal.SIGCONT)
    assert ledger.commit_samples([ref]) in (0, 1) and ledger.check() == []


def test_a_server_that_is_not_there(server, schema, folder_store):
    ledger = draftflow.Ledger.open(schema)
    ref = folder_store.put(sample(0), name(0))
    server.stop()
    try:
        assert_interrupted(lambda: ledger.commit_samples([ref]), server.start)
    finally:
        if server._process is None:
            server.start()
    assert ledger.commit_samples([ref]) in (0, 1) and ledger.check() == []
