"""A Slurm for tests: its daemons run on this machine, on loopback addresses, with all files in one folder."""

import contextlib
import os
import pwd
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

__all__ = ["Cluster"]

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch")
PROGRAMS_OF_ACCOUNTING = ("slurmdbd", "mariadbd", "mariadb-install-db")


class Cluster:
    """Two nodes of one machine, and partitions. A job in the partition ``high`` preempts those in all others.

    ``SLURM_CONF`` in ``environment`` is all that Slurm's commands need to find it.
    """

    nodes = ("c1", "c2")
    cpus = 2

    def __init__(self, folder: Path, *, accounting: bool = False) -> None:
        self.folder = folder
        self.accounting = accounting
        self.environment = {**os.environ, "SLURM_CONF": str(folder / "slurm.conf"), "PATH": _search_path()}
        # Variables of a job around the tests would change what sbatch does.
        for name in [name for name in self.environment if name.startswith(("SLURM_JOB", "SLURM_STEP", "SBATCH_"))]:
            del self.environment[name]
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._ports = _free_ports(4 + len(self.nodes))

    @staticmethod
    def missing(*, accounting: bool = False) -> list[str]:
        """Return the programs that are not installed."""
        wanted = PROGRAMS + (PROGRAMS_OF_ACCOUNTING if accounting else ())
        return [name for name in wanted if shutil.which(name, path=_search_path()) is None]

    @contextlib.contextmanager
    def running(self) -> Iterator["Cluster"]:
        """Start the daemons, and end them and their jobs after the block.

        Raises:
            TimeoutError: a daemon does not answer; the message has the end of its log.
        """
        try:
            self._start()
            yield self
        finally:
            self._end()

    def command(self, *words: str, check: bool = True) -> str:
        """Run a command of Slurm and return its output."""
        done = subprocess.run(words, env=self.environment, capture_output=True, text=True, timeout=60)
        assert not check or done.returncode == 0, f"{words}: {done.stdout}{done.stderr}"
        return done.stdout

    def configure(self, **settings: str) -> None:
        """Change settings of slurm.conf while the cluster runs; "" removes one."""
        self._write(settings)
        self.command("scontrol", "reconfigure")

    def kill_node(self, node: str) -> None:
        """Let a node die with all of its processes."""
        self._processes.pop(node).kill()
        for pid in self.processes(node):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def processes(self, node: str | None = None) -> list[int]:
        """Return the processes of this cluster's daemons, or those of the steps and jobs of one node.

        Another cluster on this machine may have nodes of the same names.
        """
        return _pids_with(f"SLURM_CONF={self.folder / 'slurm.conf'}", *([f"SLURMD_NODENAME={node}"] if node else []))

    def start_node(self, node: str) -> None:
        """Start a node, and wait until it takes jobs."""
        self._daemon(node, "slurmd", "-D", "-N", node)
        # A node that died stays down for a moment after its slurmd is back.
        self._wait(
            node, lambda: self.command("sinfo", "-h", "-n", node, "-o", "%t", check=False).split()[:1] == ["idle"]
        )

    def stop_controller(self) -> None:
        """Stop slurmctld. The jobs go on."""
        self._stop("slurmctld")

    def start_controller(self) -> None:
        """Start slurmctld with the jobs that it had."""
        self._daemon("slurmctld", "slurmctld", "-D")
        self._wait("slurmctld", lambda: "UP" in self.command("scontrol", "ping", check=False))

    def _start(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        self._write({})
        (self.folder / "state").mkdir()
        self._start_munge()
        if self.accounting:
            self._start_accounting()
        self.start_controller()
        for node in self.nodes:
            self.start_node(node)

    def _start_munge(self) -> None:
        # munged demands a folder that only its user can write.
        folder = self.folder / "munge"
        folder.mkdir(mode=0o700)
        folder.joinpath("key").write_bytes(os.urandom(1024))
        folder.joinpath("key").chmod(0o400)
        options = [f"--{name}-file={folder / name}" for name in ("key", "pid", "seed", "log")]
        self._daemon("munged", "munged", "--foreground", "--force", f"--socket={folder / 'socket'}", *options)
        self._wait("munged", lambda: _answers("munge", "-n", "-S", str(folder / "socket"), env=self.environment))

    def _start_accounting(self) -> None:
        folder, port = self.folder / "database", str(self._ports[2])
        owner = [f"--user={_user()}", f"--datadir={folder}", "--no-defaults"]
        options = ["--auth-root-authentication-method=normal", "--skip-test-db"]
        self.command("mariadb-install-db", "--no-defaults", *owner[:2], *options)
        address = ["--bind-address=127.0.0.1", f"--port={port}", f"--socket={folder / 'socket'}"]
        self._daemon("mariadbd", "mariadbd", owner[2], *owner[:2], *address, "--innodb-buffer-pool-size=32M")
        client = ["mariadb", "--no-defaults", "--protocol=socket", f"--socket={folder / 'socket'}", "-e"]
        self._wait("mariadbd", lambda: _answers(*client, "select 1", env=self.environment))
        grant = "create user slurm@'127.0.0.1' identified by 'slurm'; grant all on *.* to slurm@'127.0.0.1'"
        self.command(*client, grant)
        self._daemon("slurmdbd", "slurmdbd", "-D")
        self._wait("slurmdbd", lambda: _answers("sacctmgr", "-n", "list", "cluster", env=self.environment))
        self.command("sacctmgr", "-i", "add", "cluster", "test")

    def _write(self, settings: dict[str, str]) -> None:
        """Write slurm.conf and slurmdbd.conf."""
        controller, database, storage, *nodes = self._ports
        facts = {
            "ClusterName": "test",
            "SlurmctldHost": f"{_host()}(127.0.0.1)",
            "SlurmUser": _user(),
            "SlurmdUser": _user(),
            "AuthType": "auth/munge",
            # A requeued job starts cred_expire + 1 seconds later, 121 by default; less than 5 counts as the default.
            "AuthInfo": f"socket={self.folder / 'munge/socket'},cred_expire=5",
            "CommunicationParameters": "NoCtldInAddrAny,NoInAddrAny",  # loopback only
            "SlurmctldPort": str(controller),
            "SlurmctldPidFile": str(self.folder / "slurmctld.pid"),
            "SlurmdPidFile": str(self.folder / "slurmd-%n.pid"),
            "StateSaveLocation": str(self.folder / "state"),
            "SlurmdSpoolDir": str(self.folder / "spool-%n"),
            # No control groups, which a container may not have.
            "ProctrackType": "proctrack/linuxproc",
            "TaskPlugin": "task/none",
            "JobAcctGatherType": "jobacct_gather/none",
            "MpiDefault": "none",
            "SwitchType": "switch/none",
            "SelectType": "select/cons_tres",
            "SelectTypeParameters": "CR_CPU",
            "SlurmdParameters": "config_overrides",
            "EnforcePartLimits": "ALL",
            "SchedulerParameters": "bf_interval=1,sched_interval=2,batch_sched_delay=0",
            "PreemptType": "preempt/partition_prio",
            "PreemptMode": "REQUEUE",
            "SlurmctldParameters": "preempt_send_user_signal",
            "MaxArraySize": "20",
            "MinJobAge": "300",
            "ReturnToService": "2",
            "SlurmdTimeout": "120",  # on a busy machine, a slurmd that lives may be silent for some seconds
            "KillWait": "10",
            "MessageTimeout": "3",
            "InactiveLimit": "0",
            "AccountingStorageType": f"accounting_storage/{'slurmdbd' if self.accounting else 'none'}",
            "AccountingStorageHost": "127.0.0.1",
            "AccountingStoragePort": str(database),
            "AccountingStoragePass": str(self.folder / "munge/socket"),
        } | settings
        lines = [f"{name}={value}" for name, value in facts.items() if value]
        for node, port in zip(self.nodes, nodes, strict=False):
            where = f"NodeHostname={_host()} NodeAddr=127.0.0.1 Port={port}"
            lines.append(f"NodeName={node} {where} CPUs={self.cpus} RealMemory=2000 State=UNKNOWN")
        partitions = {
            "low": "Default=YES MaxTime=60 PriorityTier=1 PreemptMode=REQUEUE GraceTime=60",
            "low0": "PriorityTier=1 PreemptMode=REQUEUE GraceTime=0",
            "cancelled": "PriorityTier=1 PreemptMode=CANCEL GraceTime=60",
            "high": "PriorityTier=10 PreemptMode=OFF",
        }
        lines += [f"PartitionName={name} Nodes=ALL {limits}" for name, limits in partitions.items()]
        self.folder.joinpath("slurm.conf").write_text("\n".join(lines) + "\n")
        accounting = {
            "AuthType": "auth/munge",
            "AuthInfo": f"socket={self.folder / 'munge/socket'}",
            "CommunicationParameters": "NoInAddrAny",
            "DbdHost": "localhost",
            "DbdAddr": "127.0.0.1",
            "DbdPort": str(database),
            "SlurmUser": _user(),
            "PidFile": str(self.folder / "slurmdbd.pid"),
            "StorageType": "accounting_storage/mysql",
            "StorageHost": "127.0.0.1",
            "StoragePort": str(storage),
            "StorageUser": "slurm",
            "StoragePass": "slurm",
        }
        path = self.folder / "slurmdbd.conf"
        path.touch(mode=0o600)
        path.write_text("".join(f"{name}={value}\n" for name, value in accounting.items()))

    def _daemon(self, name: str, *words: str) -> None:
        """Start a daemon in the foreground, so that its process id is known."""
        with open(self.folder / f"{name}.log", "ab") as log:
            process = subprocess.Popen(words, env=self.environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        self._processes[name] = process

    def _wait(self, name: str, ready: Callable[[], bool]) -> None:
        end = time.monotonic() + 30
        while not ready():
            ended = self._processes[name].poll() is not None
            if ended or time.monotonic() > end:
                log = (self.folder / f"{name}.log").read_text(errors="replace")[-2000:]
                raise TimeoutError(f"{name} {'ended' if ended else 'does not answer'}: {log}")
            time.sleep(0.1)

    def _stop(self, name: str) -> None:
        process = self._processes.pop(name)
        process.terminate()
        try:
            process.wait(5)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def _end(self) -> None:
        # The steps of jobs are children of no daemon.
        own = self.processes()
        for name in reversed(list(self._processes)):
            self._stop(name)
        for pid in own:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def _search_path() -> str:
    """Return PATH with the folders of daemons."""
    return os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"])


def _user() -> str:
    return pwd.getpwuid(os.getuid()).pw_name


def _host() -> str:
    return socket.gethostname().split(".")[0]


def _answers(*words: str, env: dict[str, str]) -> bool:
    return subprocess.run(words, env=env, capture_output=True, timeout=60).returncode == 0


def _free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [server.getsockname()[1] for server in sockets]
    for server in sockets:
        server.close()
    return ports


def _pids_with(*variables: str) -> list[int]:
    """Return the processes of this machine with all ``variables`` in their environment, except this one."""
    wanted, found = {variable.encode() for variable in variables}, []
    for path in Path("/proc").glob("[0-9]*/environ"):
        with contextlib.suppress(OSError):
            if wanted.issubset(path.read_bytes().split(b"\0")) and int(path.parent.name) != os.getpid():
                found.append(int(path.parent.name))
    return found
