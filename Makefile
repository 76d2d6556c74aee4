# People and CI call the same targets. Each sets up and starts what it needs, and is safe to repeat.
# Anything longer than a line lives in .ci/; everything generated goes to build/.
SHELL := /bin/bash
MAKEFLAGS += --no-print-directory
.DEFAULT_GOAL := help
.PHONY: help run demo check test test-all conformance test-faults test-security test-agents soak fuzz profile bench image lock node clean uninstall

help:  ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-14s %s\n", $$1, $$2}' Makefile

run:  ## set up what is missing, serve, show a first execution, keep serving until Ctrl-C
	@.ci/demo run

demo:  ## the same in an installation of its own, then stop; exit 0 only if the execution succeeded
	@.ci/demo once

check:  ## format, lint, types, layers
	@.ci/check

test:  ## the tests that belong to a change
	@.ci/test

test-all:  ## the same at full size, after ten minutes of soak
	@.ci/soak && .ci/test all

conformance:  ## the Durable Streams suite against a live server; last line: N passed, M failed
	@.ci/setup python node && build/venv/bin/python -m tests.conformance.suite

test-faults:  ## workers, api, store and lines killed at random (SEED= KILLS= EXECUTIONS= LINES=)
	@.ci/test-faults

test-agents:  ## Claude Code, Codex, pi and mini-swe-agent, out of their registries, at work on a real project
	@.ci/test all tests/agents

test-security:  ## the attacks on a sandbox and on what it leaves
	@.ci/test tests/security

soak:  ## test-faults again and again, new seeds (MINUTES=10)
	@.ci/soak

fuzz:  ## the properties and the API's any-input test with INPUTS=2000 inputs each
	@INPUTS=$(or $(INPUTS),2000) .ci/test -o timeout=0 $$(grep -rlE '^@given' tests)

profile:  ## one bench (ONLY=events) on a server under cProfile; build/serve.pstats, and where the time went
	@.ci/setup python engine image && CARREL_IMAGE=$$(cat build/image) ONLY=$(or $(ONLY),events) PROFILE=build/serve.pstats PYTHONPATH=.:sandbox-image:agent-harness build/venv/bin/python -m tests.bench

bench:  ## figures beside a bare Docker or Redis of the same run (ONLY=name,…); build/bench.json
	@.ci/setup python engine image bench && CARREL_IMAGE=$$(cat build/image) PYTHONPATH=.:sandbox-image:agent-harness build/venv/bin/python -m tests.bench

image:  ## the sandbox image, on Debian (BASE=image: on that one); HARNESS="claude codex pi mini-swe-agent": theirs too
	@.ci/setup python engine image harness

clean:  ## remove our containers (INSTALLATION=default) and all that was built here
	@.ci/clean

uninstall:  ## name and remove what we installed on this machine, all data included
	@.ci/uninstall

lock:  ## write orchestrator/locks from pyproject.toml (UPGRADE=1: newest versions)
	@.ci/lock

node:  ## Node and npm into build/node, for the conformance suite
	@.ci/setup python node
