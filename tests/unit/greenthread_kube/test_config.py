"""load_config finds the cluster that kubectl would use."""

from __future__ import annotations

import base64
import importlib.util
import json
import os
import stat
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest

from greenthread.kube import config, rare_auth
from greenthread.kube.config import load_config
from greenthread.kube.errors import ConfigError

KUBECTL = """\
apiVersion: v1
clusters:
- cluster:
    certificate-authority-data: {pem}
    server: https://127.0.0.1:6443
  name: kind-dev
- cluster:
    insecure-skip-tls-verify: true
    server: https://10.0.0.1/k8s/
    tls-server-name: api.example
    proxy-url: http://proxy.example:3128
  name: far
contexts:
- context:
    cluster: kind-dev
    namespace: models
    user: kind-dev
  name: kind-dev
- context:
    cluster: far
    user: tokens
  name: far
current-context: kind-dev
kind: Config
preferences: {{}}
users:
- name: kind-dev
  user:
    client-certificate-data: {pem}
    client-key-data: {pem}
- name: tokens
  user:
    token: "abc"
- name: files
  user:
    tokenFile: secret/token
- name: basic
  user:
    username: me
    password: "12"
"""


@pytest.fixture
def write(tmp_path: Path) -> Any:
    def to(text: str, name: str = "config") -> str:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return str(path)

    return to


@pytest.fixture
def kubectls(write: Any) -> str:
    return write(KUBECTL.format(pem=base64.b64encode(b"PEM").decode()))


def test_the_current_context_is_used(kubectls: str) -> None:
    found = load_config(kubeconfig=kubectls)
    assert (found.server, found.namespace, found.context) == ("https://127.0.0.1:6443", "models", "kind-dev")
    assert found.ca == found.client_certificate == found.client_key == b"PEM"
    assert found.authorization() is None
    assert not found.insecure


def test_options_choose_context_cluster_and_user(kubectls: str, tmp_path: Path) -> None:
    far = load_config(kubeconfig=kubectls, context="far")
    assert (far.server, far.namespace, far.insecure) == ("https://10.0.0.1/k8s", "default", True)
    assert (far.tls_server_name, far.proxy()) == ("api.example", "http://proxy.example:3128")
    assert far.authorization() == "Bearer abc"
    assert load_config(kubeconfig=kubectls, user="basic").authorization() == "Basic bWU6MTI="
    assert load_config(kubeconfig=kubectls, cluster="far").server == "https://10.0.0.1/k8s"
    (tmp_path / "secret").mkdir()
    (tmp_path / "secret" / "token").write_text("t1\n")
    assert load_config(kubeconfig=kubectls, user="files").authorization() == "Bearer t1"


def test_json_is_read_as_well(write: Any) -> None:
    content = {
        "clusters": [{"name": "a", "cluster": {"server": "http://127.0.0.1:1"}}],
        "contexts": [{"name": "a", "context": {"cluster": "a"}}],
        "current-context": "a",
    }
    assert load_config(kubeconfig=write(json.dumps(content))).server == "http://127.0.0.1:1"


def one(name: str, server: str, user: str = "", current: str = "", extra: str = "") -> str:
    return (
        textwrap.dedent(f"""\
        current-context: "{current}"
        clusters: [{{"name": "{name}", "cluster": {{"server": "{server}"}}}}]
        contexts: [{{"name": "{name}", "context": {{"cluster": "{name}", "user": "{user}"}}}}]
        """)
        + extra
    )


def test_of_several_files_the_first_wins_name_by_name(write: Any) -> None:
    users = "users:\n- name: u\n  user:\n    client-certificate: own.crt\n    client-key: own.key\n"
    write("CRT", "two/own.crt")
    write("KEY", "two/own.key")
    first = write(one("a", "http://one"), "one/config")
    second = write(one("a", "http://two", current="b") + "users: []\n", "empty")
    third = write(one("b", "http://three", user="u", current="a", extra=users), "two/config")
    environ = {"KUBECONFIG": os.pathsep.join([first, "/does/not/exist", second, third])}
    found = load_config(environ=environ)
    assert (found.context, found.server) == ("b", "http://three")
    # file names are relative to the file that holds them
    assert (found.client_certificate, found.client_key) == (b"CRT", b"KEY")
    assert load_config(context="a", environ=environ).server == "http://one"


def test_the_home_folder_is_the_last_place(tmp_path: Path, write: Any) -> None:
    write(one("a", "http://home", current="a"), ".kube/config")
    assert load_config(environ={"HOME": str(tmp_path)}).server == "http://home"


def test_a_pod_uses_its_service_account_and_reads_its_token_anew(
    tmp_path: Path, write: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(config, "SERVICE_ACCOUNT", tmp_path)
    for name, text in {"token": "t1", "namespace": "prod", "ca.crt": "CA"}.items():
        write(text, name)
    environ = {"HOME": str(tmp_path), "KUBERNETES_SERVICE_HOST": "fd00::1", "KUBERNETES_SERVICE_PORT": "443"}
    found = config.in_cluster(environ, tmp_path)
    assert load_config(environ=environ).server == found.server == "https://[fd00::1]:443"
    assert (found.namespace, found.ca, found.authorization()) == ("prod", b"CA", "Bearer t1")
    write("t2", "token")
    assert found.authorization() == "Bearer t2"


def test_a_token_that_cannot_be_sent_is_refused(tmp_path: Path) -> None:
    token = tmp_path / "token"
    for content in (b"a\nb", b"a\xff", "é".encode()):
        token.write_bytes(content)
        with pytest.raises(ConfigError, match=r"the token of here has characters"):
            config.ClusterConfig("https://x", source="here", token_file=str(token)).authorization()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"context": "nope"}, r"no context nope in .*contexts: far, kind-dev"),
        ({"cluster": "nope"}, r"no cluster nope in .*clusters: far, kind-dev"),
        ({"user": "nope"}, r"no user nope in .*users: basic, files, kind-dev, tokens"),
        ({"user": "files"}, r"cannot read the token"),
    ],
)
def test_a_wrong_name_is_answered_with_the_right_ones(kubectls: str, options: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config(kubeconfig=kubectls, **options).authorization()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (one("a", "http://x"), r"no current context: pass --context.*contexts: a"),
        (one("a", "http://x", current="b"), r"current context b is not in"),
        (one("a", "127.0.0.1:8080", current="a"), r"must start with https://"),
        (one("a", "https://:80", current="a"), r"server is no address"),
        (one("a", "https://x:99999", current="a"), r"server is no address"),
        (one("a", "https://x y", current="a"), r"server is no address"),
        ("a: " + "[" * 5000, r"is not valid"),
        ("clusters: 3", r"clusters must be a list"),
        ("clusters:\n- cluster: 3\n  name: a\n", r"cluster a must be a mapping"),
        ("- a", r"is not a mapping"),
        ("{", r"is not valid JSON"),
        ("a: [b", r"is not valid YAML"),
        (one("a", "http://x", "u", "a", "users:\n- name: u\n  user:\n    token: 123\n"), r"token must be text"),
        (one("a", "http://x", "u", "a", "users:\n- name: u\n  user:\n    client-key-data: '*'\n"), r"not base64"),
        (one("a", "http://x", "u", "a", "users:\n- name: u\n  user:\n    client-key-data: YQ==\n"), r"belong together"),
    ],
)
def test_a_file_that_cannot_be_used_is_named_with_the_reason(write: Any, text: str, message: str) -> None:
    path = write(text)
    with pytest.raises(ConfigError, match=message) as caught:
        load_config(kubeconfig=path)
    assert path in str(caught.value)
    assert "\n" not in str(caught.value)


def test_no_configuration_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no cluster is configured.*greenthread up"):
        load_config(environ={"HOME": str(tmp_path)})
    with pytest.raises(ConfigError, match="cannot read the kubeconfig"):
        load_config(kubeconfig=tmp_path / "nope")


GKE = """\
apiVersion: v1
clusters: []
users:
- name: gke_project_zone_name
  user:
    exec:
      apiVersion: client.authentication.k8s.io/v1beta1
      args: null
      command: gke-gcloud-auth-plugin
      env: null
      installHint: Install gke-gcloud-auth-plugin for use with kubectl by following
        https://cloud.google.com/kubernetes-engine/docs/how-to/cluster-access-for-kubectl#install_plugin
      interactiveMode: IfAvailable
      provideClusterInfo: true
- name: aks
  user:
    exec:
      args:
      - get-token
      - --login
      - devicecode
      installHint: |2

        kubelogin is not installed: see

          https://aka.ms/aks/kubelogin
      provideClusterInfo: false
"""


EKS_AND_MINIKUBE = """\
apiVersion: v1
clusters:
- cluster:
    certificate-authority: /home/me/.minikube/ca.crt
    extensions:
    - extension:
        last-update: Fri, 20 Nov 2026 14:03:22 UTC
        provider: minikube.sigs.k8s.io
        version: v1.37.0
      name: cluster_info
    server: https://192.168.49.2:8443
  name: minikube
contexts: []
current-context: minikube
kind: Config
preferences: {}
users:
- name: arn:aws:eks:us-west-2:123456789012:cluster/my
  user:
    exec:
      apiVersion: client.authentication.k8s.io/v1beta1
      args:
      - --region
      - us-west-2
      - eks
      - get-token
      - --cluster-name
      - my
      command: aws
      env:
      - name: AWS_PROFILE
        value: team a
"""


def test_what_minikube_and_eks_write_is_read_without_a_library(write: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rare_auth, "has_yaml", lambda: pytest.fail("a library was asked"))
    found = config.read_kubeconfig(Path(write(EKS_AND_MINIKUBE)))
    extension = found["clusters"][0]["cluster"]["extensions"][0]
    assert extension["extension"]["last-update"] == "Fri, 20 Nov 2026 14:03:22 UTC"
    assert extension["name"] == "cluster_info"
    user = found["users"][0]
    assert user["name"] == "arn:aws:eks:us-west-2:123456789012:cluster/my"
    assert user["user"]["exec"]["args"][0] == "--region"
    assert user["user"]["exec"]["env"] == [{"name": "AWS_PROFILE", "value": "team a"}]


def test_what_clouds_write_is_read_without_a_library(write: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rare_auth, "has_yaml", lambda: pytest.fail("a library was asked"))
    users = config.read_kubeconfig(Path(write(GKE)))["users"]
    gke, aks = (user["user"]["exec"]["installHint"] for user in users)
    assert gke.startswith("Install gke-gcloud-auth-plugin for use with kubectl by following https://cloud.google.com/")
    assert aks == "\nkubelogin is not installed: see\n\n  https://aka.ms/aks/kubelogin\n"
    assert users[1]["user"]["exec"]["args"] == ["get-token", "--login", "devicecode"]


def test_rarer_yaml_goes_through_pyyaml_or_says_what_to_install(write: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    path = Path(write("a: &x [b, c]\nd: *x\n"))
    assert config.read_kubeconfig(path) == {"a": ["b", "c"], "d": ["b", "c"]}
    monkeypatch.setattr(rare_auth, "has_yaml", lambda: False)
    with pytest.raises(ConfigError, match=r"line 1.*pip install 'greenthread\[auth\]'"):
        config.read_kubeconfig(path)


def exec_user(command: str) -> str:
    return f"""\
users:
- name: u
  user:
    exec:
      apiVersion: client.authentication.k8s.io/v1
      command: {command}
      installHint: See the wiki.
      interactiveMode: Never
"""


def test_an_exec_plugin_gives_the_token(write: Any) -> None:
    answer = {"apiVersion": "client.authentication.k8s.io/v1", "kind": "ExecCredential", "status": {"token": "abc"}}
    program = write(f"#!/bin/sh\ncat <<'E'\n{json.dumps(answer)}\nE\n", "login.sh")
    os.chmod(program, stat.S_IRWXU)
    path = write(one("a", "https://127.0.0.1:1", "u", "a", exec_user("./login.sh")))
    assert load_config(kubeconfig=path).authorization() == "Bearer abc"


def test_an_exec_plugin_that_is_missing_or_fails_is_said(write: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(one("a", "https://127.0.0.1:1", "u", "a", exec_user("/does/not/exist")))
    with pytest.raises(
        ConfigError, match=r"user u in .*/does/not/exist gave no credentials \(.*No such file.*See the wiki"
    ):
        load_config(kubeconfig=path)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"exec plugin: install what that needs: pip install 'greenthread\[auth\]'"):
        load_config(kubeconfig=path)


def test_the_environments_proxy_is_obeyed_but_not_for_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "http://proxy:1")
    monkeypatch.setenv("no_proxy", "inside.example")
    assert config.ClusterConfig("https://api.example").proxy() == "http://proxy:1"
    assert config.ClusterConfig("https://api.inside.example").proxy() == ""
    assert config.ClusterConfig("https://127.0.0.1:6443").proxy() == ""
    assert config.ClusterConfig("http://api.example").proxy() == ""
    monkeypatch.setenv("HTTPS_PROXY", "proxy:3128")
    assert config.ClusterConfig("https://api.example").proxy() == "http://proxy:3128"
    with pytest.raises(ConfigError, match="only http:// proxies"):
        config.ClusterConfig("https://api.example", proxy_url="socks5://proxy").proxy()


def test_reading_a_kubeconfig_imports_no_library(kubectls: str) -> None:
    code = (
        "import sys; from greenthread.kube.config import load_config; import greenthread.kube.blocking; "
        f"load_config(kubeconfig={kubectls!r}); print(*sorted(m for m in sys.modules if '.' not in m))"
    )
    found = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.split()
    assert not set(found) & {"yaml", "kubernetes", "httpx", "asyncio", "requests"}
