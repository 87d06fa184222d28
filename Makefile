# Millgate's everyday commands. `make serve` needs Rust and a C compiler; `make test` also Python 3 (with venv) and Node.
TARGET_DIR := $(or $(CARGO_TARGET_DIR),target)
MILLGATE   := $(TARGET_DIR)/release/millgate
# Arguments for the program: make serve ARGS="--model qwen=hf:Qwen/Qwen3-0.6B"
ARGS       ?=
SHAPE      ?= 8b

.DEFAULT_GOAL := help
.PHONY: help serve build test check fmt bench oracle rivals schemathesis parity demo cuda-toolkit cuda check-cuda cuda-report gpu-bundle test-gpu bench-gpu clean

help: ## This list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' Makefile

serve: build ## Build the release binary and serve the bundled demo model
	@$(MILLGATE) serve $(ARGS)

build: ## Build the release binary
	cargo build --release --bin millgate

test: ## Everything: unit, property, integration and the official OpenAI clients
	bash tests/clients/install.sh
	bash tests/schemathesis/install.sh
	cargo test --workspace

check: ## Formatting, lints and documentation, all warnings as errors
	cargo fmt --all --check
	cargo clippy --workspace --all-targets -- -D warnings
	RUSTDOCFLAGS="-D warnings" cargo doc --workspace --no-deps

fmt: ## Format the code
	cargo fmt --all

bench: build ## Micro-benchmarks, then a serving benchmark against the demo model
	cargo bench --workspace
	bash benches/serving.sh $(MILLGATE) $(ARGS)

oracle: ## A million random operations on the counters against a brute-force oracle (make test plays ten thousand)
	MILLGATE_ORACLE_OPERATIONS=1000000 cargo test --release --workspace --test integration -- oracle::

rivals: ## Millgate's limiter beside limitador and governor: decisions a second, tokens overshot
	cargo run --release --manifest-path benches/rivals/Cargo.toml

schemathesis: ## The API against its OpenAPI document, boundaries and random requests (MAX_EXAMPLES=10 an operation)
	bash tests/schemathesis/install.sh
	cargo build --bin millgate
	tests/schemathesis/.venv/bin/python tests/schemathesis/run.py $(TARGET_DIR)/debug/millgate

parity: ## Make the expected outputs of the model tests again (needs Python; downloads PyTorch)
	bash models/scripts/parity.sh

demo: ## Make the demo model again: corpus, tokenizer, training (needs Python; downloads PyTorch)
	bash models/demo/make.sh

cuda-toolkit: ## Install the CUDA compiler in a cache outside the tree (needs Python; 105 MB), and say where it is
	@bash scripts/cuda-toolkit.sh

cuda: ## Build the release binary for NVIDIA GPUs (no GPU needed; it starts without one, too)
	CUDA_HOME="$$(bash scripts/cuda-toolkit.sh)" cargo build --release --features cuda --bin millgate

check-cuda: ## Compile, lint and test the CUDA half on an emulated GPU
	bash scripts/check-cuda.sh

cuda-report: ## Registers and spills of every CUDA kernel, for newer cards too, into docs/cuda-performance.md
	bash scripts/cuda-report.sh

gpu-bundle: ## Build what test-gpu and bench-gpu run, for a machine without cargo: target/gpu.tar.xz
	bash scripts/gpu-bundle.sh

test-gpu: ## Run the CUDA half's tests on this machine's GPU
	bash scripts/test-gpu.sh

bench-gpu: ## Speed of a random-weight model on this machine's GPU: make bench-gpu SHAPE=8b (0.6b, 1b, 8b)
	bash scripts/bench-gpu.sh $(SHAPE)

clean: ## Remove build outputs, never data
	cargo clean
