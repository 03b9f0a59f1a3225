"""Logins and YAML that few kubeconfigs need, by way of the official `kubernetes` package, which is slow to import.

Install it with `pip install 'greenthread[auth]'`. Nothing here is imported unless a kubeconfig asks for it.
"""

from __future__ import annotations

import importlib
import importlib.util
from pathlib import Path
from typing import Any

from greenthread.kube.errors import ConfigError


def has_yaml() -> bool:
    """Whether PyYAML is installed (it comes with the `kubernetes` package)."""
    return importlib.util.find_spec("yaml") is not None


def load_yaml(text: str) -> Any:
    """One YAML document; ValueError if it is none."""
    yaml = importlib.import_module("yaml")
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(" ".join(str(error).split())) from None


class _KubernetesLogin:
    """Credentials kept by the official client's loader, which asks the plugin or provider anew when they expire."""

    def __init__(self, configuration: Any, who: str) -> None:
        self._configuration = configuration
        self._who = who

    def authorization(self) -> str | None:
        try:
            token = self._configuration.get_api_key_with_prefix("authorization")
        except Exception as error:  # the plugin's program, the provider's server, the package: anything may fail
            raise ConfigError(f"{self._who}: no new credentials: {_line(error)}") from None
        return str(token) if token else None

    def certificate(self) -> tuple[str, str] | None:
        cert, key = self._configuration.cert_file, self._configuration.key_file
        return (str(cert), str(key)) if cert and key else None


def login(
    cluster_name: str, cluster: dict[str, Any], cluster_path: Path, user_name: str, user: dict[str, Any], path: Path
) -> _KubernetesLogin:
    """Logs in as a user whose entry has `exec` or `auth-provider`; runs the plugin. ConfigError with what to do."""
    who = f"user {user_name} in {path}"
    if importlib.util.find_spec("kubernetes") is None:
        kind = "an exec plugin" if user.get("exec") else "an auth-provider"
        raise ConfigError(f"{who} logs in with {kind}: install what that needs: pip install 'greenthread[auth]'")
    import kubernetes.client
    import kubernetes.config.kube_config

    content = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "only",
        "clusters": [{"name": cluster_name, "cluster": _absolute(cluster, cluster_path.parent)}],
        "users": [{"name": user_name, "user": _absolute(user, path.parent)}],
        "contexts": [{"name": "only", "context": {"cluster": cluster_name, "user": user_name}}],
    }
    loader: Any = kubernetes.config.kube_config.KubeConfigLoader
    configuration: Any = kubernetes.client.Configuration()
    try:
        loader(content, config_base_path=str(path.parent.absolute())).load_and_set(configuration)
    except Exception as error:  # as above
        raise ConfigError(f"{who}: the login failed: {_line(error)}") from None
    found = _KubernetesLogin(configuration, who)
    if not found.authorization() and not found.certificate():
        # the loader only logs what its plugin did wrong
        program = (user.get("exec") or {}).get("command") or "its auth-provider"
        hint = (user.get("exec") or {}).get("installHint") or ""
        raise ConfigError(
            f"{who}: {program} gave no credentials; run it by hand to see why. {' '.join(hint.split())}".strip()
        )
    return found


def _absolute(entry: dict[str, Any], folder: Path) -> dict[str, Any]:
    """File names of a kubeconfig are relative to its own folder."""
    files = ("certificate-authority", "client-certificate", "client-key", "tokenFile")
    return {
        key: str((folder / value).absolute()) if key in files and isinstance(value, str) else value
        for key, value in entry.items()
    }


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
