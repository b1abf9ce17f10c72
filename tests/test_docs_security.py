"""docs/security.md: the tests that it names exist, and what it says is nowhere in the code is
nowhere.
"""

import ast
import re
from collections import Counter

import yaml

from tests.pages import REPOSITORY, names_in, page

SECURITY = page("docs/security.md")
ROOMS = ("pipeline", "assets", "training", "model")
FORBIDDEN_CALLS = {"eval", "exec"}
FORBIDDEN_MODULES = {"pickle", "dill", "shelve", "marshal"}
FORBIDDEN_ARGUMENTS = {"shell", "trust_remote_code"}


def test_every_threat_names_tests_that_exist():
    functions = Counter(
        name
        for path in (REPOSITORY / "tests").rglob("test_*.py")
        for name in re.findall(r"^(?:    )?def (test_\w+)", path.read_text(), re.M)
    )
    (threats,) = SECURITY.section("Threats").tables()
    for threat, _, shown in threats[1:]:
        assert names_in(shown), threat
    named = {name for _, _, shown in threats[1:] for name in names_in(shown)}
    assert {name: functions[name] for name in named if functions[name] != 1} == {}


def forbidden(tree: ast.AST) -> list[str]:
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            modules = [alias.name for alias in node.names] + [getattr(node, "module", None) or ""]
            found += [name for name in modules if name.split(".")[0] in FORBIDDEN_MODULES]
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            unsafe_yaml = called.startswith("yaml.") and called not in (
                "yaml.safe_load",
                "yaml.safe_dump",
            )
            if called in FORBIDDEN_CALLS | {"torch.load", "os.system"} or unsafe_yaml:
                found.append(called)
            found += [
                k.arg
                for k in node.keywords
                if k.arg in FORBIDDEN_ARGUMENTS and ast.unparse(k.value) != "False"
            ]
    return found


def test_no_room_runs_what_data_say():
    found = {
        str(path.relative_to(REPOSITORY)): calls
        for room in ROOMS
        for path in (REPOSITORY / room).rglob("*.py")
        if (calls := forbidden(ast.parse(path.read_text())))
    }
    # A file of a package, whose hash stands beside it, and only for tensors.
    assert found == {"model/vision_encoders/efficientnet_lite0.py": ["torch.load"]}
    text = (REPOSITORY / "model/vision_encoders/efficientnet_lite0.py").read_text()
    assert "torch.load(PACKAGE.path()," in text
    assert "weights_only=True" in text


def test_the_search_finds_what_it_searches_for():
    lines = [
        "import pickle",
        "from shelve import open",
        "eval('1')",
        "torch.load(x)",
        "run(a, shell=True)",
        "yaml.load(b)",
    ]
    assert [line for line in lines if len(forbidden(ast.parse(line))) != 1] == []
    assert len(forbidden(ast.parse("\n".join(lines)))) == len(lines)


def test_the_built_in_deployment_accepts_no_terms_and_listens_to_nobody():
    deployment = yaml.safe_load((REPOSITORY / "pipeline/deployment.yaml").read_text())
    accepted = [
        name for name, source in deployment["sources"].items() if source.get("accept_terms")
    ]
    assert accepted == []
    assert "--host 127.0.0.1" in (REPOSITORY / "Makefile").read_text()
