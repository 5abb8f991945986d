# `make demo`: install, draw the built-in data set, train, evaluate.
# `make test`: install, also what tests need, and test.
# `make test-slow`: the long tests; `make test` comes first.
# `make docs`: check the pages, their pictures and figures.
VENV ?= .venv
PYTHON ?= python3
RUN = $(VENV)/bin/python
PIP_INSTALL = $(RUN) -m pip install --quiet --disable-pip-version-check

.PHONY: demo test test-slow docs install clean

install: $(VENV)/installed

$(VENV)/installed: requirements.txt
	$(PYTHON) -m venv $(VENV)
	$(PIP_INSTALL) -r requirements.txt
	touch $@

$(VENV)/installed-for-tests: requirements-dev.txt requirements-export.txt $(VENV)/installed
	$(PIP_INSTALL) -r requirements-dev.txt -r requirements-export.txt
	touch $@

demo: install
	$(RUN) demo_data.py --output data/demo
	$(RUN) train.py --config configs/quickstart.json --overwrite True
	$(RUN) train.py --eval_only True --checkpoint best --config configs/quickstart.json
	@echo
	@echo "Next:"
	@echo "  $(VENV)/bin/tensorboard --logdir trainings     the curves, at http://localhost:6006"
	@echo "  $(RUN) train.py --test_only True --checkpoint best --config configs/quickstart.json"
	@echo "                                             predictions for clips without labels"
	@echo "  $(RUN) train.py --config configs/config.json   the tutorial's recipe, on Jester"

test: $(VENV)/installed-for-tests
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m pytest -n auto --dist loadfile --durations 10

test-slow: $(VENV)/installed-for-tests
	$(RUN) -m pytest -n auto --dist worksteal -m "slow and not gpu" --durations 10

docs: $(VENV)/installed-for-tests
	$(RUN) docs/check.py

clean:
	rm -rf $(VENV) data/demo trainings/quickstart
