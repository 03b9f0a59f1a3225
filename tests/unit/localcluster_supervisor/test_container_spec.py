"""A container's command and environment on one machine follow Kubernetes' rules."""

from __future__ import annotations

from pathlib import Path

import pytest

from localcluster.supervisor.container_spec import (
    Place,
    Refused,
    expand,
    port_names,
    recorded_ports,
    references,
    resolve,
    resolve_port,
    volume_directories,
)
from tests.unit.localcluster_supervisor.builders import Object, container, pod, settings

PLACE = Place(ports={"http": 30001, "metrics-v2": 30002}, volumes={"run": Path("/state/run"), "models": Path("/mnt")})
NO_LOOKUP: dict[tuple[str, str], dict[str, str]] = {}


def command_of(spec: Object, lookup: dict[tuple[str, str], dict[str, str]] = NO_LOOKUP, place: Place = PLACE):
    return resolve(pod(spec), spec, settings(), place, {"PATH": "/bin", "LANG": "de"}, lookup)


def env_of(*variables: Object, **fields: object) -> dict[str, str]:
    return command_of(container(env=list(variables), **fields)).env


class TestExpansion:
    @pytest.mark.parametrize(
        ("text", "expanded"),
        [
            ("$(A)/b", "one/b"),
            ("$(A)$(A)", "oneone"),
            ("$$(A)", "$(A)"),
            ("$$$(A)", "$one"),
            ("$(UNKNOWN)", "$(UNKNOWN)"),
            ("$A ${A} $", "$A ${A} $"),
            ("$(A", "$(A"),
            ("a$$b", "a$b"),
        ],
    )
    def test_dollar_parentheses(self, text: str, expanded: str) -> None:
        assert expand(text, {"A": "one"}) == expanded

    def test_in_command_and_arguments(self) -> None:
        spec = container(command=["serve", "$(A)"], args=["--dir=$(A)"], env=[{"name": "A", "value": "one"}])
        assert command_of(spec).argv == ("serve", "one", "--dir=one")

    def test_a_value_sees_the_variables_before_it(self) -> None:
        env = env_of({"name": "B", "value": "$(A)"}, {"name": "A", "value": "1"}, {"name": "C", "value": "$(A)2"})
        assert (env["B"], env["C"]) == ("$(A)", "12")

    def test_the_machines_own_environment_is_not_expanded(self) -> None:
        assert env_of({"name": "A", "value": "$(PATH)"})["A"] == "$(PATH)"


class TestImages:
    def test_entrypoint_serves_a_container_without_command(self) -> None:
        spec = container(args=["--fast"])
        del spec["command"]
        assert command_of(spec).argv == ("python", "-m", "till", "--fast")

    def test_command_replaces_the_entrypoint(self) -> None:
        assert command_of(container(command=["other"])).argv == ("other",)

    def test_environment_is_the_machines_then_the_images_then_the_containers(self) -> None:
        env = env_of({"name": "TILL_MODE", "value": "own"})
        assert env == {"PATH": "/bin", "LANG": "C", "TILL_MODE": "own"}

    def test_unknown_image_without_command_names_the_known(self) -> None:
        spec = container(image="nobody/knows")
        del spec["command"]
        with pytest.raises(Refused, match=r"nobody/knows.*shop/\*") as refused:
            command_of(spec)
        assert refused.value.reason == "ErrImageNeverPull"


class TestOneMachine:
    def test_a_declared_port_variable_gets_the_allocated_number(self) -> None:
        env = env_of({"name": "HTTP_PORT", "value": "8080"}, {"name": "METRICS_V2_PORT", "value": "9090"})
        assert (env["HTTP_PORT"], env["METRICS_V2_PORT"]) == ("30001", "30002")

    def test_a_port_variable_that_is_not_declared_is_not_added(self) -> None:
        assert "HTTP_PORT" not in env_of({"name": "OTHER", "value": "8080"})

    def test_later_values_and_commands_see_the_allocated_number(self) -> None:
        variables = [{"name": "HTTP_PORT", "value": "8080"}, {"name": "URL", "value": "http://localhost:$(HTTP_PORT)"}]
        command = command_of(container(command=["till", "$(HTTP_PORT)"], env=variables))
        assert (command.env["URL"], command.argv[1]) == ("http://localhost:30001", "30001")

    def test_a_mount_path_becomes_the_volumes_directory(self) -> None:
        mounts = [{"name": "run", "mountPath": "/run/till"}, {"name": "models", "mountPath": "/m", "subPath": "hf"}]
        env = env_of(
            {"name": "RUN_DIR", "value": "/run/till"},
            {"name": "HF_HOME", "value": "/m"},
            {"name": "FILE", "value": "$(RUN_DIR)/fifo"},
            {"name": "LONGER", "value": "/run/till2"},
            volumeMounts=mounts,
        )
        assert (env["RUN_DIR"], env["HF_HOME"]) == ("/state/run", "/mnt/hf")
        assert (env["FILE"], env["LONGER"]) == ("/state/run/fifo", "/run/till2")

    def test_a_mount_path_as_working_directory(self) -> None:
        spec = container(workingDir="/run/till", volumeMounts=[{"name": "run", "mountPath": "/run/till"}])
        assert command_of(spec).cwd == "/state/run"

    def test_volumes(self) -> None:
        volumes = [{"name": "run", "emptyDir": {}}, {"name": "models", "hostPath": {"path": "/mnt/models"}}]
        found = volume_directories(pod(volumes=volumes), Path("/pods/1"))
        assert found == {"run": Path("/pods/1/volumes/run"), "models": Path("/mnt/models")}

    def test_other_volumes_are_refused_by_name(self) -> None:
        with pytest.raises(Refused, match="volume keys: secret is not supported"):
            volume_directories(pod(volumes=[{"name": "keys", "secret": {"secretName": "k"}}]), Path("/pods/1"))

    @pytest.mark.parametrize(
        ("port", "number"), [("http", 30001), (8080, 30001), ("8080", 30001), (9999, 9999), ("grpc", None)]
    )
    def test_ports_are_found_by_name_and_by_declared_number(self, port: int | str, number: int | None) -> None:
        spec = pod(container(ports=[{"name": "http", "containerPort": 8080}]))
        assert resolve_port(port, spec, {"http": 30001}) == number

    def test_port_names_come_once_each_from_all_containers(self) -> None:
        ports = [{"name": "http", "containerPort": 1}, {"containerPort": 2}]
        spec = pod(container(ports=ports), container("b", ports=[{"name": "db", "containerPort": 3}, ports[0]]))
        assert port_names(spec) == ["http", "db"]

    @pytest.mark.parametrize("text", ["", "[1]", '{"http": "x"}', "null"])
    def test_unreadable_recorded_ports_are_none(self, text: str) -> None:
        spec = pod()
        spec["metadata"]["annotations"]["greenthread.ai/ports"] = text
        assert recorded_ports(spec) == {}


class TestSources:
    def reference(self, kind: str, name: str, key: str, **more: object) -> Object:
        return {"name": "TOKEN", "valueFrom": {kind: {"name": name, "key": key} | more}}

    @pytest.mark.parametrize(
        ("path", "value"),
        [
            ("metadata.name", "till-0"),
            ("metadata.namespace", "shop"),
            ("metadata.uid", "uid-till-0"),
            ("metadata.labels['app']", "till"),
            ("metadata.annotations['greenthread.ai/gpus']", "0,1"),
            ("metadata.annotations['absent']", ""),
            ("spec.nodeName", "node-a"),
            ("spec.serviceAccountName", "default"),
            ("status.podIP", "127.0.0.1"),
        ],
    )
    def test_downward_api(self, path: str, value: str) -> None:
        assert env_of({"name": "X", "valueFrom": {"fieldRef": {"fieldPath": path}}})["X"] == value

    def test_unknown_field_is_refused(self) -> None:
        with pytest.raises(Refused, match=r"spec\.hostname"):
            env_of({"name": "X", "valueFrom": {"fieldRef": {"fieldPath": "spec.hostname"}}})

    @pytest.mark.parametrize(("field", "kind"), [("secretKeyRef", "Secret"), ("configMapKeyRef", "ConfigMap")])
    def test_secret_and_config_map(self, field: str, kind: str) -> None:
        spec = container(env=[self.reference(field, "hf", "token")])
        assert references(spec) == {(kind, "hf")}
        assert command_of(spec, {(kind, "hf"): {"token": "s3cret"}}).env["TOKEN"] == "s3cret"

    @pytest.mark.parametrize("content", [{}, {("Secret", "hf"): {"other": "x"}}])
    def test_missing_is_refused_unless_optional(self, content: dict[tuple[str, str], dict[str, str]]) -> None:
        with pytest.raises(Refused, match="TOKEN is read from Secret 'hf'") as refused:
            command_of(container(env=[self.reference("secretKeyRef", "hf", "token")]), content)
        assert refused.value.reason == "CreateContainerConfigError"
        optional = container(env=[self.reference("secretKeyRef", "hf", "token", optional=True)])
        assert "TOKEN" not in command_of(optional, content).env

    def test_what_is_not_supported_is_refused_and_not_ignored(self) -> None:
        with pytest.raises(Refused, match="envFrom"):
            command_of(container(envFrom=[{"secretRef": {"name": "x"}}]))
        with pytest.raises(Refused, match="resourceFieldRef"):
            env_of({"name": "X", "valueFrom": {"resourceFieldRef": {"resource": "limits.cpu"}}})
