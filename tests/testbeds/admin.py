"""What every Kubernetes API that tests start has in common: a way in, as administrator."""

from __future__ import annotations

import base64
import http.client
import json
import ssl
import subprocess
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from tests.testbeds.programs import need


class Admin:
    """An API server as its administrator sees it: by plain requests and by kubectl."""

    def __init__(self, kubeconfig: Path, ca_file: Path) -> None:
        """`kubeconfig` says how to reach it, with a token; a CA that it holds as data is written to `ca_file`."""
        self.kubeconfig = kubeconfig
        self.ca_file = ca_file
        self.url = ""
        self.token = ""
        self._tls: ssl.SSLContext | None = None

    def load(self) -> None:
        """Reads the kubeconfig, which must be there now."""
        config = json.loads(self.kubeconfig.read_text())
        cluster = config["clusters"][0]["cluster"]
        self.url = cluster["server"]
        self.token = config["users"][0]["user"]["token"]
        if data := cluster.get("certificate-authority-data"):
            self.ca_file.write_bytes(base64.b64decode(data))
        self._tls = ssl.create_default_context(cafile=str(self.ca_file))

    def request(
        self,
        method: str,
        path: str,
        body: Any = None,
        content_type: str = "application/json",
        timeout: float = 30.0,
    ) -> tuple[int, Any]:
        """One request: status and the answer's JSON, or its text. OSError when out of reach; `timeout` in seconds."""
        connection = http.client.HTTPSConnection(urlsplit(self.url).netloc, context=self._tls, timeout=timeout)
        try:
            headers = {"Authorization": f"Bearer {self.token}", "Accept": "application/json"}
            data = None if body is None else json.dumps(body)
            connection.request(method, path, data, {**headers, "Content-Type": content_type})
            answer = connection.getresponse()
            text = answer.read()
        finally:
            connection.close()
        is_json = answer.headers.get_content_type() == "application/json"
        return answer.status, json.loads(text) if is_json else text.decode()

    def kubectl(self, *arguments: str, stdin: str | None = None) -> str:
        """Runs kubectl: its standard output; CalledProcessError with `stderr` when it fails."""
        command = [str(need("kubectl")), "--kubeconfig", str(self.kubeconfig), *arguments]
        return subprocess.run(command, input=stdin, capture_output=True, text=True, check=True, timeout=60).stdout

    def answers(self, path: str) -> bool:
        """Whether it answers 200 to a GET within 2 s."""
        try:
            return self.request("GET", path, timeout=2.0)[0] == 200
        except (OSError, http.client.HTTPException):
            return False
