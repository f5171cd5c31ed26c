.PHONY: test lint docs demo

test:
	python -m pytest -n logical

lint:
	ruff check .
	ruff format --check .
	mypy

docs:
	mkdocs build --strict

demo:
	python -m glue_runs.grid --demo
