#!/usr/bin/env python3
"""Writes the pages of docs/ that are made from sources: recipes, objects, metrics, commands. `make docs` runs it.

Each page has one source: the recipes' own comments, the CRDs, the registries of the parts, the tables of verbs.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import click
import yaml
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import Metric
from prometheus_client.metrics import MetricWrapperBase
from prometheus_client.parser import text_string_to_metric_families

from controller.metrics import AgentMetrics, ApiRequests, ControllerMetrics
from gateway.metrics import MAX_MODELS
from gateway.metrics import Metrics as GatewayMetrics
from kubectl_greenthread import recipes
from kubectl_greenthread.arguments import Option, paragraphs, usage_line
from kubectl_greenthread.main import EXIT_CODES
from kubectl_greenthread.options import GLOBAL
from kubectl_greenthread.verbs import VERBS
from sidecar.metrics import Metrics as SidecarMetrics

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
NOTE = "<!-- Made by scripts/reference.py: change {source}, then `make docs`. -->\n"

TASKS = {
    "chat": "Chat",
    "reasoning": "Reasoning",
    "tools": "Mixtures of experts that call tools",
    "vision": "Vision and language",
    "embeddings": "Embeddings",
    "rerank": "Reranking",
    "speech-to-text": "Speech to text",
    "text-to-speech": "Text to speech",
}
REFERENCE_CARD = "A100 or H100, 80 GB"


def table(header: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """A Markdown table."""
    head = list(header)
    lines = [head, ["---"] * len(head), *([cell.replace("|", "\\|") for cell in row] for row in rows)]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


# recipes


def recipes_page() -> str:
    """docs/recipes.md."""
    found = recipes.all_recipes()
    parts = [
        NOTE.format(source="the comments in manifests/recipes"),
        RECIPES_HEAD.format(count=len(found)),
        "## Which card holds what\n\n" + RECIPES_CARDS,
        table(
            ["recipe", "GPUs", "weights", *(name for name, _ in recipes.CARDS)],
            (
                [
                    f"[{r.name}](#{r.name})",
                    str(r.gpus),
                    f"{r.weights:g} GiB",
                    *(_on(r, size) for _, size in recipes.CARDS),
                ]
                for r in found
            ),
        ),
    ]
    for task, title in TASKS.items():
        parts.append(f"## {title}\n")
        parts += [_recipe(recipe, found) for recipe in found if recipe.task == task]
    return "\n".join(parts)


def _on(recipe: recipes.Recipe, size: float) -> str:
    """GiB that it takes of a card, or the share with which it starts there, or a dash."""
    if recipe.starts(size):
        return f"{recipe.takes(size):.1f} GiB"
    share = recipe.smallest_share(size)
    return "–" if share is None else f"({share:.2f})"


def _recipe(recipe: recipes.Recipe, others: list[recipes.Recipe]) -> str:
    size = dict(recipes.CARDS)[REFERENCE_CARD]
    text = f"### {recipe.name}\n\n{recipe.about}\n\n"
    text += f"`{recipe.spec['modelName']}`, {recipe.weights:g} GiB of weights, "
    text += f"{recipe.gpus} GPUs, " if recipe.gpus > 1 else ""
    text += f"at least {recipe.needs:.1f} GiB of each GPU." if recipe.gpus > 1 else f"at least {recipe.needs:.1f} GiB."
    if recipe.gated:
        text += f" Gated: {recipe.gated}."
    text += f" {_beside(recipe, others, size)}\n" if recipe.starts(size) else "\n"
    return text


def _beside(recipe: recipes.Recipe, others: list[recipes.Recipe], size: float) -> str:
    """What is awake beside it on the reference card, each as it is written."""
    left = size - recipe.takes(size)
    fit = [other for other in others if other is not recipe and other.starts(size) and other.takes(size) <= left]
    where = f"As it is written it leaves {left:.1f} GiB of an 80 GB card"
    if not fit:
        return f"{where}: nothing else of this page is awake beside it."
    names = ", ".join(other.name for other in sorted(fit, key=lambda other: -other.takes(size))[:6])
    more = f", and {len(fit) - 6} smaller ones" if len(fit) > 6 else ""
    return f"{where}: room for one of {names}{more}."


RECIPES_HEAD = """# Recipes

{count} Models that are ready to apply. They come with the program and lie in `manifests/recipes`:

```
kubectl greenthread recipes                       # all of them
kubectl greenthread recipes qwen-3-8b             # one, to look at or to change
kubectl greenthread recipes qwen-3-8b --apply     # create it in greenthread-system
```

Their flags are checked against vLLM 0.32's own argument parser, and the manifests against the API server. Sizes are
estimates from the number of parameters, their type and the longest context that the recipe allows; what a Model
really takes is measured when it first boots and stands in its status (`VRAM/GPU`).

- **One GPU, many models.** Asleep, a Model reserves no GPU memory, so any number of recipes share a GPU. What this
  page calls *beside* is who can be awake at the same time.
- **A recipe takes its share.** vLLM takes `gpuMemoryUtilization` of the card and fills what the weights leave with KV
  cache; CUDA takes about {context} GiB more. Lower the share to have more Models awake at once, down to what the
  tables say.
- **`--max-model-len`** decides how much cache one request may need, and so how little memory is enough.
- **`--enforce-eager`** is in all recipes of vLLM: without CUDA graphs an engine boots sooner and leaves less on the
  GPU while it sleeps. Take it out where tokens per second matter more.
- **Gated** models need a Hugging Face token, see [Operate](operate.md#gated-models).
- **Speech out.** vLLM does not serve `/v1/audio/speech`. The recipe for it runs vLLM-Omni as a command; it is not
  checked by a parser.
""".replace("{context}", f"{recipes.CONTEXT:g}")
RECIPES_CARDS = """\
GiB of each GPU that a recipe takes while it is awake, as it is written. In brackets: it starts on that card only with
this `gpuMemoryUtilization` or a larger one. A dash: not on that card, or not with this `--max-model-len`.
"""


# objects


def objects_page() -> str:
    """docs/reference/objects.md."""
    parts = [NOTE.format(source="manifests/crds"), OBJECTS_HEAD]
    for name in ("models", "gpus"):
        crd = yaml.safe_load((ROOT / "manifests" / "crds" / f"{name}.greenthread.ai.yaml").read_text(encoding="utf-8"))
        (version,) = crd["spec"]["versions"]
        schema = version["schema"]["openAPIV3Schema"]
        kind = crd["spec"]["names"]["kind"]
        parts.append(f"## {kind}\n\n{schema['description']}\n")
        columns = [column["name"] for column in version["additionalPrinterColumns"] if not column.get("priority")]
        wide = [column["name"] for column in version["additionalPrinterColumns"] if column.get("priority")]
        parts.append(f"`kubectl get {name}` prints {', '.join(columns)}; with `-o wide` also {', '.join(wide)}.\n")
        for section in ("spec", "status"):
            if section in schema["properties"]:
                rows = list(_fields(schema["properties"][section], ""))
                parts.append(f"### {kind} {section}\n\n" + table(["field", "type", "default", ""], rows))
        messages = dict.fromkeys(_messages(schema))
        parts.append(f"### What is refused of a {kind}\n\n" + "".join(f"- {message}\n" for message in messages))
    return "\n".join(parts)


OBJECTS_HEAD = """# Objects

Group `greenthread.ai`, version `v1alpha1`, both namespaced. The API server checks them; a manifest that is wrong is
refused with what to write instead. Durations are written like `500ms`, `30s`, `1h30m`, sizes like Kubernetes
quantities (`10Gi`).
"""


def _fields(schema: dict[str, Any], prefix: str) -> Iterator[list[str]]:
    for name, field in (schema.get("properties") or {}).items():
        path = f"{prefix}{name}"
        required = " (required)" if name in schema.get("required", ()) else ""
        default = field.get("default")
        shown = "" if default is None or default in ({}, []) else f"`{yaml.safe_dump(default).splitlines()[0]}`"
        text = " ".join(str(field.get("description", "")).split())
        if "enum" in field:
            text += f" One of {', '.join(f'`{value}`' for value in field['enum'] if value)}."
        yield [f"`{path}`{required}", _type(field), shown, text]
        items = field.get("items") or {}
        yield from _fields(field, f"{path}.")
        yield from _fields(items, f"{path}[].")


def _type(field: dict[str, Any]) -> str:
    if field.get("x-kubernetes-int-or-string"):
        return "quantity"
    kind = str(field.get("type", ""))
    if kind == "array":
        return f"list of {_plural(field['items'])}"
    if kind == "object" and "additionalProperties" in field:
        return f"map of {_plural(field['additionalProperties'])}"
    return "date-time" if field.get("format") == "date-time" else kind


def _plural(field: dict[str, Any]) -> str:
    return {"quantity": "quantities"}.get(_type(field), f"{_type(field)}s")


def _messages(schema: Any) -> Iterator[str]:
    if isinstance(schema, dict):
        for rule in schema.get("x-kubernetes-validations") or ():
            if "message" in rule:
                yield (
                    f"`{rule['fieldPath'].lstrip('.')}`: {rule['message']}" if "fieldPath" in rule else rule["message"]
                )
        for key, value in schema.items():
            if key != "x-kubernetes-validations":
                yield from _messages(value)
    elif isinstance(schema, list):
        for value in schema:
            yield from _messages(value)


# metrics

Family = tuple[str, str, str, str]
"""Name, type, labels, and what it says."""
_ONE_REQUEST = SimpleNamespace(answers={("get", "models", 200): 1})


def metrics_page() -> str:
    """docs/reference/metrics.md."""
    parts = [NOTE.format(source="the metrics.py of a part"), METRICS_HEAD, how_many_series()]
    for title, text, families in (
        ("Sidecar", "One in each model pod, on its port `http` (8080).", sidecar_families()),
        (
            "Controller",
            "Port `metrics` (9090). Only the replica that leads has Models to count.",
            controller_families(),
        ),
        ("Agent", "One on each GPU node, port `metrics` (9090).", agent_families()),
        (
            "Gateway",
            GATEWAY_NOTE,
            gateway_families(),
        ),
    ):
        rows = ([f"`{name}`", kind, labels, text] for name, kind, labels, text in families)
        parts.append(f"## {title}\n\n{text}\n\n" + table(["metric", "type", "labels", ""], rows))
    return "\n".join(parts)


METRICS_HEAD = """# Metrics

In Prometheus' text format. Counters end in `_total`; a histogram has `_bucket`, `_sum` and `_count`. The engines' own
metrics (`vllm:…`) are handed on by the sidecar. [Operate](../operate.md#monitoring) says how they are scraped, [the
runbooks](../runbooks.md) what the alerts on them mean.
"""


GATEWAY_NOTE = """On a cluster port `metrics` (9090), which only Prometheus reaches; on one machine the gateway's own
port. `model` is `namespace/name` of a Model that exists.

Tokens are what an answer's `usage` tells, in OpenAI's and Anthropic's APIs: it is read at the end of an answer (the
last 4 KiB, of a stream the last pieces) that is a 2xx without `Content-Encoding`. An answer without one counts nothing:
audio, OpenAI's streams unless the client asked by `stream_options.include_usage`, and what a client left before its
end. The engines' own `vllm:prompt_tokens_total` and `vllm:generation_tokens_total` count all."""


def how_many_series() -> str:
    """Counted, of registries as the parts make them."""
    sidecar, two_gpus = (_series(SidecarMetrics(range(gpus)).registry) for gpus in (1, 2))
    agent = AgentMetrics()
    without = _series(agent.registry)
    agent.faults.labels("a-0")
    agent.foreign.labels("a-0")
    per_gpu = _series(agent.registry) - without
    controller = ControllerMetrics()
    controller.follow(lambda: {})
    gateway = GatewayMetrics()
    before = gateway.scrape().body
    gateway.observe(cast(Any, SimpleNamespace(tag=("default", "m"), status=200, first=None)), 1.0)
    per_model = _samples(gateway.scrape().body) - _samples(before) - 1
    return SERIES.format(
        sidecar=sidecar,
        further=two_gpus - sidecar,
        agent=without,
        per_gpu=per_gpu,
        controller=_series(controller.registry),
        models=MAX_MODELS,
        per_model=per_model,
    )


SERIES = """**How many series there are** is bounded, and no label is a client's word.

| of | series |
| --- | --- |
| a sidecar | {sidecar} with one GPU, {further} more for each further one |
| a gateway | {per_model} for each Model that was asked, and one for each status code its requests ended with |
| an agent | {agent}, and {per_gpu} for each GPU of its node |
| a controller | {controller} |

An agent and a controller also have one for each method, kind and status code of their requests to the Kubernetes API,
some dozens. A gateway keeps {models:,} Models apart; further ones count together as `other`.

So 1,000 Models on 256 GPUs of 32 nodes, with two gateways whose requests end with three codes, are about 115,000.
Engines have some hundreds each of their own.
"""


def _series(registry: CollectorRegistry) -> int:
    return _samples(generate_latest(registry))


def _samples(exposition: object) -> int:
    assert isinstance(exposition, bytes)
    return sum(line[:1] not in (b"", b"#") for line in exposition.splitlines())


def sidecar_families() -> list[Family]:
    """Of a sidecar with one GPU."""
    return _families(SidecarMetrics([0]).registry)


def controller_families() -> list[Family]:
    """As `python -m controller` registers them."""
    metrics = ControllerMetrics()
    metrics.follow(lambda: {})
    metrics.registry.register(ApiRequests("gthread_controller_api_requests", cast(Any, _ONE_REQUEST)))
    return _families(metrics.registry)


def agent_families() -> list[Family]:
    """As `python -m controller.agent` registers them."""
    metrics = AgentMetrics()
    metrics.registry.register(ApiRequests("gthread_agent_api_requests", cast(Any, _ONE_REQUEST)))
    return _families(metrics.registry)


def gateway_families() -> list[Family]:
    """After one request."""
    metrics = GatewayMetrics()
    metrics.follow(lambda: 0, lambda: 0, lambda: 0)
    metrics.observe(cast(Any, SimpleNamespace(tag=("default", "m"), status=200, first=None)), 1.0)
    scraped = metrics.scrape().body
    assert isinstance(scraped, bytes)
    return [_family(family, ()) for family in text_string_to_metric_families(scraped.decode())]


def _families(registry: CollectorRegistry) -> list[Family]:
    labels: dict[str, tuple[str, ...]] = {}
    for collector in registry._collector_to_names:  # a metric nobody has used yet has no sample that shows its labels
        if isinstance(collector, MetricWrapperBase):
            labels[collector._name] = tuple(collector._labelnames)
    return [_family(family, labels.get(family.name, ())) for family in registry.collect()]


def _family(family: Metric, labels: tuple[str, ...]) -> Family:
    seen = dict.fromkeys([*labels, *(label for sample in family.samples for label in sample.labels if label != "le")])
    name = f"{family.name}_total" if family.type == "counter" else family.name
    values = {label: sorted({sample.labels.get(label, "") for sample in family.samples} - {""}) for label in seen}
    enumerated = {"state", "status", "role", "kind", "phase"}  # of which all values are known beforehand
    shown = [
        f"`{label}`" + (f" ({', '.join(values[label])})" if label in enumerated and values[label] else "")
        for label in seen
    ]
    return name, family.type, ", ".join(shown), family.documentation


# commands


def commands_page() -> str:
    """docs/reference/commands.md."""
    parts = [NOTE.format(source="kubectl_greenthread/verbs.py"), COMMANDS_HEAD]
    parts.append(table(["verb", ""], ([f"[`{name}`](#{name})", verb.summary] for name, verb in VERBS.items())))
    parts.append("## Options of every verb\n\n" + _options(GLOBAL))
    parts.append(
        "## Exit codes\n\n" + "".join(f"- {_code(code)}\n" for code in EXIT_CODES[12:].rstrip(".").split(", "))
    )
    for name, verb in VERBS.items():
        parts.append(f"## {name}\n")
        if verb.options is None:
            parts.append(_click(name, verb.load()))
            continue
        parts.append(f"```\nkubectl greenthread {usage_line(name, verb)}\n```\n")
        parts += [f"{text}\n" for text in paragraphs(verb.load().__doc__ or "", 100)]
        if verb.examples:
            parts.append(
                "```\n"
                + "".join(f"kubectl greenthread {line.strip()}\n" for line in _commands(verb.examples))
                + "```\n"
            )
        own = [option for option in verb.options if option not in GLOBAL]
        if own:
            parts.append(_options(own))
    return "\n".join(parts)


COMMANDS_HEAD = """# Commands

`greenthread VERB` and `kubectl greenthread VERB` are the same. `-h` after any verb prints what is here.
"""


def _commands(examples: str) -> list[str]:
    """Examples are written without the program; one that begins with another program stays as it is, after a pipe."""
    lines = [line.strip() for line in examples.strip().splitlines()]
    return [line for line in lines if "|" not in line.split("'")[0]]


def _code(text: str) -> str:
    number, _, meaning = text.strip().partition(" ")
    return f"`{number}` {meaning}"


def _options(options: Iterable[Option]) -> str:
    rows = []
    for option in options:
        default = (
            f" Default: {option.default}."
            if isinstance(option.default, str) and option.default not in ("", "none")
            else ""
        )
        rows.append(
            [f"`{', '.join(option.flags)}{f' {option.metavar}' if option.metavar else ''}`", option.help + default]
        )
    return table(["option", ""], rows)


def _click(name: str, command: click.Command) -> str:
    context = click.Context(command, info_name=f"kubectl greenthread {name}", max_content_width=100, terminal_width=100)
    return f"```\n{command.get_help(context)}\n```\n"


def man_page() -> str:
    """greenthread(1) in roff, from the same tables."""
    lines = [
        ".TH GREENTHREAD 1",
        ".SH NAME",
        "greenthread, kubectl-greenthread \\- language models that share GPUs",
    ]
    lines += [".SH SYNOPSIS", ".B kubectl greenthread", "VERB [ARGUMENTS] [OPTIONS]", ".SH VERBS"]
    for name, verb in VERBS.items():
        lines += [".TP", f".B {_roff(usage_line(name, verb) if verb.options else name)}", _roff(verb.summary)]
    lines.append(".SH OPTIONS OF EVERY VERB")
    for option in GLOBAL:
        lines += [".TP", f".B {_roff(', '.join(option.flags))} {option.metavar}".rstrip(), _roff(option.help)]
    return "\n".join([*lines, ".SH EXIT STATUS", _roff(EXIT_CODES.removeprefix("Exit codes: ").capitalize()), ""])


def _roff(text: str) -> str:
    return text.replace("\\", "\\\\").replace("-", "\\-")


PAGES: dict[str, Callable[[], str]] = {
    "recipes.md": recipes_page,
    "reference/objects.md": objects_page,
    "reference/metrics.md": metrics_page,
    "reference/commands.md": commands_page,
    "greenthread.1": man_page,
}


def main() -> int:
    """Writes all pages."""
    for name, page in PAGES.items():
        (DOCS / name).parent.mkdir(exist_ok=True)
        (DOCS / name).write_text(page(), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    sys.exit(main())
