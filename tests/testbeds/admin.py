"""What every Kubernetes API that tests start has in common: a way in, as administrator."""

from __future__ import annotations

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

    def __init__(self, url: str, token: str, kubeconfig: Path, ca_file: Path | None = None) -> None:
        self.url = url
        self.token = token
        self.kubeconfig = kubeconfig
        self.ca_file = ca_file
        self._tls = ssl.create_default_context(cafile=str(ca_file)) if ca_file else None

    def request(
        self, method: str, path: str, body: Any = None, content_type: str = "application/json"
    ) -> tuple[int, Any]:
        """One request: status and the answer's JSON, or its text. OSError when out of reach."""
        address = urlsplit(self.url)
        assert address.hostname
        connection = (
            http.client.HTTPSConnection(address.hostname, address.port, context=self._tls, timeout=30)
            if self._tls
            else http.client.HTTPConnection(address.hostname, address.port, timeout=30)
        )
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
        """Whether it answers 200 to a GET."""
        try:
            return self.request("GET", path)[0] == 200
        except (OSError, http.client.HTTPException):
            return False
