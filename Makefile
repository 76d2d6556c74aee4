# People and CI call the same targets. Each sets up and starts what it needs, and is safe to repeat.
# Anything longer than a line lives in .ci/; everything generated goes to build/.
SHELL := /bin/bash
MAKEFLAGS += --no-print-directory
.DEFAULT_GOAL := help
.PHONY: help check lock node

help:  ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-14s %s\n", $$1, $$2}' Makefile

check:  ## format, lint, types, layers
	@.ci/check

lock:  ## write orchestrator/locks from pyproject.toml (UPGRADE=1: newest versions)
	@.ci/lock

node:  ## Node and npm into build/node, for the conformance suite
	@.ci/setup python node
