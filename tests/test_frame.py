"""The shape of the project: what the tools cannot check by themselves and everybody relies on."""

import ast
import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import limeguard

ROOT = Path(__file__).resolve().parent.parent
SOURCES = sorted((ROOT / "src" / "limeguard").rglob("*.py"))
MIGRATIONS = ROOT / "src" / "limeguard" / "store" / "migrations"
MODULES = [path for path in SOURCES if MIGRATIONS not in path.parents]
LONGEST_FUNCTION = 60
LONGEST_MODULE = 500
PROPERTIES = (
    "fail-closed",
    "fresh",
    "clock-and-reset",
    "bound-identity",
    "enrolment-order",
    "default-deny",
    "bounded",
    "secret",
    "green-is-recent",
    "empty-is-not-valid",
    "downgrade",
)
VERBS = re.compile(r"^  ([a-z0-9]+) ", re.MULTILINE)


def run_dev(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([str(ROOT / "dev"), *arguments], capture_output=True, text=True, check=False, cwd="/")


def project() -> dict[str, object]:
    parsed = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert isinstance(parsed, dict)
    return parsed


def names(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("path", MODULES, ids=names)
def test_every_module_says_what_it_is_for(path: Path) -> None:
    assert ast.get_docstring(ast.parse(path.read_text()))


@pytest.mark.parametrize("path", MODULES, ids=names)
def test_functions_and_modules_stay_readable(path: Path) -> None:
    text = path.read_text()
    long = [
        f"{node.name} has {(node.end_lineno or 0) - node.lineno + 1} lines"
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and (node.end_lineno or 0) - node.lineno + 1 > LONGEST_FUNCTION
    ]
    assert not long
    assert len(text.splitlines()) <= LONGEST_MODULE


def test_the_version_is_said_once_and_the_same() -> None:
    assert project()["version"] == limeguard.__version__


def test_dev_alone_lists_every_verb_that_it_has() -> None:
    shown = run_dev()
    assert shown.returncode == 0
    defined = set(re.findall(r"^verb_([a-z0-9]+)\(\)", (ROOT / "dev").read_text(), re.MULTILINE))
    assert set(VERBS.findall(shown.stdout)) == defined


def test_an_unknown_verb_is_refused_with_the_list() -> None:
    answer = run_dev("dance")
    assert answer.returncode == 1
    assert "no such verb: dance" in answer.stderr
    assert "usage:" in answer.stderr


@pytest.mark.parametrize("step", ["lint", "types", "contracts", "test", "docs", "peer"])
def test_continuous_integration_runs(step: str) -> None:
    assert f"./dev {step}" in (ROOT / ".ci" / "run").read_text()


@pytest.mark.parametrize("path", sorted(ROOT.glob("requirements-*.lock")), ids=names)
def test_locks_have_hashes_and_name_no_package_index(path: Path) -> None:
    text = path.read_text()
    assert "://" not in text
    assert "--index-url" not in text
    assert text.count("==") <= text.count("--hash=sha256:")


def test_the_lock_covers_every_dependency() -> None:
    locked = {line.split("==")[0] for line in (ROOT / "requirements-dev.lock").read_text().splitlines() if "==" in line}
    parsed = tomllib.loads((ROOT / "pyproject.toml").read_text())
    wanted = [*parsed["project"]["dependencies"], *parsed["dependency-groups"]["dev"]]
    for extra in parsed["project"]["optional-dependencies"].values():
        wanted += extra
    plain = {re.split(r"[\[<>=;~! ]", item)[0].lower().replace("_", "-") for item in wanted}
    assert plain <= locked


@pytest.mark.parametrize("property_name", PROPERTIES)
def test_every_trust_property_has_tests_by_name(property_name: str) -> None:
    marked = re.compile(rf"#\s*trust:.*\b{re.escape(property_name)}\b")
    assert any(marked.search(path.read_text()) for path in (ROOT / "tests").rglob("test_*.py"))


def test_nothing_happens_on_import() -> None:
    script = """
import importlib, json, logging, pkgutil, sys
seen = []
def watch(event, args):
    if event in ("socket.connect", "socket.bind", "subprocess.Popen", "os.system", "os.mkdir", "os.remove"):
        seen.append(event)
    if event == "open" and isinstance(args[0], str) and "keylime" in args[0].lower():
        seen.append(args[0])
sys.addaudithook(watch)
import limeguard
for found in pkgutil.walk_packages(limeguard.__path__, "limeguard."):
    if ".migrations" in found.name or found.name == "limeguard.__main__":
        continue
    try:
        importlib.import_module(found.name)
    except ImportError as problem:
        if problem.name and not problem.name.startswith(("tpm2_pytss", "opentelemetry")):
            raise
print(json.dumps({"seen": seen, "handlers": len(logging.getLogger().handlers)}))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd="/")
    assert json.loads(done.stdout) == {"seen": [], "handlers": 0}


def test_help_is_quick_and_needs_no_optional_library() -> None:
    script = (
        "import sys\nfrom limeguard.cli.main import limeguard\n"
        "limeguard.main(['--help'], standalone_mode=False)\n"
        "print(sorted({'aiohttp', 'sqlalchemy', 'tpm2_pytss', 'rich'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_servers_load_no_client_that_few_of_them_need() -> None:
    script = (
        "import sys, limeguard.registrar.server, limeguard.verifier.build\n"
        "print(sorted({'aiohttp', 'rich', 'opentelemetry', 'tpm2_pytss'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd="/")
    assert done.stdout.splitlines()[-1] == "[]"


def test_the_licence_is_whole_and_the_usual_pages_are_there() -> None:
    licence = (ROOT / "LICENSE").read_text()
    assert "Version 2.0, January 2004" in licence
    assert "END OF TERMS AND CONDITIONS" in licence
    for name in ("README.md", "SECURITY.md", "CONTRIBUTING.md", "CHANGELOG.md"):
        assert (ROOT / name).read_text().startswith("# ")
    assert "## [Unreleased]" in (ROOT / "CHANGELOG.md").read_text()
