"""Which API server to speak to, and as whom: kubeconfig files, or the account of the pod we run in."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping

from greenthread.kube.errors import ConfigError
from greenthread.names import GROUP
from greenthread.values import dataclass, field

TYPE_CHECKING = False
if TYPE_CHECKING:
    import ssl
    from typing import Any, Protocol

    from greenthread.kube.simple_yaml import Unsupported
else:
    Protocol = object

SERVICE_ACCOUNT = "/var/run/secrets/kubernetes.io/serviceaccount"
MAX_FILE = 8 * 1024 * 1024
"""Largest kubeconfig, certificate or token file in bytes."""


class Login(Protocol):
    """Credentials that a program hands out (exec plugins, OIDC); may run that program, so it may block."""

    def authorization(self) -> str | None: ...
    def certificate(self) -> tuple[str, str] | None: ...


@dataclass(frozen=True)
class ClusterConfig:
    """How to reach one API server. Certificates are PEM bytes; `token_file` is read anew for every request."""

    server: str
    namespace: str = "default"
    context: str = ""
    cluster: str = ""
    user: str = ""
    source: str = ""
    ca: bytes | None = None
    client_certificate: bytes | None = None
    client_key: bytes | None = field(default=None, repr=False)
    insecure: bool = False
    tls_server_name: str = ""
    proxy_url: str = ""
    token: str = field(default="", repr=False)
    token_file: str = ""
    basic: tuple[str, str] | None = field(default=None, repr=False)
    login: Login | None = field(default=None, repr=False)
    extension: Mapping[str, Any] = field(default_factory=dict)
    """What the kubeconfig says under the extension `greenthread.ai`, of the context before that of the cluster."""

    @property
    def where(self) -> str:
        """Where these credentials come from, for messages: `user admin of context dev in /home/me/.kube/config`."""
        if not self.context:
            return self.source
        return f"user {self.user or 'none'} of context {self.context} in {self.source}"

    def authorization(self) -> str | None:
        """The value of the Authorization header, or None (anonymous, or a client certificate)."""
        token = self.token
        if self.token_file:
            token = _read(self.token_file, "the token").decode("ascii", "replace").strip()
        if token:
            if not (token.isascii() and token.isprintable()) or " " in token:
                raise ConfigError(f"the token of {self.where} has characters that no token has: log in again")
            return f"Bearer {token}"
        if self.basic:
            import base64

            return "Basic " + base64.b64encode(":".join(self.basic).encode()).decode()
        return self.login.authorization() if self.login else None

    def proxy(self) -> str:
        """The proxy to go through, or `""`: the kubeconfig's, else the environment's; never for a loopback address."""
        found = self.proxy_url or self._environments_proxy()
        if found and "://" not in found:
            found = f"http://{found}"
        if found and not found.startswith("http://"):
            raise ConfigError(f"proxy {found}: only http:// proxies are supported")
        return found

    def _environments_proxy(self) -> str:
        names = ("HTTPS_PROXY", "https_proxy") if self.server.startswith("https:") else ("HTTP_PROXY", "http_proxy")
        found = next((os.environ[name] for name in names if os.environ.get(name)), "")
        if not found:
            return ""
        from urllib.parse import urlsplit
        from urllib.request import proxy_bypass

        host = urlsplit(self.server).hostname or ""
        local = host == "localhost" or host.startswith("127.") or host == "::1"
        return "" if local or proxy_bypass(host) else found

    def ssl_context(self) -> ssl.SSLContext:
        """TLS settings for this server; raises ConfigError for certificates that cannot be used."""
        import ssl

        if self.ca is None:
            context = ssl.create_default_context()
        else:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            try:
                context.load_verify_locations(cadata=self.ca.decode("ascii"))
            except (ssl.SSLError, ValueError) as error:
                raise ConfigError(f"certificate-authority of {self.where}: not PEM certificates ({error})") from None
        # private authorities (kubeadm's and k3s', say) do not all follow the strictest profile, and kubectl takes them
        context.verify_flags &= ~ssl.VERIFY_X509_STRICT
        # an intermediate certificate may be all that the kubeconfig trusts
        context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
        if self.insecure:
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        login = self.login.certificate() if self.login and not self.client_certificate else None
        try:
            if self.client_certificate and self.client_key:
                _load_pair(context, self.client_certificate, self.client_key)
            elif login:
                context.load_cert_chain(*login)
        except (ssl.SSLError, OSError) as error:
            raise ConfigError(f"client certificate of {self.where}: cannot be used ({error})") from None
        return context


def _load_pair(context: ssl.SSLContext, certificate: bytes, key: bytes) -> None:
    """Gives a context a certificate and its key, by files, which is the only way ssl takes them."""
    if hasattr(os, "memfd_create"):  # they never touch a disk, and `tempfile` need not be imported
        files = [os.memfd_create(name, os.MFD_CLOEXEC) for name in ("certificate", "key")]
        try:
            for file, content in zip(files, (certificate, key), strict=True):
                _write(file, content)
            context.load_cert_chain(*(f"/proc/self/fd/{file}" for file in files))
        finally:
            for file in files:
                os.close(file)
        return
    import tempfile

    with tempfile.TemporaryDirectory(prefix="greenthread-") as folder:
        paths = [os.path.join(folder, name) for name in ("certificate.pem", "key.pem")]
        for path, content in zip(paths, (certificate, key), strict=True):
            file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            try:
                _write(file, content)
            finally:
                os.close(file)
        context.load_cert_chain(*paths)


def _write(file: int, content: bytes) -> None:
    while content:
        content = content[os.write(file, content) :]


def load_config(
    kubeconfig: str | os.PathLike[str] | None = None,
    context: str | None = None,
    cluster: str | None = None,
    user: str | None = None,
    *,
    environ: Mapping[str, str] = os.environ,
) -> ClusterConfig:
    """The cluster that kubectl would use with the same options.

    In order: the file `kubeconfig`; the files of $KUBECONFIG, merged; ~/.kube/config; the service account of the pod
    we run in. Raises ConfigError with what to do.
    """
    paths, must_exist = _paths(kubeconfig, environ)
    merged = _Merged()
    for path in paths:
        if must_exist or os.path.exists(path):
            merged.add(path, read_kubeconfig(path))
    if merged.empty and not (context or cluster or user):
        if "KUBERNETES_SERVICE_HOST" in environ and os.path.exists(os.path.join(SERVICE_ACCOUNT, "token")):
            return in_cluster(environ, SERVICE_ACCOUNT)
        looked = ", ".join(str(path) for path in paths)
        raise ConfigError(
            f"no cluster is configured (looked in {looked}): set KUBECONFIG or pass --kubeconfig, "
            "or run `greenthread up` for a cluster on this machine"
        )
    return merged.resolve(context, cluster, user)


def _paths(kubeconfig: str | os.PathLike[str] | None, environ: Mapping[str, str]) -> tuple[list[str], bool]:
    """The kubeconfig files, and whether they must exist."""
    if kubeconfig:
        return [os.fspath(kubeconfig)], True
    if environ.get("KUBECONFIG"):
        return [part for part in environ["KUBECONFIG"].split(os.pathsep) if part], False
    return [os.path.join(environ.get("HOME") or os.path.expanduser("~"), ".kube", "config")], False


def names_in_kubeconfig(kind: str, kubeconfig: str | None = None, environ: Mapping[str, str] = os.environ) -> list[str]:
    """Names of the `contexts`, `clusters` or `users` that options may name. Raises ConfigError."""
    merged = _Merged()
    for path in _paths(kubeconfig, environ)[0]:
        if os.path.exists(path):
            merged.add(path, read_kubeconfig(path))
    return sorted(merged.named(kind))


def in_cluster(
    environ: Mapping[str, str] = os.environ, folder: str | os.PathLike[str] = SERVICE_ACCOUNT
) -> ClusterConfig:
    """The service account of the pod we run in; its token is read anew for each request, because it rotates."""
    host, port = environ["KUBERNETES_SERVICE_HOST"], environ.get("KUBERNETES_SERVICE_PORT", "443")
    namespace = os.path.join(folder, "namespace")
    return ClusterConfig(
        server=f"https://[{host}]:{port}" if ":" in host else f"https://{host}:{port}",
        namespace=_read(namespace, "the namespace").decode().strip() if os.path.exists(namespace) else "default",
        source=f"the service account in {folder}",
        ca=_read(os.path.join(folder, "ca.crt"), "the cluster's certificate authority"),
        token_file=os.path.join(folder, "token"),
    )


def read_kubeconfig(path: str | os.PathLike[str]) -> dict[str, Any]:
    """One kubeconfig file, JSON or YAML, as a mapping (an empty file is an empty mapping)."""
    text = _read(path, "the kubeconfig").decode("utf-8", "replace")
    try:
        value = json.loads(text) if text.lstrip().startswith("{") else _read_yaml(path, text)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"kubeconfig {path} is not valid JSON: {error}") from None
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise ConfigError(f"kubeconfig {path} is not a mapping with clusters, users and contexts")
    return value


def _read_yaml(path: str | os.PathLike[str], text: str) -> Any:
    from greenthread.kube import simple_yaml

    try:
        return simple_yaml.load(text)
    except simple_yaml.Unsupported as error:
        return _read_with_library(path, text, error)


def _read_with_library(path: str | os.PathLike[str], text: str, why: Unsupported) -> Any:
    from greenthread.kube import rare_auth

    if not rare_auth.has_yaml():
        raise ConfigError(
            f"kubeconfig {path}, {why}: if this is good YAML, install a full YAML reader: "
            "pip install 'greenthread[auth]'"
        )
    try:
        return rare_auth.load_yaml(text)
    except ValueError as error:
        raise ConfigError(f"kubeconfig {path} is not valid YAML: {error}") from None


def _read(path: str | os.PathLike[str], what: str) -> bytes:
    try:
        with open(path, "rb") as file:
            content = file.read(MAX_FILE + 1)
    except OSError as error:
        raise ConfigError(f"cannot read {what}, {path}: {error.strerror}") from None
    if len(content) > MAX_FILE:
        raise ConfigError(f"{what}, {path}, is larger than {MAX_FILE} bytes")
    return content


class _Merged:
    """Several kubeconfig files as one: the first that names something wins."""

    def __init__(self) -> None:
        self.empty = True
        self._current = ""
        # name → (entry, the file it is in)
        self._clusters: dict[str, tuple[dict[str, Any], str]] = {}
        self._users: dict[str, tuple[dict[str, Any], str]] = {}
        self._contexts: dict[str, tuple[dict[str, Any], str]] = {}
        self._paths: list[str] = []

    def add(self, path: str, content: dict[str, Any]) -> None:
        self._paths.append(path)
        self._current = self._current or _text(content, "current-context", path)
        for plural, singular, into in (
            ("clusters", "cluster", self._clusters),
            ("users", "user", self._users),
            ("contexts", "context", self._contexts),
        ):
            entries = content.get(plural) or []
            if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
                raise ConfigError(f"kubeconfig {path}: {plural} must be a list of mappings")
            for entry in entries:
                body = entry.get(singular) or {}
                if not isinstance(body, dict):
                    raise ConfigError(f"kubeconfig {path}: {singular} {entry.get('name')} must be a mapping")
                into.setdefault(_text(entry, "name", path), (body, path))
                self.empty = False

    def named(self, kind: str) -> Mapping[str, object]:
        """The entries of `contexts`, `clusters` or `users`, by name."""
        return {"contexts": self._contexts, "clusters": self._clusters, "users": self._users}[kind]

    def resolve(self, context: str | None, cluster: str | None, user: str | None) -> ClusterConfig:
        files = ", ".join(str(path) for path in self._paths) or "no file"
        name = context or self._current
        entry: dict[str, Any] = {}
        path = self._paths[0] if self._paths else "."
        if name and name in self._contexts:
            entry, path = self._contexts[name]
        elif context:
            raise ConfigError(f"there is no context {context} in {files}; {_choices('contexts', self._contexts)}")
        elif name and not cluster:
            raise ConfigError(f"the current context {name} is not in {files}; {_choices('contexts', self._contexts)}")
        elif not cluster:
            raise ConfigError(
                f"{files} has no current context: pass --context, or run `kubectl config use-context NAME`; "
                + _choices("contexts", self._contexts)
            )
        cluster_name = cluster or _text(entry, "cluster", path)
        if cluster_name not in self._clusters:
            raise ConfigError(f"there is no cluster {cluster_name or '(unnamed)'} in {files}; "
                              + _choices("clusters", self._clusters))  # fmt: skip
        user_name = user or _text(entry, "user", path)
        if user_name and user_name not in self._users:
            raise ConfigError(f"there is no user {user_name} in {files}; {_choices('users', self._users)}")
        there = self._clusters[cluster_name]
        who = self._users[user_name] if user_name else ({}, path)
        extension = _extension(there[0]) | _extension(entry)
        return _build(name, cluster_name, user_name, _text(entry, "namespace", path), there, who, extension)


def _build(
    context: str,
    cluster_name: str,
    user_name: str,
    namespace: str,
    there: tuple[dict[str, Any], str],
    who: tuple[dict[str, Any], str],
    extension: Mapping[str, Any],
) -> ClusterConfig:
    cluster, cluster_path = there
    user, user_path = who
    server = _text(cluster, "server", cluster_path).rstrip("/")
    if not server.startswith(("http://", "https://")):
        raise ConfigError(f"cluster {cluster_name} in {cluster_path}: server must start with https:// (is: {server!r})")
    if not _is_address(server):
        raise ConfigError(f"cluster {cluster_name} in {cluster_path}: server is no address: {server!r}")
    token_file = _text(user, "tokenFile", user_path)
    name, password = _text(user, "username", user_path), _text(user, "password", user_path)
    certificate = _material(user, "client-certificate", user_path)
    key = _material(user, "client-key", user_path)
    if (certificate is None) != (key is None):
        raise ConfigError(f"user {user_name} in {user_path}: client-certificate and client-key belong together")
    token = _text(user, "token", user_path)
    login = None
    if not (token or token_file) and (user.get("exec") or user.get("auth-provider")):
        from pathlib import Path

        from greenthread.kube import rare_auth

        login = rare_auth.login(cluster_name, cluster, Path(cluster_path), user_name, user, Path(user_path))
    return ClusterConfig(
        server=server,
        namespace=namespace or "default",
        context=context,
        cluster=cluster_name,
        user=user_name,
        source=str(user_path),
        ca=_material(cluster, "certificate-authority", cluster_path),
        client_certificate=certificate,
        client_key=key,
        insecure=cluster.get("insecure-skip-tls-verify") is True,
        tls_server_name=_text(cluster, "tls-server-name", cluster_path),
        proxy_url=_text(cluster, "proxy-url", cluster_path),
        token=token,
        token_file=os.path.join(os.path.dirname(user_path), token_file) if token_file else "",
        basic=(name, password) if name else None,
        login=login,
        extension=extension,
    )


def _extension(entry: dict[str, Any]) -> dict[str, Any]:
    """Of a cluster or context: the content of our extension, or nothing."""
    extensions = entry.get("extensions")
    for each in extensions if isinstance(extensions, list) else ():
        if isinstance(each, dict) and each.get("name") == GROUP and isinstance(each.get("extension"), dict):
            return dict(each["extension"])
    return {}


def _is_address(server: str) -> bool:
    from greenthread.http1 import split_address

    try:
        split_address(server)
    except ValueError:
        return False
    return True


def _text(entry: dict[str, Any], key: str, path: str) -> str:
    value = entry.get(key)
    if value is None:
        return ""
    if not isinstance(value, str):
        raise ConfigError(f"kubeconfig {path}: {key} must be text, not {value!r}; put it in quotes")
    return value


def _material(entry: dict[str, Any], key: str, path: str) -> bytes | None:
    """PEM bytes from `<key>-data` (base64) or the file `<key>`, whose path is relative to the kubeconfig's folder."""
    if data := _text(entry, f"{key}-data", path):
        from binascii import Error, a2b_base64

        try:
            return a2b_base64("".join(data.split()), strict_mode=True)
        except Error:
            raise ConfigError(f"kubeconfig {path}: {key}-data is not base64") from None
    name = _text(entry, key, path)
    return _read(os.path.join(os.path.dirname(path), name), key) if name else None


def _choices(what: str, names: Mapping[str, object]) -> str:
    if not names:
        return f"it has no {what}"
    shown = sorted(names)[:10]
    return f"{what}: {', '.join(shown)}{', …' if len(names) > len(shown) else ''}"
