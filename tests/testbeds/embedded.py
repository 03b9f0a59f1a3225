"""The embedded Kubernetes API, as the program that it is.

with EmbeddedApi() as api:
    api.kubectl("get", "namespaces")
"""

from __future__ import annotations

import base64
import http.client
import json
import select
import shutil
import ssl
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, Self

from tests.testbeds.programs import need


class EmbeddedApi:
    """A running `python -m localcluster.api` in a folder of its own.

    `url`, `token`, `ca_file` and `kubeconfig` say how to reach it; RuntimeError when it does not start.
    """

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="greenthread-embedded-"))
        self.logs = self.folder / "logs"
        self.kubeconfig = self.folder / "kubeconfig"
        self.ca_file = self.folder / "ca.crt"
        self.url = ""
        self.token = ""
        self.port = 0
        self._process: subprocess.Popen[str] | None = None

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        """Starts it and waits until it answers; objects stay over `kill` and `start`, and so does the port."""
        command = [sys.executable, "-m", "localcluster.api", "--state-dir", str(self.folder / "state")]
        command += ["--kubeconfig", str(self.kubeconfig), "--log-dir", str(self.logs), "--port", str(self.port)]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        ready = select.select([self._process.stdout], [], [], 30.0)[0] and self._process.stdout.readline()
        if not ready:
            self._process.kill()
            raise RuntimeError(f"the embedded API did not start:\n{self._process.communicate()[1]}")
        config = json.loads(self.kubeconfig.read_text())
        cluster = config["clusters"][0]["cluster"]
        self.url = cluster["server"]
        self.port = int(self.url.rpartition(":")[2])
        self.token = config["users"][0]["user"]["token"]
        self.ca_file.write_bytes(base64.b64decode(cluster["certificate-authority-data"]))
        self._tls = ssl.create_default_context(cafile=str(self.ca_file))

    def kill(self) -> None:
        """Kills it without warning (SIGKILL) and waits for its end."""
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None

    def stop(self) -> None:
        """Ends it and removes its folder; may be called twice."""
        self.kill()
        shutil.rmtree(self.folder, ignore_errors=True)

    def request(
        self, method: str, path: str, body: Any = None, content_type: str = "application/json"
    ) -> tuple[int, Any]:
        """One request as administrator: status and the answer's JSON, or its text. OSError when out of reach."""
        connection = http.client.HTTPSConnection("127.0.0.1", self.port, context=self._tls, timeout=30)
        try:
            headers = {
                "Authorization": f"Bearer {self.token}",
                "Content-Type": content_type,
                "Accept": "application/json",
            }
            connection.request(method, path, None if body is None else json.dumps(body), headers)
            answer = connection.getresponse()
            text = answer.read()
        finally:
            connection.close()
        is_json = answer.headers.get_content_type() == "application/json"
        return answer.status, json.loads(text) if is_json else text.decode()

    def kubectl(self, *arguments: str, stdin: str | None = None) -> str:
        """Runs kubectl as administrator: its standard output; CalledProcessError with `stderr` when it fails."""
        command = [str(need("kubectl")), "--kubeconfig", str(self.kubeconfig), *arguments]
        return subprocess.run(command, input=stdin, capture_output=True, text=True, check=True, timeout=60).stdout
