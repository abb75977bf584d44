"""Run a private Slurm in a folder: two nodes on this machine, each with four fake GPUs.

    python tests/slurm.py start FOLDER     and then, in a shell: export SLURM_CONF=FOLDER/slurm.conf
    python tests/slurm.py stop FOLDER

Needs Debian's packages slurm-wlm and munge. The nodes claim more cores than the machine has, so that the job
files can be submitted unchanged. The daemons listen on this machine only; `stop` ends them by the process ids
stored in FOLDER.
"""

import getpass
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol", "squeue", "scancel")
SYSTEM = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/usr/local/sbin"])  # where daemons lie
NODES = ("node1", "node2")

CONF = """\
ClusterName=genfl
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmUser={user}
SlurmdUser={user}
AuthInfo=socket={folder}/munge.socket
CommunicationParameters=NoInAddrAny,NoCtldInAddrAny
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SlurmdParameters=config_overrides
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
MpiDefault=pmi2
GresTypes=gpu
ReturnToService=2
KillWait=10
MailProg=/bin/true
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/%n
SlurmctldPidFile={folder}/slurmctld.pidfile
SlurmdPidFile={folder}/%n.pidfile
NodeName=node1 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[1]} \
CPUs=64 CoresPerSocket=64 RealMemory=256000 Gres=gpu:4
NodeName=node2 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[2]} \
CPUs=64 CoresPerSocket=64 RealMemory=256000 Gres=gpu:4
PartitionName=all Nodes=ALL Default=YES State=UP
"""


def missing():
    """Which of PROGRAMS are not installed."""
    return [name for name in PROGRAMS if not shutil.which(name, path=SYSTEM)]


def start(folder):
    """Start the daemons. Returns the environment in which Slurm's commands find them."""
    folder = Path(folder).resolve()
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "state").mkdir()
    for node in NODES:
        (folder / node).mkdir()
    for gpu in range(4):
        (folder / f"gpu{gpu}").symlink_to("/dev/null")  # a device must be a device
    (folder / "munge.key").write_bytes(os.urandom(1024))
    (folder / "munge.key").chmod(0o600)
    host = socket.gethostname().partition(".")[0]
    (folder / "slurm.conf").write_text(
        CONF.format(folder=folder, host=host, user=getpass.getuser(), ports=_free_ports(3))
    )
    (folder / "gres.conf").write_text(f"NodeName=node[1-2] Name=gpu File={folder}/gpu[0-3]\n")
    environment = {**os.environ, "SLURM_CONF": str(folder / "slurm.conf")}
    try:
        _daemon(
            folder,
            "munged",
            "--foreground",
            "--force",
            f"--key-file={folder}/munge.key",
            f"--socket={folder}/munge.socket",
            f"--pid-file={folder}/munged.pidfile",
            f"--log-file={folder}/munged.log",
            f"--seed-file={folder}/munged.seed",
        )
        _until(folder, (folder / "munge.socket").exists)
        _daemon(folder, "slurmctld", "-D", "-f", f"{folder}/slurm.conf")
        for node in NODES:
            _daemon(folder, "slurmd", "-D", "-N", node, "-f", f"{folder}/slurm.conf", name=node)
        _until(
            folder,
            lambda: _output(environment, "sinfo", "--noheader", "--format=%D %t") == f"{len(NODES)} idle",
        )
    except BaseException:
        stop(folder)
        raise
    return environment


def stop(folder):
    """Cancel what runs and end the daemons, by their ids."""
    folder = Path(folder).resolve()
    environment = {**os.environ, "SLURM_CONF": str(folder / "slurm.conf")}
    with suppress(TimeoutError, subprocess.TimeoutExpired):
        subprocess.run(
            ["scancel", f"--user={getpass.getuser()}"], env=environment, capture_output=True, timeout=20
        )
        _until(folder, lambda: not _output(environment, "squeue", "--noheader"), 20)
    for name in (*NODES, "slurmctld", "munged"):
        with suppress(OSError, ValueError):
            pid = int((folder / f"{name}.pid").read_text())
            if (
                str(folder) in Path(f"/proc/{pid}/cmdline").read_text()
            ):  # the number may be another process's by now
                os.kill(pid, signal.SIGTERM)
                _until(folder, lambda: not _runs(pid), 20)


def _daemon(folder, program, *arguments, name=None):
    with open(folder / f"{name or program}.out", "w") as output:
        process = subprocess.Popen(
            [shutil.which(program, path=SYSTEM), *arguments],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    (folder / f"{name or program}.pid").write_text(str(process.pid))


def _runs(pid):
    with suppress(ChildProcessError):
        os.waitpid(pid, os.WNOHANG)  # if it is this process's own
    return Path(f"/proc/{pid}").exists()


def _free_ports(count):
    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


def _output(environment, *command):
    try:
        return subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=10
        ).stdout.strip()
    except subprocess.TimeoutExpired:
        return "no answer"


def _until(folder, holds, seconds=60):
    deadline = time.monotonic() + seconds
    while not holds():
        if time.monotonic() > deadline:
            logs = "\n".join(f"{path.name}: {path.read_text()[-2000:]}" for path in folder.glob("*.out"))
            raise TimeoutError(f"Slurm did not come to that within {seconds} s\n{logs}")
        time.sleep(0.1)


if __name__ == "__main__":
    if len(sys.argv) != 3 or sys.argv[1] not in ("start", "stop"):
        sys.exit(__doc__)
    if sys.argv[1] == "start" and missing():
        sys.exit(f"not installed: {', '.join(missing())}")
    {"start": start, "stop": stop}[sys.argv[1]](sys.argv[2])
