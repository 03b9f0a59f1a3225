"""The documentation: generated pages are current, commands in it are commands, and links lead somewhere."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import yaml

from kubectl_greenthread.arguments import parse
from kubectl_greenthread.main import available
from kubectl_greenthread.verbs import VERBS
from scripts import reference, release

ROOT = Path(__file__).parents[3]
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.rglob("*.md"))
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("name", reference.PAGES)
def test_a_generated_page_is_current(name: str) -> None:
    assert (DOCS / name).read_text(encoding="utf-8") == reference.PAGES[name](), "run `make docs`"


def test_every_page_is_in_the_navigation() -> None:
    config = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))

    def files(nav: list[object]) -> list[str]:
        return [
            name
            for entry in nav
            for name in ([entry] if isinstance(entry, str) else files(next(iter(entry.values()))))  # type: ignore[attr-defined]
        ]

    assert sorted(files(config["nav"])) == [str(page.relative_to(DOCS)) for page in PAGES]


def commands() -> list[tuple[str, str]]:
    """Lines of code blocks that begin with our program, with the page."""
    found = []
    for page in [*PAGES, ROOT / "README.md"]:
        for language, block in FENCE.findall(page.read_text(encoding="utf-8")):
            if language in ("", "sh", "bash", "console"):
                for line in block.replace("\\\n", " ").splitlines():
                    words = re.split(r"  | # | > ", line)[0].strip()
                    if re.match(r"(kubectl )?greenthread [a-z]", words) and "|" not in words.partition("'")[0]:
                        found.append((page.name, words))
    return found


@pytest.mark.parametrize(("page", "line"), sorted(set(commands())))
def test_a_command_is_one(page: str, line: str) -> None:
    words = shlex.split(line.removeprefix("kubectl "))[1:]
    assert words[0] in available(), f"{page}: {line}"
    verb = VERBS[words[0]]
    if verb.options is not None and not any(word.startswith("[") or word.endswith("...") for word in words):
        parse(verb.options, verb.argument, words[1:])  # Usage when it is none


def test_there_are_commands_to_check() -> None:
    assert len(commands()) > 25


def slug(heading: str) -> str:
    """As GitHub and MkDocs make an anchor of a heading."""
    return re.sub(r"[\s-]+", "-", re.sub(r"[^\w\s-]", "", heading.replace("`", "").strip().lower()))


@pytest.mark.parametrize("page", [*PAGES, ROOT / "README.md"], ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    text = FENCE.sub("", page.read_text(encoding="utf-8"))
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"https?:", target):
            continue
        file, _, anchor = target.partition("#")
        there = (page.parent / file).resolve() if file else page
        assert there.exists(), f"{page.name}: {target}"
        assert page.parent == ROOT or there.is_relative_to(DOCS), f"{page.name}: {target} is no page of the site"
        if anchor and there.suffix == ".md":
            headings = {
                slug(title) for title in re.findall(r"^#+ (.*)$", there.read_text(encoding="utf-8"), re.MULTILINE)
            }
            assert anchor in headings, f"{page.name}: {target}"


def test_the_metrics_page_has_what_dashboards_and_rules_ask_for() -> None:
    page = (DOCS / "reference" / "metrics.md").read_text(encoding="utf-8")
    known = set(re.findall(r"^\| `(gthread_\w+)`", page, re.MULTILINE))
    files = (ROOT / "manifests" / "charts" / "greenthread" / "files").rglob("*.*")
    asked = {name for file in files for name in re.findall(r"\bgthread_\w+", file.read_text(encoding="utf-8"))}
    assert {re.sub(r"_(bucket|sum|count)$", "", name) for name in asked} <= known
    assert len(asked) > 10


def test_krews_manifest_is_well_formed() -> None:
    plugin = yaml.safe_load(release.KREW.read_text(encoding="utf-8"))
    assert plugin["apiVersion"] == "krew.googlecontainertools.github.com/v1alpha2"
    assert (plugin["kind"], plugin["metadata"]["name"]) == ("Plugin", "greenthread")
    spec = plugin["spec"]
    assert spec["version"] == f"v{release.version()}"
    assert 0 < len(spec["shortDescription"]) <= 50
    (platform,) = spec["platforms"]
    assert platform["sha256"] == release.NO_SUM
    assert platform["uri"].startswith(f"{spec['homepage']}/releases/download/{spec['version']}/")
    assert platform["uri"].endswith(f"/kubectl-greenthread-{release.version()}.tar.gz")
    assert platform["bin"] in [file["from"] for file in platform["files"]]
