# Every target makes .venv and installs on first use; PYTHON picks the interpreter.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
OUTPUT ?= runs/quickstart
PYTEST := $(BIN)/python -m pytest -n auto --maxprocesses 4 --dist worksteal

.PHONY: venv quickstart long test test-fast check format browser families comparison methods-comparison tables clean

venv: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -e ".[dev]"
	touch $@

quickstart: venv
	$(BIN)/stepdistill quickstart --output $(OUTPUT)

long: venv
	$(BIN)/stepdistill quickstart --long --output runs/long

test: venv
	$(PYTEST)

test-fast: venv
	$(PYTEST) -m "not slow"

check: venv
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: venv
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# The report page is opened in headless Chromium by one test (Debian and Ubuntu).
browser:
	command -v chromium >/dev/null || (apt-get update -qq && apt-get install -y -qq chromium >/dev/null)

# The proofs of all families, measured and recorded; README's table is rendered from it.
families: venv
	rm -f build/reached.jsonl
	mkdir -p build
	$(PYTEST) tests/test_families.py tests/test_export.py --reached build/reached.jsonl
	$(BIN)/python -m stepdistill.evals.family_record --reached build/reached.jsonl \
		--output evals/records/families.json

# The built-in comparison: the digits' teacher by steps beside quickstart students of three seeds, and
# its page. What is there already is left as it is; the whole takes about half an hour.
COMPARED := evals/records/comparison
EVALUATE := $(BIN)/stepdistill eval
BY_DIGITS := --protocol digits --num 10000 --repeats 3 --batch_size 500

comparison: $(foreach steps,2 5 9 18,$(COMPARED)/teacher-$(steps).json) \
		$(foreach seed,0 1 2,$(COMPARED)/quickstart-$(seed).json)
	$(EVALUATE) compare $^ --output runs/comparison.html

$(COMPARED)/teacher-%.json: | venv
	$(EVALUATE) digits --steps $* $(BY_DIGITS) --output $@

$(COMPARED)/quickstart-%.json: | runs/quickstart-%/student
	$(EVALUATE) runs/quickstart-$*/student $(BY_DIGITS) --output $@

.PRECIOUS: runs/quickstart-%/student
runs/quickstart-%/student: | venv
	$(BIN)/stepdistill quickstart --seed $* --output runs/quickstart-$*

# Every method on the digits' teacher, in 1 and 4 calls, of 3 seeds, with equal budgets of network
# calls: hours, and what is there already is left as it is. METHODS and BUDGET may be given. One that
# is to forget a digit makes other pictures on purpose: evals/forgetting_record.py measures it.
METHODS ?= $(shell $(BIN)/stepdistill methods --json | $(BIN)/python -c \
	"import json, sys; cards = json.load(sys.stdin); \
	print(*(card['name'] for card in cards if 'what to forget' not in card['needs']))")
BUDGET ?= 1.2e6

methods-comparison: venv
	$(BIN)/stepdistill compare --methods $(METHODS) --budget $(BUDGET) --minutes 5 \
		--output runs/methods
	$(EVALUATE) compare runs/methods/records/*.json --output runs/methods.html

# README's tables, rendered from the JSON records.
tables: venv
	$(BIN)/python -m stepdistill.evals.tables
	$(BIN)/python -m stepdistill.evals.method_pages

clean:
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache
