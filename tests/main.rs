//! The one test binary.

mod api_access;
mod api_admin;
mod api_clients;
mod api_contract;
mod api_cut;
mod api_hostile;
mod api_inference;
mod api_life;
mod api_limits;
mod audit;
mod blackbox;
mod cli;
mod engine;
mod governance;
mod governance_accounts;
mod governance_clock;
mod governance_crash;
mod governance_house;
mod models_at_run_time;
mod oracle;
mod process;
mod source_text;
mod store_contract;
mod support;
mod tidy;
mod tier_folder;
