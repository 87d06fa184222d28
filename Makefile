# Millgate's everyday commands. `make serve` needs Rust and a C compiler; `make test` also Python 3 (with venv) and Node.
TARGET_DIR := $(or $(CARGO_TARGET_DIR),target)
MILLGATE   := $(TARGET_DIR)/release/millgate
# Arguments for the program: make serve ARGS="--model qwen=hf:Qwen/Qwen3-0.6B"
ARGS       ?=

.DEFAULT_GOAL := help
.PHONY: help serve build test check fmt bench oracle rivals parity demo cuda-toolkit clean

help: ## This list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' Makefile

serve: build ## Build the release binary and serve the bundled demo model
	@$(MILLGATE) serve $(ARGS)

build: ## Build the release binary
	cargo build --release --bin millgate

test: ## Everything: unit, property, integration and the official OpenAI clients
	bash tests/clients/install.sh
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

parity: ## Make the expected outputs of the model tests again (needs Python; downloads PyTorch)
	bash models/scripts/parity.sh

demo: ## Make the demo model again: corpus, tokenizer, training (needs Python; downloads PyTorch)
	bash models/demo/make.sh

cuda-toolkit: ## Install the CUDA compiler in a cache outside the tree (needs Python; 105 MB), and say where it is
	@bash scripts/cuda-toolkit.sh

clean: ## Remove build outputs, never data
	cargo clean
