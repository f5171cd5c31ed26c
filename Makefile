.PHONY: test lint demo

test:
	python -m pytest -n logical

lint:
	ruff check .
	ruff format --check .
	mypy

demo:
	python -m glue_runs.grid --demo
