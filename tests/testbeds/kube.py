"""A real Kubernetes API on loopback: etcd, kube-apiserver and, where asked for, kube-controller-manager.

    with RealApi() as api:
        api.kubectl("get", "namespaces")

Ready in about 3 s. Everything it starts dies with the process that started it, however that one ends.
"""

from __future__ import annotations

import json
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Self

from tests.testbeds.admin import Admin
from tests.testbeds.group import ProcessGroup
from tests.testbeds.programs import Missing, need

CONTEXT = "greenthread-real"
ETCD, APISERVER, CONTROLLER_MANAGER = "etcd", "kube-apiserver", "kube-controller-manager"

#: For `RealApi(controllers=...)`: owner references and namespaces that are deleted, and nothing that needs kubelets.
GARBAGE_COLLECTION = "garbage-collector-controller,namespace-controller"


AUDIT_POLICY = {"apiVersion": "audit.k8s.io/v1", "kind": "Policy", "rules": [{"level": "Metadata"}]}


class RealApi(Admin):
    """A running API server with an administrator's token.

    `url`, `token`, `ca_file` and `kubeconfig` (a file with the context `greenthread-real`) say how to reach it; ports
    and data stay the same over `kill` and `start`. Raises `Missing` when a program is not here, RuntimeError when one
    does not start. There is no kubelet and no scheduler, and the ServiceAccount admission is off.
    """

    def __init__(self, controllers: str = "", audit: bool = False) -> None:
        """`controllers`: what kube-controller-manager runs (its flag `--controllers`); empty: it is not started.

        `audit`: every request leaves a line in `audit_log`.
        """
        programs = (ETCD, APISERVER, CONTROLLER_MANAGER) if controllers else (ETCD, APISERVER)
        self._programs = {name: need(name) for name in programs}
        self.folder = Path(tempfile.mkdtemp(prefix="greenthread-real-"))
        super().__init__(self.folder / "kubeconfig", self.folder / "ca.crt")
        _certificates(self.folder)
        etcd_port, peer_port, port = free_ports(3)
        token = secrets.token_urlsafe(24)
        _write_secret(self.folder / "tokens.csv", f'{token},admin,admin,"system:masters"\n')
        _write_secret(self.kubeconfig, json.dumps(self._config(port, token), indent=1))
        self.load()
        self._arguments = self._command_lines(etcd_port, peer_port, port, controllers)
        self.audit_log = self.folder / "audit.log"
        if audit:
            policy = self.folder / "audit-policy.json"
            policy.write_text(json.dumps(AUDIT_POLICY))
            self._arguments[APISERVER] += [f"--audit-policy-file={policy}", f"--audit-log-path={self.audit_log}"]
        self._group: ProcessGroup | None = None

    def __enter__(self) -> Self:
        self._group = ProcessGroup()
        try:
            for name in self._programs:
                self.start(name, wait=False)
            self.wait_ready()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self, name: str, wait: bool = True) -> None:
        """Starts a program (`ETCD`, `APISERVER`, `CONTROLLER_MANAGER`) that is not running; waits for a ready API."""
        assert self._group is not None, "use it as a context manager"
        self._group.start(name, [str(self._programs[name]), *self._arguments[name]], self.folder / f"{name}.log")
        if wait:
            self.wait_ready()

    @property
    def pids(self) -> list[int]:
        """Of its processes."""
        return self._group.pids if self._group else []

    def kill(self, name: str) -> None:
        """Kills one program without warning (SIGKILL) and waits for its end."""
        assert self._group is not None, "use it as a context manager"
        self._group.kill(name)

    def signal(self, name: str, number: signal.Signals) -> None:
        """Sends a signal to one program, say SIGSTOP and later SIGCONT."""
        assert self._group is not None, "use it as a context manager"
        self._group.running[name].send_signal(number)

    def stop(self) -> None:
        """Ends everything and removes its folder; may be called twice."""
        if self._group is not None:
            self._group.stop()
        shutil.rmtree(self.folder, ignore_errors=True)

    def wait_ready(self, timeout: float = 60.0) -> None:
        """Until the API is ready and has its namespace `default`. RuntimeError, with the log's end, when it is not."""
        assert self._group is not None, "use it as a context manager"
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            for name, process in self._group.running.items():
                if process.poll() is not None:
                    raise RuntimeError(f"{name} ended with status {process.returncode}:\n{self.log(name)}")
            if self.answers("/readyz") and self.answers("/api/v1/namespaces/default"):
                return
            time.sleep(0.05)
        raise RuntimeError(f"no Kubernetes API after {timeout:.0f} s:\n{self.log(APISERVER)}")

    def log(self, name: str, lines: int = 20) -> str:
        """The last lines that a program wrote."""
        file = self.folder / f"{name}.log"
        return "\n".join(file.read_text(errors="replace").splitlines()[-lines:]) if file.exists() else ""

    def _config(self, port: int, token: str) -> dict[str, object]:
        """The kubeconfig."""
        cluster = {"server": f"https://127.0.0.1:{port}", "certificate-authority": str(self.ca_file)}
        context = {"cluster": CONTEXT, "user": CONTEXT, "namespace": "default"}
        return {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": CONTEXT,
            "clusters": [{"name": CONTEXT, "cluster": cluster}],
            "users": [{"name": CONTEXT, "user": {"token": token}}],
            "contexts": [{"name": CONTEXT, "context": context}],
        }

    def _command_lines(self, etcd_port: int, peer_port: int, port: int, controllers: str) -> dict[str, list[str]]:
        folder, etcd, peer = self.folder, f"http://127.0.0.1:{etcd_port}", f"http://127.0.0.1:{peer_port}"
        return {
            ETCD: [
                f"--data-dir={folder / 'etcd'}",
                f"--listen-client-urls={etcd}",
                f"--advertise-client-urls={etcd}",
                f"--listen-peer-urls={peer}",
                f"--initial-advertise-peer-urls={peer}",
                f"--initial-cluster=default={peer}",
                "--unsafe-no-fsync",
                "--log-level=error",
            ],
            APISERVER: [
                f"--etcd-servers={etcd}",
                "--bind-address=127.0.0.1",
                "--advertise-address=127.0.0.1",
                "--endpoint-reconciler-type=none",
                f"--secure-port={port}",
                f"--tls-cert-file={folder / 'server.crt'}",
                f"--tls-private-key-file={folder / 'server.key'}",
                f"--client-ca-file={self.ca_file}",
                f"--token-auth-file={folder / 'tokens.csv'}",
                "--authorization-mode=RBAC",
                "--service-account-issuer=https://kubernetes.default.svc",
                f"--service-account-key-file={folder / 'accounts.key'}",
                f"--service-account-signing-key-file={folder / 'accounts.key'}",
                "--service-cluster-ip-range=10.96.0.0/16",
                "--disable-admission-plugins=ServiceAccount",
                "--allow-privileged=true",
                "--profiling=false",
            ],
            CONTROLLER_MANAGER: [
                f"--kubeconfig={self.kubeconfig}",
                f"--controllers={controllers}",
                f"--service-account-private-key-file={folder / 'accounts.key'}",
                f"--root-ca-file={self.ca_file}",
                "--leader-elect=false",
                "--secure-port=0",
            ],
        }


def _certificates(folder: Path) -> None:
    """A fresh authority, a server certificate for loopback, and the key that signs service account tokens."""
    ec = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-noenc", "-days", "2"]
    authority = ["-subj", "/CN=greenthread-testbed", "-keyout", "ca.key", "-out", "ca.crt"]
    issuer = ["-CA", "ca.crt", "-CAkey", "ca.key"]
    server = ["-subj", "/CN=kube-apiserver", "-keyout", "server.key", "-out", "server.crt", *issuer]
    extensions = [
        "subjectAltName=IP:127.0.0.1,DNS:localhost", "basicConstraints=critical,CA:FALSE",
        "keyUsage=critical,digitalSignature", "extendedKeyUsage=serverAuth",
    ]  # fmt: skip
    commands = [
        ["req", "-x509", *ec, *authority, "-addext", "keyUsage=critical,keyCertSign,cRLSign"],
        ["req", "-x509", *ec, *server, *(word for extension in extensions for word in ("-addext", extension))],
        ["ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", "accounts.key"],
    ]
    for command in commands:
        try:
            done = subprocess.run(["openssl", *command], cwd=folder, capture_output=True, text=True)
        except FileNotFoundError:
            why = "openssl is not on the PATH; install it (Debian, Ubuntu: `apt-get install openssl`)."
            raise Missing(why) from None
        if done.returncode:
            raise RuntimeError(f"openssl {command[0]} failed:\n{done.stderr}")


def _write_secret(file: Path, text: str) -> None:
    file.touch(mode=0o600)
    file.write_text(text)


def free_ports(count: int) -> list[int]:
    """Ports of 127.0.0.1 that are free now; held together, so that they differ."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [server.getsockname()[1] for server in sockets]
    for server in sockets:
        server.close()
    return ports


def own_address() -> str:
    """This machine's address on its network, for pods: a real API server takes no loopback address of them."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect(("192.0.2.1", 9))  # nothing is sent: it only asks the routing table
        return str(probe.getsockname()[0])
