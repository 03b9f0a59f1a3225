"""Logins and YAML that few kubeconfigs need, by way of the official `kubernetes` package, which is slow to import.

Install it with `pip install 'greenthread[auth]'`. Nothing here is imported unless a kubeconfig asks for it.
"""

from __future__ import annotations

import importlib
import importlib.util
import logging
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
    except (yaml.YAMLError, RecursionError) as error:
        raise ValueError(" ".join(str(error).split())) from None


class _KubernetesLogin:
    """Credentials kept by the official client's loader, which asks the plugin or provider anew when they expire."""

    def __init__(self, configuration: Any, who: str) -> None:
        self._configuration = configuration
        self._who = who

    def authorization(self) -> str | None:
        try:
            settings = self._configuration.auth_settings()
        except Exception as error:  # the plugin's program, the provider's server, the package: anything may fail
            raise ConfigError(f"{self._who}: no new credentials: {_line(error)}") from None
        # the loader puts the word Bearer into the value; the setting's name differs between versions
        found = (entry.get("value") for entry in settings.values() if entry.get("key") == "authorization")
        return next((str(value) for value in found if value), None)

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
    complaints = _Complaints()
    logging.getLogger().addHandler(complaints)
    try:
        loader(content, config_base_path=str(path.parent.absolute())).load_and_set(configuration)
    except Exception as error:  # as above
        raise ConfigError(f"{who}: the login failed: {_line(error)}") from None
    finally:
        logging.getLogger().removeHandler(complaints)
    found = _KubernetesLogin(configuration, who)
    if not found.authorization() and not found.certificate():
        program = (user.get("exec") or {}).get("command") or "the auth-provider"
        why = _line("; ".join(complaints.said)) if complaints.said else "run it by hand to see why"
        hint = (user.get("exec") or {}).get("installHint") or ""
        raise ConfigError(f"{who}: {program} gave no credentials ({why}). {' '.join(hint.split())}".strip())
    return found


class _Complaints(logging.Handler):
    """The loader only logs what its plugin did wrong; this keeps it for the message."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.said: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.said.append(record.getMessage())


def _absolute(entry: dict[str, Any], folder: Path) -> dict[str, Any]:
    """File names of a kubeconfig are relative to its own folder."""
    files = ("certificate-authority", "client-certificate", "client-key", "tokenFile")
    return {
        key: str((folder / value).absolute()) if key in files and isinstance(value, str) else value
        for key, value in entry.items()
    }


def _line(error: BaseException | str) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
