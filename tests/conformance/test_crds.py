"""The life of a CRD, and what cannot be one."""

from __future__ import annotations

import itertools
from typing import Any

import pytest

from tests.conformance.client import MERGE_PATCH, Answer, Client
from tests.conformance.conftest import install
from tests.conformance.widgets import CRD_NAME, CRDS, GROUP, crd, widget

_numbers = itertools.count(1)

Object = dict[str, Any]


def schema(**properties: Any) -> Object:
    return {"type": "object", "properties": {"spec": {"type": "object", "properties": properties}}}


def ruled(*rules: Object, **properties: Any) -> Object:
    made = schema(**(properties or {"a": {"type": "string", "maxLength": 10}, "n": {"type": "integer"}}))
    made["properties"]["spec"]["x-kubernetes-validations"] = list(rules)
    return made


def attempt(client: Client, made: Object, **more: Any) -> Answer:
    number = next(_numbers)
    return client.post(CRDS, crd(f"tries{number}", f"Try{number}", made, **more), dryRun="All")


def fields(answer: Answer) -> set[tuple[str, str]]:
    """Kind and place of what is wrong, as seen from the schema."""
    return {(kind, field.partition("openAPIV3Schema")[2] or field) for kind, field, _ in answer.causes()}


def test_its_status(client: Client) -> None:
    obj = client.get(f"{CRDS}/{CRD_NAME}").ok()
    conditions = {c["type"]: (c["status"], c["reason"]) for c in obj["status"]["conditions"]}
    assert conditions["NamesAccepted"] == ("True", "NoConflicts")
    assert conditions["Established"] == ("True", "InitialNamesAccepted")
    assert obj["status"]["storedVersions"] == ["v1"]
    names = {
        "plural": "widgets",
        "singular": "widget",
        "kind": "Widget",
        "listKind": "WidgetList",
        "shortNames": ["wd"],
        "categories": ["things"],
    }
    assert obj["spec"]["names"] == names
    assert obj["status"]["acceptedNames"] == names
    assert obj["spec"]["conversion"] == {"strategy": "None"}


def test_it_comes_changes_and_goes(client: Client, ns: str) -> None:
    made = crd("gadgets", "Gadget", schema(a={"type": "string"}))
    install(client, made)
    where = f"/apis/{GROUP}/v1/namespaces/{ns}/gadgets"
    gadget = {"apiVersion": f"{GROUP}/v1", "kind": "Gadget", "metadata": {"name": "a"}, "spec": {"a": "x", "b": 1}}
    assert client.post(where, gadget).ok()["spec"] == {"a": "x"}
    # without the status subresource every change but the metadata's is a new generation
    changed = client.patch(f"{where}/a", {"spec": {"a": "y"}}, MERGE_PATCH).ok()
    assert changed["metadata"]["generation"] == 2
    assert client.get(f"{where}/a/status").status == 404
    # a wider schema
    more = schema(a={"type": "string", "maxLength": 3}, b={"type": "integer"})
    patch = [{"op": "replace", "path": "/spec/versions/0/schema/openAPIV3Schema", "value": more}]
    client.patch(f"{CRDS}/gadgets.{GROUP}", patch, "application/json-patch+json").ok()
    client.eventually(
        lambda: client.post(where, {**gadget, "metadata": {"name": "b"}}, dryRun="All").ok()["spec"].get("b") == 1,
        "the new schema is in force",
    )
    # what was stored before and is no longer valid may stay as long as it is not touched
    client.patch(
        f"{CRDS}/gadgets.{GROUP}",
        [{**patch[0], "value": schema(a={"type": "string", "maxLength": 0}, b={"type": "integer"})}],
        "application/json-patch+json",
    ).ok()
    client.eventually(
        lambda: client.post(where, {**gadget, "metadata": {"name": "b"}}, dryRun="All").status == 422,
        "the narrow schema is in force",
    )
    client.patch(f"{where}/a", {"spec": {"b": 2}}, MERGE_PATCH).ok()
    client.patch(f"{where}/a", {"spec": {"a": "zz"}}, MERGE_PATCH).refused(422, "Invalid")
    # and away, with its objects
    version = client.get(where).version
    with client.watch(where, resourceVersion=version) as watch:
        client.delete(f"{CRDS}/gadgets.{GROUP}").ok()
        assert watch.names(1)[0][1] == "a"
    client.eventually(lambda: client.get(where).status == 404, "gadgets are no more")
    client.until_gone(f"{CRDS}/gadgets.{GROUP}")
    assert client.get(f"/apis/{GROUP}/v1/widgets").status == 200


def test_a_crd_waits_for_the_finalizers_of_its_objects(client: Client, ns: str) -> None:
    install(client, crd("holders", "Holder", schema(a={"type": "string"})))
    where = f"/apis/{GROUP}/v1/namespaces/{ns}/holders"
    meta = {"name": "a", "finalizers": ["example.com/hold"]}
    client.post(where, {"apiVersion": f"{GROUP}/v1", "kind": "Holder", "metadata": meta}).ok()
    client.delete(f"{CRDS}/holders.{GROUP}").ok()
    client.eventually(lambda: "deletionTimestamp" in client.get(f"{where}/a").ok()["metadata"], "it is deleted")
    assert "deletionTimestamp" in client.get(f"{CRDS}/holders.{GROUP}").ok()["metadata"]
    client.patch(f"{where}/a", {"metadata": {"finalizers": None}}).ok()
    client.until_gone(f"{CRDS}/holders.{GROUP}")


def test_two_versions_of_one_resource(client: Client, ns: str) -> None:
    made = crd("doubles", "Double", schema(a={"type": "string"}))
    made["spec"]["versions"].append({**made["spec"]["versions"][0], "name": "v2", "storage": False})
    install(client, made)
    old, new = (f"/apis/{GROUP}/{version}/namespaces/{ns}/doubles" for version in ("v1", "v2"))
    body = {"apiVersion": f"{GROUP}/v2", "kind": "Double", "metadata": {"name": "a"}, "spec": {"a": "x"}}
    assert client.post(new, body).ok()["apiVersion"] == f"{GROUP}/v2"
    seen = client.get(f"{old}/a").ok()
    assert (seen["apiVersion"], seen["spec"]) == (f"{GROUP}/v1", {"a": "x"})
    changed = client.patch(f"{new}/a", {"spec": {"a": "y"}}).ok()
    assert (changed["apiVersion"], changed["metadata"]["generation"]) == (f"{GROUP}/v2", 2)
    with client.watch(old, resourceVersion=seen["metadata"]["resourceVersion"]) as watch:
        _, obj = watch.next()
        assert (obj["apiVersion"], obj["spec"]["a"]) == (f"{GROUP}/v1", "y")


def test_a_cluster_scoped_resource(client: Client) -> None:
    made = crd("globes", "Globe", schema(a={"type": "string"}))
    made["spec"]["scope"] = "Cluster"
    install(client, made)
    where = f"/apis/{GROUP}/v1/globes"
    body = {"apiVersion": f"{GROUP}/v1", "kind": "Globe", "metadata": {"name": "a"}, "spec": {"a": "x"}}
    assert "namespace" not in client.post(where, body).ok()["metadata"]
    assert client.get(f"{where}/a").status == 200
    assert client.get(f"/apis/{GROUP}/v1/namespaces/default/globes/a").status == 404


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"metadata": {"name": "x.y.z"}}, "metadata.name"),
        ({"spec": {"scope": "Zone"}}, "spec.scope"),
        ({"spec": {"names": {"kind": None}}}, "spec.names.kind"),
        ({"spec": {"names": {"kind": "no_kind"}}}, "spec.names.kind"),
        ({"spec": {"versions": []}}, "spec.versions"),
        ({"spec": {"group": "nodot"}}, "spec.group"),
    ],
)
def test_a_crd_that_is_wrong(client: Client, change: Object, field: str) -> None:
    def merged(target: Any, patch: Any) -> Any:
        if not isinstance(patch, dict):
            return patch
        out = {**target, **{k: merged(target.get(k, {}), v) for k, v in patch.items()}}
        return {k: v for k, v in out.items() if v is not None}

    answer = client.post(CRDS, merged(crd("wrongs", "Wrong", schema()), change), dryRun="All")
    answer.refused(422, "Invalid")
    assert field in {cause[1] for cause in answer.causes()}


@pytest.mark.parametrize(
    ("made", "kind", "field"),
    [
        ({"type": "string"}, "Invalid", ".type"),
        (schema(a={}), "Required", ".properties[spec].properties[a].type"),
        (schema(a={"type": "text"}), "NotSupported", ".properties[spec].properties[a].type"),
        (schema(a={"type": "array"}), "Required", ".properties[spec].properties[a].items"),
        (schema(a={"$ref": "#/x"}), "Forbidden", ".properties[spec].properties[a].$ref"),
        (
            schema(a={"type": "array", "uniqueItems": True, "items": {"type": "string"}}),
            "Forbidden",
            ".properties[spec].properties[a].uniqueItems",
        ),
        (
            schema(
                a={
                    "type": "object",
                    "properties": {"x": {"type": "string"}},
                    "additionalProperties": {"type": "string"},
                }
            ),
            "Forbidden",
            ".properties[spec].properties[a].additionalProperties",
        ),
        (schema(a={"type": "string", "pattern": "("}), "Invalid", ".properties[spec].properties[a].pattern"),
        (
            schema(a={"type": "array", "x-kubernetes-list-type": "map", "items": {"type": "object"}}),
            "Required",
            ".properties[spec].properties[a].x-kubernetes-list-map-keys",
        ),
        (
            schema(
                a={
                    "type": "array",
                    "x-kubernetes-list-type": "map",
                    "x-kubernetes-list-map-keys": ["y"],
                    "items": {"type": "object", "properties": {"x": {"type": "string"}}},
                }
            ),
            "Invalid",
            ".properties[spec].properties[a].x-kubernetes-list-map-keys",
        ),
        (
            schema(
                a={
                    "type": "array",
                    "x-kubernetes-list-type": "map",
                    "x-kubernetes-list-map-keys": ["x"],
                    "items": {"type": "object", "properties": {"x": {"type": "string"}}},
                }
            ),
            "Required",
            ".properties[spec].properties[a].items.properties[x].default",
        ),
        (
            schema(
                a={
                    "type": "array",
                    "x-kubernetes-list-type": "map",
                    "x-kubernetes-list-map-keys": ["x"],
                    "items": {"type": "string"},
                }
            ),
            "Invalid",
            ".properties[spec].properties[a].items.type",
        ),
        (schema(a={"type": "integer", "default": "x"}), "TypeInvalid", ".properties[spec].properties[a].default"),
        (
            schema(a={"type": "integer", "minimum": 3, "default": 1}),
            "Invalid",
            ".properties[spec].properties[a].default",
        ),
        (
            schema(a={"type": "object", "default": {"zz": 1}, "properties": {"x": {"type": "string"}}}),
            "Invalid",
            ".properties[spec].properties[a].default",
        ),
        (
            {
                "type": "object",
                "properties": {"metadata": {"type": "object", "properties": {"labels": {"type": "object"}}}},
            },
            "Forbidden",
            ".properties[metadata]",
        ),
    ],
    ids=lambda value: str(value)[-60:],
)
def test_a_schema_that_cannot_be_used(client: Client, made: Object, kind: str, field: str) -> None:
    answer = attempt(client, made)
    answer.refused(422, "Invalid")
    assert (f"FieldValue{kind}", field) in fields(answer)


RULE = ".properties[spec].x-kubernetes-validations[0]"


@pytest.mark.parametrize(
    ("rule", "kind", "field"),
    [
        ({"rule": ""}, "Required", ".rule"),
        ({"rule": "self.a.size() >"}, "Invalid", ".rule"),
        ({"rule": "foo(self.a)"}, "Invalid", ".rule"),
        ({"rule": "self.a.foo()"}, "Invalid", ".rule"),
        ({"rule": "other.a == 'x'"}, "Invalid", ".rule"),
        ({"rule": "math.greatest(1, 2) == 2"}, "Invalid", ".rule"),
        ({"rule": "size(self.a)"}, "Invalid", ".rule"),
        ({"rule": "true", "message": "a\nb"}, "Invalid", ".message"),
        ({"rule": "true", "message": " "}, "Invalid", ".message"),
        ({"rule": "true &&\ntrue"}, "Required", ".message"),
        ({"rule": "true", "reason": "Because"}, "NotSupported", ".reason"),
        ({"rule": "true", "fieldPath": ".zz"}, "Invalid", ".fieldPath"),
        ({"rule": "true", "fieldPath": "a"}, "Invalid", ".fieldPath"),
        ({"rule": "true", "messageExpression": "1"}, "Invalid", ".messageExpression"),
        ({"rule": "true", "messageExpression": "foo(1)"}, "Invalid", ".messageExpression"),
        ({"rule": "true", "optionalOldSelf": True}, "Invalid", ".optionalOldSelf"),
    ],
    ids=lambda value: str(value)[:60],
)
def test_a_rule_that_cannot_be_used(client: Client, rule: Object, kind: str, field: str) -> None:
    answer = attempt(client, ruled(rule))
    answer.refused(422, "Invalid")
    assert (f"FieldValue{kind}", RULE + field) in fields(answer)


def test_the_old_value_of_what_cannot_be_followed(client: Client) -> None:
    item = {"type": "string", "maxLength": 5, "x-kubernetes-validations": [{"rule": "self == oldSelf"}]}
    answer = attempt(client, schema(a={"type": "array", "maxItems": 5, "items": item}))
    answer.refused(422, "Invalid")
    ((kind, field, message),) = answer.causes()
    assert kind == "FieldValueInvalid"
    assert field.endswith(".properties[a].items.x-kubernetes-validations[0].rule")
    assert (
        'Invalid value: "self == oldSelf": oldSelf cannot be used on the uncorrelatable portion of the schema'
        in message
    )


@pytest.mark.parametrize(
    ("more", "field"),
    [
        ({"additionalPrinterColumns": [{"name": "a", "type": "string", "jsonPath": "spec.a"}]}, "JSONPath"),
        ({"additionalPrinterColumns": [{"name": "a", "type": "text", "jsonPath": ".spec.a"}]}, "type"),
        ({"selectableFields": [{"jsonPath": ".spec.zz"}]}, "jsonPath"),
    ],
)
def test_columns_and_selectable_fields_must_exist(client: Client, more: Object, field: str) -> None:
    answer = attempt(client, schema(a={"type": "string"}), **more)
    answer.refused(422, "Invalid")
    assert {cause[1].rpartition(".")[2] for cause in answer.causes()} == {field}


#: Rules that hold for a Widget whose spec is VALUES: what CEL and Kubernetes' libraries can do.
VALUES: Object = {
    "s": "a-b-c", "n": 7, "l": ["x", "y"], "f": 0.5, "q": "1.5Gi", "d": "1h30m", "t": "2026-01-02T03:04:05Z",
    "m": {"k": "v"}, "namespace": "ns", "with-dash": 1, "o": {"p": {"q": 1}}, "i": 5, "ints": [3, 1, 2],
}  # fmt: skip
PROPERTIES: Object = {
    "s": {"type": "string", "maxLength": 50},
    "n": {"type": "integer"},
    "l": {"type": "array", "maxItems": 5, "items": {"type": "string", "maxLength": 50}},
    "f": {"type": "number"},
    "q": {"type": "string", "maxLength": 50},
    "d": {"type": "string", "maxLength": 50},
    "t": {"type": "string", "format": "date-time"},
    "m": {"type": "object", "maxProperties": 5, "additionalProperties": {"type": "string", "maxLength": 50}},
    "namespace": {"type": "string", "maxLength": 50},
    "with-dash": {"type": "integer"},
    "o": {"type": "object", "properties": {"p": {"type": "object", "properties": {"q": {"type": "integer"}}}}},
    "i": {"x-kubernetes-int-or-string": True},
    "ints": {"type": "array", "maxItems": 5, "items": {"type": "integer"}},
}
HOLDS = [
    "self.s.split('-') == ['a', 'b', 'c']",
    "self.s.replace('-', '') == 'abc' && self.s.startsWith('a') && self.s.endsWith('c') && self.s.contains('-b-')",
    "self.s.indexOf('b') == 2 && self.s.lastIndexOf('-') == 3",
    "self.s.charAt(0) == 'a' && self.s.substring(2) == 'b-c' && self.s.substring(0, 1) == 'a'",
    "self.s.upperAscii() == 'A-B-C' && 'AB'.lowerAscii() == 'ab' && ' a '.trim() == 'a'",
    "self.l.join('+') == 'x+y'",
    "'%s %d %.1f %x %b'.format([self.s, self.n, self.f, 255, 5]) == 'a-b-c 7 0.5 ff 101'",
    "self.s.find('[a-z]-') == 'a-' && self.s.findAll('[a-z]') == ['a', 'b', 'c']",
    "self.s.findAll('[a-z]', 2) == ['a', 'b']",
    "self.s.matches('^[a-z-]+$')",
    "self.l.size() == 2 && self.l.exists(x, x == 'y') && self.l.all(x, x != 'z') && self.l.exists_one(x, x == 'x')",
    "self.l.map(x, x + '!') == ['x!', 'y!'] && self.l.filter(x, x == 'x') == ['x']",
    "self.l.isSorted() && !self.ints.isSorted()",
    "self.ints.sum() == 6 && self.ints.min() == 1 && self.ints.max() == 3",
    "self.l.indexOf('y') == 1 && self.l.lastIndexOf('z') == -1",
    "[1.5, 0.5].sum() == 2.0 && [duration('1s'), duration('2s')].sum() == duration('3s')",
    "self.l.min() == 'x' && [duration('1s'), duration('2s')].max() == duration('2s')",
    "quantity(self.q).isGreaterThan(quantity('1Gi')) && quantity(self.q).compareTo(quantity('1536Mi')) == 0",
    "isQuantity(self.q) && !isQuantity('1.5GB') && sign(quantity('-1')) == -1",
    "quantity('1k').asInteger() == 1000 && quantity('1k').isInteger() && quantity('500m').asApproximateFloat() == 0.5",
    "quantity('1Gi').add(quantity('1Gi')).compareTo(quantity('2Gi')) == 0 && quantity('5').sub(2).asInteger() == 3",
    "quantity('1Gi') == quantity('1024Mi')",
    "duration(self.d) == duration('90m') && duration(self.d).getHours() == 1 && duration(self.d) > duration('1h')",
    "self.t.getFullYear() == 2026 && self.t < timestamp('2027-01-01T00:00:00Z') && self.t - duration('5s') < self.t",
    "self.m.k == 'v' && self.m['k'] == 'v' && 'k' in self.m && self.m.all(key, self.m[key] == 'v')",
    "self.__namespace__ == 'ns' && self.with__dash__dash == 1",
    "has(self.o.p) && self.o.p.q == 1 && self.?o.?p.?q.orValue(0) == 1",
    "type(self.i) == int && self.i == 5",
    "isURL('https://a.example/x?q=1') && url('https://a.example:8443/x').getPort() == '8443'",
    "url('https://a.example:8443/x/y?q=1&q=2').getHostname() == 'a.example'",
    "url('https://a/b').getScheme() == 'https' && url('https://a/b').getEscapedPath() == '/b'",
    "isIP('10.0.0.1') && !isIP('10.0.0') && ip('10.0.0.1').family() == 4 && isCIDR('10.0.0.0/8')",
    "self.n / 2 == 3 && self.n % 2 == 1 && double(self.n) / 2.0 == 3.5 && int('4') == 4 && string(self.n) == '7'",
    "self.f < 1.0 && self.n in [1, 7] && !(self.n in [2])",
    "(self.n > 5 ? 'big' : 'small') == 'big'",
    "[1, 2] + [3] == [1, 2, 3] && {'a': 1}.a == 1",
]


@pytest.fixture(scope="session")
def rule_crds(client: Client) -> None:
    """A CRD for each rule, once as it is and once negated."""
    for number, rule in enumerate(HOLDS):
        both = [{"rule": rule, "fieldPath": ".s"}, {"rule": f"!({rule})", "fieldPath": ".n"}]
        made = ruled(*both, **PROPERTIES)
        client.post(CRDS, crd(f"holds{number}", f"Holds{number}", made)).ok()


@pytest.mark.parametrize("number", range(len(HOLDS)), ids=lambda n: HOLDS[n][:50])
def test_what_rules_can_say(client: Client, ns: str, rule_crds: None, number: int) -> None:
    where = f"/apis/{GROUP}/v1/namespaces/{ns}/holds{number}"
    client.eventually(lambda: client.get(where).status == 200, f"{where} is served")
    body = {**widget("a"), "kind": f"Holds{number}", "spec": VALUES}
    answer = client.post(where, body)
    answer.refused(422, "Invalid")
    assert answer.causes() == {("FieldValueInvalid", "spec.n", f"Invalid value: failed rule: !({HOLDS[number]})")}
