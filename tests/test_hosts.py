"""A launch over two hosts with addresses and names of their own: network namespaces, made by hosts.sh."""

import os
import subprocess
from pathlib import Path

import pytest
from conftest import FAST, command, is_open_mpi

from genfl_mpi.cli import main
from genfl_mpi.results import reader


def possible():
    """Whether this system lets us make them."""
    try:
        cable = "unshare --net --mount --uts ip link add one type veth peer name two"
        return all(
            subprocess.run(command.split(), capture_output=True, timeout=20).returncode == 0
            for command in (cable, "nsenter --version")
        )
    except (OSError, subprocess.TimeoutExpired):
        return False


@pytest.fixture
def on_two_hosts(tmp_path):
    if not possible():
        pytest.skip(
            "network namespaces cannot be made here: they need root, and Debian's iproute2 and util-linux"
        )

    def run(*arguments):
        launcher, *rest = command(2, "-m", "genfl_mpi", *arguments)
        agent = tmp_path / "agent"
        across = (
            ["--host", "10.77.0.1:1,10.77.0.2:1", "--map-by", "node", "--prtemca", "plm_ssh_agent", agent]
            if is_open_mpi()
            else [
                "-launcher",
                "ssh",
                "-launcher-exec",
                agent,
                "-hosts",
                "10.77.0.1,10.77.0.2",
                "-localhost",
                "10.77.0.1",
                "-ppn",
                "1",
            ]
        )
        outer = ["unshare", "--net", "--mount", "bash", Path(__file__).with_name("hosts.sh"), tmp_path]
        outside = {name: value for name, value in os.environ.items() if not name.startswith("SLURM_")}
        done = subprocess.run(
            [str(part) for part in (*outer, launcher, *across, *rest)],
            capture_output=True,
            text=True,
            timeout=300,
            env=outside,
        )
        return done.returncode, done.stdout + done.stderr

    return run


@pytest.mark.slow
def test_a_run_over_two_hosts(on_two_hosts, tmp_path):
    status, said = on_two_hosts(*FAST, "rounds=3", f"output={tmp_path}/two")
    assert status == 0, said
    assert main([*FAST, "rounds=3", f"output={tmp_path}/one"]) == 0
    with reader.open_results(tmp_path / "two/fedavg_seed1.h5") as file:
        assert file["environment"].attrs["hosts"] == "host1, host2"
        assert set(file["clients/rank"][:]) == {0, 1}
    assert reader.digests(tmp_path / "two/fedavg_seed1.h5") == reader.digests(
        tmp_path / "one/fedavg_seed1.h5"
    )


@pytest.mark.slow
def test_doctor_over_two_hosts(on_two_hosts, tmp_path):
    _, said = on_two_hosts(
        "doctor", "runtime.threads=1", f"output={tmp_path}/results", f"generation.bank={tmp_path}/bank"
    )
    assert "ranks      2 on 2 hosts" in said and "rank 0 to rank 1 on host2: " in said, said
    assert "host1: rank 0 on " in said and "host2: rank 1 on " in said
    assert "not the same folder" not in said
