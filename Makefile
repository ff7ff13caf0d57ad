# SPDX-License-Identifier: Apache-2.0
# The front door. `make help` says what there is.
BUILD ?= build
JOBS ?= $(shell nproc)

.PHONY: help demo test build deps lint clean example-model asan tsan bench chaos

help: ## this list
	@grep -hE '^[a-z-]+:.*##' Makefile | sed -E 's/^([a-z-]+):.*## /  make \1\t/' | expand -t 24

demo: build ## the main job: capture, train, and decode with the trained draft; results in out/demo
	@$(BUILD)/bin/draftflow run examples/demo.yaml

test: build ## every test; skipped ones are listed with their reason
	@bash tools/run-tests.sh $(BUILD)

build: deps $(BUILD)/build.ninja ## build/bin/draftflow and the tests
	@cmake --build $(BUILD) -j$(JOBS)

$(BUILD)/build.ninja:
	@echo "configuring $(BUILD) (preset release)"
	@mkdir -p $(BUILD)
	@cmake --preset release -B $(BUILD) > $(BUILD)/configure.log 2>&1 || { cat $(BUILD)/configure.log; rm -f $@; exit 1; }

deps: ## what the build needs, from Debian's packages (only what is missing)
	@bash tools/install-deps.sh

lint: ## formatting and clang-tidy
	@bash tools/install-deps.sh lint
	@bash tools/lint.sh

asan: deps ## the rooms without libtorch under address and undefined-behaviour sanitizers
	@test -f build/asan-ubsan/build.ninja || cmake --preset asan-ubsan > /dev/null
	@cmake --build build/asan-ubsan -j$(JOBS)
	@bash tools/run-tests.sh build/asan-ubsan

tsan: deps ## the store, the ledger and the loader, which have threads, under the thread sanitizer
	@test -f build/tsan/build.ninja || cmake --preset tsan > /dev/null
	@cmake --build build/tsan -j$(JOBS) --target store_test ledger_test loader_test
	@for test in store_test ledger_test loader_test; do build/tsan/bin/$$test --gtest_brief=1 || exit 1; done

bench: build ## store, ledger and the Python package beside their limits; fills 1,000,000 samples, or 20,000 with QUICK=1
	@$(BUILD)/bin/draftflow bench store --dir $(BUILD) $(if $(QUICK),--quick)
	@$(BUILD)/bin/draftflow bench ledger --dir $(BUILD) $(if $(QUICK),--quick)
	@$(BUILD)/bin/draftflow bench python --dir $(BUILD) $(if $(QUICK),--quick)

CHAOS_SECONDS ?= 600
chaos: build ## a quarter of an hour of killed, stopped and restarted processes on each kind of ledger (CHAOS_SECONDS)
	@DRAFTFLOW_CHAOS_SECONDS=$(CHAOS_SECONDS) $(BUILD)/bin/chaos_test --gtest_filter='Chaos.*'

example-model: build ## make the example model, tokenizer and prompts again (examples/README.md)
	@bash examples/make/make.sh

clean: ## remove build folders and the demo's output
	rm -rf build out/demo
