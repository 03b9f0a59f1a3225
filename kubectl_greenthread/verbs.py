"""Every verb with its arguments and options, as tables: parsing, help and completion read them without running code."""

from __future__ import annotations

from kubectl_greenthread.arguments import Argument, Option, Verb
from kubectl_greenthread.options import (
    ACT_OUTPUT,
    ALL_NAMESPACES,
    DATA_OUTPUT,
    DRY_RUN,
    GLOBAL,
    NO_HEADERS,
    READ_OUTPUT,
    SELECTION,
    WAIT,
    WATCH,
    YES,
    number,
    output_option,
    seconds,
    whole,
)

MODELS = Argument("names", "MODEL...", 1, None)
SOME_MODELS = Argument("names", "MODEL...", 0, None)
MODEL = Argument("name", "MODEL")

COLUMNS = ("name", "namespace", "state", "for", "gpu", "vram", "in-flight", "queue", "req/s", "last-wake")
"""What `top --sort-by` takes; numbers and times are shown largest first."""
REASONS = ("Woke", "Booted", "Waiting", "Preempting", "Slept", "GaveWay", "Preempted", "WakeFailed", "BootFailed",
           "EngineDied")  # fmt: skip
"""Events that sidecars tell; the controller has reasons of its own."""

URL = Option("--url", "URL", "The gateway's address, instead of looking for it (also: $GREENTHREAD_URL).", default="")
PROMETHEUS = Option(
    "--prometheus", "URL", "Prometheus' address, or none, instead of looking for it (also: $GREENTHREAD_PROMETHEUS).",
    default="",
)  # fmt: skip


def _sort_by_path(example: str) -> Option:
    return Option("--sort-by", "PATH", f"Order, by a field: {example}.", default="")


def _acting(*more: Option) -> tuple[Option, ...]:
    """The options of a verb that acts on Models and can be waited for."""
    return (*more, *WAIT, DRY_RUN, ACT_OUTPUT, *GLOBAL)


VERBS = {
    "top": Verb(
        "kubectl_greenthread.top:top", "Who is on the GPUs, who waits, and why.", SOME_MODELS,
        (
            output_option("json", "yaml", "wide", "name", "jsonpath"), WATCH,
            Option("--sort-by", "COLUMN", f"Order of the models: {', '.join(COLUMNS)}.", default="", choices=COLUMNS),
            NO_HEADERS, ALL_NAMESPACES, *SELECTION, PROMETHEUS, *GLOBAL,
        ),
        """
        top -A
        top -w --sort-by queue
        top -o jsonpath='{range .models[?(@.state=="pending")]}{.name}: {.why}{"\\n"}{end}'
        """,
    ),
    "status": Verb(
        "kubectl_greenthread.status:status", "All that is known of one model.", MODEL,
        (DATA_OUTPUT, NO_HEADERS, *GLOBAL),
    ),
    "explain": Verb(
        "kubectl_greenthread.explain:explain", "Why wakes waited, and what stands in the way now.", MODEL,
        (
            output_option("json", "yaml", "jsonpath"),
            Option("--last", "N", "How many wakes to explain; 3 if not given.", default=3, convert=whole), *GLOBAL,
        ),
    ),
    "models": Verb(
        "kubectl_greenthread.models:models", "List models.", SOME_MODELS,
        (
            READ_OUTPUT, WATCH, _sort_by_path(".status.servingMemoryPerGPU"), NO_HEADERS, ALL_NAMESPACES, *SELECTION,
            *GLOBAL,
        ),
        """
        models -A -o wide
        models -l team=nlp --sort-by .metadata.creationTimestamp
        models -o custom-columns=NAME:.metadata.name,PHASE:.status.phase
        """,
    ),
    "gpus": Verb(
        "kubectl_greenthread.gpus:gpus", "List GPUs, who is on them and who waits.",
        Argument("names", "GPU...", 0, None, complete="gpus"),
        (
            READ_OUTPUT, WATCH, _sort_by_path(".status.availableMemoryBytes"), NO_HEADERS,
            Option("-A --all-namespaces", help="Does nothing: GPUs are everybody's."), *SELECTION, *GLOBAL,
        ),
    ),
    "events": Verb(
        "kubectl_greenthread.events:events", "What happened to models.", SOME_MODELS,
        (
            output_option("json", "yaml", "name", "jsonpath", "custom-columns"), WATCH,
            Option("--reason", "REASON,...", f"Only these: {', '.join(REASONS)}.", name="reasons", default="",
                   complete="reasons"),
            Option("--warnings", help="Only what went wrong."), NO_HEADERS, ALL_NAMESPACES, *GLOBAL,
        ),
        """
        events -w
        events llama-3-1-8b --reason Woke,WakeFailed
        """,
    ),
    "logs": Verb(
        "kubectl_greenthread.logs:logs", "Print the logs of a model's engine or sidecar.", MODEL,
        (
            Option("-c --container", "NAME", "engine or sidecar.", default="engine", choices=("engine", "sidecar")),
            Option("-f --follow", help="Go on printing until Ctrl-C."),
            Option("--tail", "N", "Only the last N lines.", convert=whole),
            Option("--since", "DURATION", "Only what is younger: 10m.", convert=seconds),
            Option("-p --previous", help="Of the container's previous run."),
            Option("--timestamps", help="With the time in front of each line."), *GLOBAL,
        ),
    ),
    "url": Verb(
        "kubectl_greenthread.url:url", "Print where a model answers.", Argument("name", "MODEL", 0, 1), (URL, *GLOBAL)
    ),
    "chat": Verb(
        "kubectl_greenthread.chat:chat", "Talk to a model; it wakes for that.", MODEL,
        (
            Option("-m --message", "TEXT", "Ask this, print the answer, and end."),
            Option("--system", "TEXT", "What the model is told first."),
            Option("--max-tokens", "N", "The longest answer.", convert=whole),
            Option("--temperature", "NUMBER", "0 to 2; the model's own if not given.", convert=number),
            Option("--plain", help="Print the text as it comes, without Markdown."), URL, *GLOBAL,
        ),
        """
        chat qwen3-8b
        git diff | chat qwen3-8b -m "Review this change"
        """,
    ),
    "wake": Verb("kubectl_greenthread.wake:wake", "Wake models.", MODELS, _acting(), "wake qwen3-8b --wait"),
    "sleep": Verb(
        "kubectl_greenthread.sleep:sleep", "Put models to sleep; they free their GPU memory.", MODELS, _acting(YES)
    ),
    "pin": Verb(
        "kubectl_greenthread.pin:pin", "Keep models on their GPUs: they are never preempted.", MODELS,
        (DRY_RUN, ACT_OUTPUT, *GLOBAL),
    ),
    "unpin": Verb(
        "kubectl_greenthread.unpin:unpin", "Let models give way again.", MODELS, (DRY_RUN, ACT_OUTPUT, *GLOBAL)
    ),
    "preempt": Verb(
        "kubectl_greenthread.preempt:preempt", "Make a model give its GPU memory to others.", MODEL,
        _acting(
            Option("--for", "MODEL", "Wake this model on the memory that becomes free.", name="other",
                   complete="models"),
            YES,
        ),
    ),
    "recipes": Verb(
        "kubectl_greenthread.recipes:recipes", "Models that are ready to apply.",
        Argument("name", "NAME", 0, 1, complete="recipes"),
        (Option("--apply", help="Create it, or make an existing Model like it."), DRY_RUN, READ_OUTPUT, NO_HEADERS,
         *GLOBAL),
        """
        recipes -o wide
        recipes qwen-3-8b > my-model.yaml
        recipes qwen-3-8b --apply
        """,
    ),
    "doctor": Verb(
        "kubectl_greenthread.doctor:doctor", "Check everything GreenThread needs, and say what to do.", None,
        (URL, PROMETHEUS, output_option("json", "yaml", "jsonpath"), *GLOBAL),
    ),
    "live": Verb("tui.start:live", "Watch GPUs and models in the terminal."),
    "dashboard": Verb("tui.start:dashboard", "Open the dashboard."),
    "up": Verb("localcluster.up:command", "Run GreenThread on this machine, without Kubernetes."),
    "demo": Verb("localcluster.demo:command", "Show the whole thing on simulated GPUs in two minutes."),
    "completion": Verb(
        "kubectl_greenthread.completion:completion", "Print what makes a shell complete this program's words.",
        Argument("shell", "bash|zsh|fish", complete="shells"), GLOBAL,
    ),
    "version": Verb("kubectl_greenthread.version:version", "Print the version.", None, GLOBAL),
}  # fmt: skip
"""In the order of the help. Verbs of other packages are click commands, and have no tables here."""
