# Every target is one script, so that a machine without make does the same by hand.
# Targets that touch the kernel or install packages need root: sudo make run

.PHONY: help setup run test lint fresh bench uninstall

help:
	@echo "sudo make setup      install what is missing, make .venv, build cove-init"
	@echo "sudo make run        setup, then run real containers from a real Debian image"
	@echo "sudo make test       setup, lint, and the whole test suite"
	@echo "make lint            ruff, mypy, lint-imports"
	@echo "sudo make fresh      README's two commands inside a minimal Debian 12"
	@echo "sudo make bench      Cove beside dockerd and runc (QUICK=1: two minutes)"
	@echo "sudo make uninstall  stop the daemon; remove its bridge, rules and cgroups"

setup:
	@sh scripts/setup.sh run

run:
	@sh scripts/run.sh

test:
	@sh scripts/test.sh

lint:
	@sh scripts/lint.sh

fresh:
	@sh scripts/fresh.sh

bench:
	@sh scripts/setup.sh bench
	@.venv/bin/python -m bench $(if $(QUICK),--quick)

uninstall:
	@sh scripts/uninstall.sh
