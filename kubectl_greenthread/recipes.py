"""`recipes`: Models that are ready to apply; they come with the program.

A recipe is a manifest of one Model with a comment before it: what it is in words, then lines `task:`, `weights:` (GiB,
of the whole model), `least:` (GiB that each GPU needs besides: cache for one request of the longest context, and
workspace) and, for some, `gated:` (what to do on Hugging Face first). The page of recipes is made from the same.
"""

from __future__ import annotations

import os
import re

import greenthread
from greenthread.kube.errors import AlreadyExists, Forbidden
from greenthread.kube.resources import MODELS
from greenthread.names import ANNOTATION_ENGINE
from greenthread.values import dataclass
from kubectl_greenthread.failures import Failure, NoSuchModel, NotAllowed
from kubectl_greenthread.output import is_objects, out, print_objects, tell
from kubectl_greenthread.reading import bare_name
from kubectl_greenthread.terminal import Cell, Column

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from greenthread.kube.core import Object
    from kubectl_greenthread.options import Session

TASKS = ("chat", "reasoning", "tools", "vision", "embeddings", "rerank", "speech-to-text", "text-to-speech")
CONTEXT = 1.8
"""GiB of each GPU that CUDA takes beside the engine's share."""
CARDS = (("L4, 24 GB", 22.5), ("L40S, 48 GB", 45.0), ("A100 or H100, 80 GB", 79.6), ("RTX PRO 6000, 96 GB", 95.6),
         ("H200, 141 GB", 140.4))  # fmt: skip
"""Common cards and the GiB that NVML says they have."""

_FACT = re.compile(r"(task|weights|least|gated): (.+)")
_NAMESPACE = re.compile(r"^  namespace: \S+$", re.MULTILINE)


@dataclass(frozen=True)
class Recipe:
    """One recipe. Sizes in GiB: `weights` of the whole model, `least` of each GPU beside its part of them."""

    name: str
    text: str
    about: str
    task: str
    weights: float
    least: float
    gated: str
    manifest: Any

    @property
    def spec(self) -> dict[str, Any]:
        spec: dict[str, Any] = self.manifest["spec"]
        return spec

    @property
    def gpus(self) -> int:
        """GPUs of one replica."""
        return int(self.spec.get("tensorParallelSize", 1))

    @property
    def share(self) -> float:
        """The engine's share of each GPU, 0 to 1."""
        return float(self.spec["gpuMemoryUtilization"])

    @property
    def is_command(self) -> bool:
        """Its engine is no vLLM that GreenThread starts with the spec's own fields."""
        return (self.manifest["metadata"].get("annotations") or {}).get(ANNOTATION_ENGINE) == "command"

    @property
    def needs(self) -> float:
        """GiB of each GPU without which it does not start."""
        return self.weights / self.gpus + self.least + CONTEXT

    def takes(self, card: float) -> float:
        """GiB that it takes of each GPU of `card` GiB, as it is written."""
        return self.share * card + CONTEXT

    def starts(self, card: float) -> bool:
        """Whether it fits on GPUs of `card` GiB, as it is written."""
        return self.needs <= self.takes(card) <= card

    def smallest_share(self, card: float) -> float | None:
        """The smallest gpuMemoryUtilization, in hundredths, that it starts with on GPUs of `card` GiB; None: none."""
        hundredths = -(-(self.needs - CONTEXT) * 100 // card)
        return hundredths / 100 if hundredths * card / 100 + CONTEXT <= card else None


def folder() -> str:
    """Where the recipes are: in the installed package, or in the checkout that this runs from. Raises Failure."""
    package = os.path.dirname(os.path.abspath(greenthread.__file__))
    for where in (package, os.path.dirname(package)):
        path = os.path.join(where, "manifests", "recipes")
        if os.path.isdir(path):
            return path
    raise Failure("this installation lacks its recipes: install it again")


def names() -> list[str]:
    """Of all recipes."""
    return sorted(name.removesuffix(".yaml") for name in os.listdir(folder()) if name.endswith(".yaml"))


def read(name: str) -> Recipe:
    """One recipe by its name, which must be one of `names`."""
    from greenthread.kube.simple_yaml import load

    with open(os.path.join(folder(), f"{name}.yaml"), encoding="utf-8") as file:
        text = file.read()
    comment = [line[2:].rstrip("\n") for line in text.splitlines() if line.startswith("# ")]
    facts = {found[1]: found[2] for line in comment if (found := _FACT.fullmatch(line))}
    about = " ".join(line for line in comment if not _FACT.fullmatch(line))
    return Recipe(
        name,
        text,
        about,
        facts["task"],
        float(facts["weights"].removesuffix(" GiB")),
        float(facts["least"].removesuffix(" GiB")),
        facts.get("gated", ""),
        load(text),
    )


def all_recipes() -> list[Recipe]:
    """By task, and the smaller ones first."""
    return sorted((read(name) for name in names()), key=lambda recipe: (TASKS.index(recipe.task), recipe.weights))


def recipes(session: Session, name: str | None, apply: bool) -> None:
    """List recipes: Models that are ready to apply; with NAME print one.

    NEEDS is the least memory of each GPU, an estimate. A recipe takes its share (spec.gpuMemoryUtilization) of whatever
    GPU it is placed on, so lower that to have more Models on one. It goes to the recipe's own namespace,
    greenthread-system, unless -n says another.
    """
    if name is None:
        if apply:
            raise Failure("name the recipe to apply: `recipes` lists them")
        _list(session)
        return
    recipe = _find(bare_name(name))
    namespace = session.namespace_option or recipe.manifest["metadata"]["namespace"]
    manifest = {**recipe.manifest, "metadata": {**recipe.manifest["metadata"], "namespace": namespace}}
    if apply:
        _apply(session, recipe, manifest)
    elif session.output in ("", "wide", "yaml"):
        out(_NAMESPACE.sub(f"  namespace: {namespace}", recipe.text, count=1), end="")
    else:
        print_objects(session, [manifest])


def _list(session: Session) -> None:
    found = all_recipes()
    if is_objects(session):
        print_objects(session, [recipe.manifest for recipe in found], single=False)
        return
    columns = [
        Column("NAME"),
        Column("TASK"),
        Column("WEIGHTS", right=True, drop=1),
        Column("GPUS", right=True),
        Column("NEEDS", right=True),
        Column("SHARE", right=True, drop=2),
        Column("ABOUT", flexible=20, drop=3),
    ]
    if session.output == "wide":
        columns[-1:] = [Column("SERVES"), Column("GATED"), Column("ABOUT", flexible=20)]
    rows = []
    for recipe in found:
        row = [recipe.name, recipe.task, f"{recipe.weights:g}G", str(recipe.gpus), f"{recipe.needs:.1f}G",
               f"{recipe.share:.0%}"]  # fmt: skip
        if session.output == "wide":
            row += [recipe.spec["modelName"], "yes" if recipe.gated else "no"]
        rows.append([Cell(text) for text in (*row, recipe.about)])
    for line in session.terminal.table(columns, rows, session.headers):
        out(line)


def _find(name: str) -> Recipe:
    known = names()
    if name in known:
        return read(name)
    import difflib

    near = difflib.get_close_matches(name, known, n=3, cutoff=0.4)
    near = near or [other for other in known if name and name in other][:3]
    more = f"did you mean {' or '.join(near)}?" if near else "`recipes` lists them"
    raise NoSuchModel(f"there is no recipe {name}; {more}")


def _apply(session: Session, recipe: Recipe, manifest: Object) -> None:
    """Creates the Model; an existing one gets the recipe's fields, and keeps its others."""
    from greenthread.kube.errors import ApiError
    from kubectl_greenthread.acting import answer

    if session.readonly:
        raise NotAllowed("--readonly is on: nothing is changed")
    namespace = manifest["metadata"]["namespace"]
    if session.verbose:
        flags = " ".join(["", *session.kubectl_flags])
        tell(f"kubectl greenthread recipes {recipe.name} -n {namespace} | kubectl{flags} apply -f -")
    if session.dry_run == "client":
        answer(session, [manifest], [f"created {recipe.name} in {namespace}"])
        return
    seemingly = session.dry_run == "server"
    try:
        try:
            model = session.client.create(MODELS, manifest, namespace, seemingly)
            words = [f"created {recipe.name} in {namespace}"]
            if recipe.gated:
                words.append(f"It is gated: {recipe.gated}, and give the installation your Hugging Face token.")
        except AlreadyExists:
            old = session.client.get(MODELS, recipe.name, namespace)
            body = {"metadata": {"annotations": manifest["metadata"].get("annotations") or {}}, "spec": recipe.spec}
            model = session.client.patch(MODELS, recipe.name, body, namespace, dry_run=seemingly)
            changed = [key for key in recipe.spec if old["spec"].get(key) != model["spec"].get(key)]
            did = f"changed {', '.join(f'spec.{key}' for key in changed)} of" if changed else "left unchanged"
            words = [f"{did} {recipe.name} in {namespace}"]
    except Forbidden as error:
        raise NotAllowed(f"{error} (it needs `create` and `patch` on {MODELS.full_name} in {namespace})") from None
    except ApiError as error:
        raise Failure(f"{recipe.name} in {namespace}: {error}") from None
    answer(session, [model], words)
