# `make` without a target lists what there is.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PYTEST := $(BIN)/pytest --durations=20
INSTALLED := $(VENV)/.installed

.DEFAULT_GOAL := help
.PHONY: help venv lock coverage chaos overload demo demo-retrain check test test-full test-system test-deploy bench-check bench-end-to-end bench-claims bench-gpu bench-lare-cost bench-install bench-scale bench-pairs bench-improvement bench-against bench-serve bench-sql console-screenshots fuzz-events fuzz-images bundle dist sbom bench-splices bench-additions bench-pair-kinds bench-peers bench-waits bench-memory clean

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  %-17s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

venv: $(INSTALLED) ## Make .venv with every dependency of the lock; again only when the lock changes

$(INSTALLED): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "unlatent needs Python 3.11 or newer: make PYTHON=python3.11 …" >&2; exit 1; }
	@test -x $(BIN)/pip || $(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); \
		echo "This Python cannot make virtual environments: install its venv and ensurepip" >&2; \
		echo "(on Debian and Ubuntu the package python3-venv), or choose another: make PYTHON=…" >&2; \
		exit 1; }
	$(BIN)/pip install --quiet --disable-pip-version-check --no-compile --require-hashes \
		-r requirements.lock
	$(BIN)/pip install --quiet --disable-pip-version-check --no-compile --no-deps \
		--no-build-isolation --editable .
	@touch $@

UV_COMPILE := $(BIN)/uv pip compile --universal --python-version 3.11 --generate-hashes \
	--no-header --no-emit-index-url --no-emit-find-links --quiet

lock: venv ## Resolve pyproject.toml into requirements.lock, and the images' parts of it
	$(UV_COMPILE) pyproject.toml --extra dev --output-file requirements.lock
	$(UV_COMPILE) pyproject.toml --extra service --extra console --extra tracing --constraint requirements.lock \
		--no-annotate --output-file deploy/requirements.lock
	$(UV_COMPILE) pyproject.toml --extra training --extra console --extra tracing --constraint requirements.lock \
		--no-annotate --output-file deploy/requirements-training.lock
	echo hatchling | $(UV_COMPILE) - --constraint requirements.lock --no-annotate \
		--output-file deploy/build.lock
	echo uv | $(UV_COMPILE) - --constraint requirements.lock --no-annotate \
		--output-file deploy/publish.lock

check: venv ## Lint, check spelling, types and the direction of imports
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/codespell
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/shellcheck .ci/run deploy/apply deploy/install-dependencies
	$(BIN)/hadolint deploy/Dockerfile

test: venv ## Run the unit, integration, migration and failure tests but the long ones
	$(PYTEST) -m "not full and not system and not deploy"

test-full: venv ## Run the long tests that `make test` leaves out
	$(PYTEST) -m full

test-system: venv ## Run what needs the Debian packages of tests/system/packages.txt
	$(PYTEST) -m "system and not deploy"

test-deploy: venv ## Run what needs root and Debian's packages prometheus and debootstrap
	$(PYTEST) -m deploy

coverage: venv ## Measure the lines and branches that TESTS=tests/unit run, in the process of pytest
	mkdir -p out
	$(BIN)/coverage run -m pytest --quiet -m "not full and not system and not deploy" \
		$(or $(TESTS),tests/unit)
	$(BIN)/coverage report

chaos: venv ## Break services at random for MINUTES=10, in the order of SEED=1
	$(BIN)/python -m tests.failure.chaos --minutes $(or $(MINUTES),10) --seed $(or $(SEED),1)

overload: venv ## Send a deployment twice what it can do for MINUTES=5, and judge its latencies
	$(BIN)/python -m tests.failure.overload --minutes $(or $(MINUTES),5)

demo: venv ## Start everything on this machine and follow images from upload to verdict
	$(BIN)/unlatent demo

demo-retrain: venv ## Show the retraining loop on this machine, on DATA=<folder> of one's own if given
	$(BIN)/unlatent demo-retrain $(if $(DATA),"$(DATA)")

bench-check: venv ## Score every image file of DATA=<folder>: speed and errors
	$(BIN)/python -m tests.benchmarks.bench_check --data "$(DATA)"

bench-end-to-end: venv ## Compare images a second through the whole service and in the detector alone
	$(BIN)/python -m tests.benchmarks.bench_end_to_end

bench-quality: venv ## Measure BUNDLE on DATA=<folder> of labelled images: tables and plots in OUT
	$(BIN)/python -m tests.benchmarks.bench_quality --data "$(DATA)" \
		$(if $(BUNDLE),--bundle "$(BUNDLE)") $(if $(OUT),--out "$(OUT)") \
		$(if $(LIMIT),--limit "$(LIMIT)")

bench-pair-kinds: venv ## Measure what pairs by generators that are no latent diffusion gain on DATA: one table in OUT
	$(BIN)/python -m tests.benchmarks.detector.bench_pair_kinds --data "$(DATA)" \
		$(if $(STEPS),--steps "$(STEPS)") $(if $(IMAGES),--images "$(IMAGES)") \
		$(if $(OUT),--out "$(OUT)")

bench-peers: venv ## Score the images of DATA with the shipped detector and its peers, by folds: one table in OUT
	$(BIN)/python -m tests.benchmarks.detector.bench_peers --data "$(DATA)" \
		$(if $(TAEF2),--taef2 "$(TAEF2)") $(if $(OUT),--out "$(OUT)") $(if $(LIMIT),--limit "$(LIMIT)")

bench-additions: venv ## Measure by the folds of DATA what LaRE's error map and a second view would add: one table in OUT
	$(BIN)/python -m tests.benchmarks.detector.bench_additions --data "$(DATA)" \
		$(if $(OUT),--out "$(OUT)") $(if $(LIMIT),--limit "$(LIMIT)")

bench-splices: venv ## Measure on LIMIT photographs of DATA whether BUNDLE's evidence points at a pasted patch
	$(BIN)/python -m tests.benchmarks.detector.bench_splices --data "$(DATA)" \
		$(if $(BUNDLE),--bundle "$(BUNDLE)") $(if $(TAEF2),--taef2 "$(TAEF2)") \
		$(if $(LIMIT),--limit "$(LIMIT)")

bench-improvement: venv ## Teach a fold of RUN=<unlatent bundle --run> its FAMILY from DATA, before and after
	$(BIN)/python -m tests.benchmarks.bench_improvement --data "$(DATA)" --run "$(RUN)" \
		--family "$(FAMILY)" $(if $(TAEF2),--taef2 "$(TAEF2)") $(if $(OUT),--out "$(OUT)")

bundle: venv ## Train a bundle on DATA=<folder> of labelled images (resumes); TAEF2 goes with RECIPE=lare-aligned
	$(BIN)/unlatent bundle --data "$(DATA)" $(if $(TAEF2),--taef2 "$(TAEF2)") \
		$(if $(RECIPE),--recipe "$(RECIPE)" --run "out/run-$(RECIPE)" --out "out/$(RECIPE)")

bench-pairs: venv ## Compare the cost of an aligned pair and of a generated image by BUNDLE
	$(BIN)/python -m tests.benchmarks.bench_pairs $(if $(BUNDLE),--bundle "$(BUNDLE)")

console-screenshots: venv ## Take docs/images of a running `unlatent demo --console`, with its PASSWORD
	$(BIN)/python -m tests.support.console.screenshots --password "$(PASSWORD)"

bench-sql: venv ## Time the moderators' queries and the console's pages on ROWS generated verdicts (5 million unless set)
	$(BIN)/python -m tests.benchmarks.bench_sql --rows $(or $(ROWS),5000000)

bench-against: venv ## Compare `unlatent check` with REVISION=30a0aa0, in turns on the same files
	$(BIN)/python -m tests.benchmarks.performance.bench_against --revision $(or $(REVISION),30a0aa0)

bench-serve: venv ## Compare what an image costs by HTTP and through the worker, and its wait at 70 % load
	$(BIN)/python -m tests.benchmarks.bench_serve

bench-waits: venv ## Measure an upload's time at 70 % load and a priority upload's wait behind a crowd
	$(BIN)/python -m tests.benchmarks.performance.bench_waits

bench-memory: venv ## Measure the private memory of a worker and its decoders over IMAGES=10000 images
	$(BIN)/python -m tests.benchmarks.performance.bench_memory --images $(or $(IMAGES),10000)

bench-scale: venv ## Measure what an image costs every component with 1, 2, 4 and 8 workers
	$(BIN)/python -m tests.benchmarks.bench_scale $(if $(OUT),--out "$(OUT)")

bench-claims: venv ## Measure the papers' claims on BUNDLE, with DATA=<folder> all of them (hours; resumes)
	$(BIN)/python -m tests.benchmarks.bench_claims --bundle "$(BUNDLE)" $(if $(DATA),--data "$(DATA)") \
		$(if $(TAEF2),--taef2 "$(TAEF2)") $(if $(MINUTES),--minutes $(MINUTES)) $(if $(OUT),--out "$(OUT)")

bench-install: venv ## Print what each extra installs: packages and megabytes
	$(BIN)/python -m tests.benchmarks.bench_install

bench-gpu: venv ## Compare CPU and GPU: scores, half precision, images a second
	$(BIN)/python -m tests.benchmarks.bench_gpu

bench-lare-cost: venv ## Compare LaRE in batches with the published way, on a CPU and Stable Diffusion's size
	$(BIN)/python -m tests.benchmarks.performance.bench_lare_cost $(if $(VIEWS),--views "$(VIEWS)")

fuzz-events: venv ## Parse EVENTS=1000000 events mutated in the order of SEED=1; count what becomes of them
	$(BIN)/python -m tests.benchmarks.fuzz_events \
		--events $(or $(EVENTS),1000000) --seed $(or $(SEED),1)

fuzz-images: venv ## Decode COUNT=50000 mutated images in the real pool: nothing may crash or hang
	$(BIN)/python -m tests.fuzz.images --count $(or $(COUNT),50000) --seed $(or $(SEED),1)

dist: venv ## Build wheels and source distributions, the client's too, into dist/
	rm -rf dist
	$(BIN)/python -m hatchling build --directory dist
	cd client && ../$(BIN)/python -m hatchling build --directory ../dist

# The day bounds what the tool itself depends on.
CYCLONEDX := $(BIN)/uv tool run --quiet --python $(BIN)/python --exclude-newer 2026-11-30 \
	--from cyclonedx-bom==7.5.0 cyclonedx-py requirements --pyproject pyproject.toml \
	--mc-type application --output-reproducible --validate

sbom: venv ## Write bills of materials (CycloneDX) of the locks of both images into out/sbom
	mkdir -p out/sbom
	$(CYCLONEDX) deploy/requirements.lock --output-file out/sbom/unlatent-service.cdx.json
	$(CYCLONEDX) deploy/requirements-training.lock --output-file out/sbom/unlatent-trainer.cdx.json

clean: ## Remove the local stack, caches and build output; the virtual environment stays
	@if [ -x $(BIN)/unlatent ]; then $(BIN)/unlatent down --delete; fi
	rm -rf var out build dist client/dist .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis
	find . -path ./$(VENV) -prune -o -name __pycache__ -type d -exec rm -rf {} +
