//! The one test binary.

mod api_access;
mod api_admin;
mod api_clients;
mod api_config;
mod api_contract;
mod api_cut;
mod api_hostile;
mod api_inference;
mod api_life;
mod api_limits;
mod api_roles;
mod api_tokens;
mod api_usage;
mod api_withdrawal;
mod attacks;
mod audit;
mod blackbox;
mod cli;
mod cli_keys;
mod cli_tiers;
#[cfg(feature = "cuda")]
mod cuda;
#[cfg(feature = "cuda")]
mod cuda_devices;
mod engine;
mod governance;
mod governance_accounts;
mod governance_clock;
mod governance_crash;
mod governance_house;
mod governance_lineage;
mod governance_money;
mod models_at_run_time;
mod oracle;
mod policy_replay;
mod process;
mod reconciliation;
mod source_text;
mod speculation;
mod store_contract;
mod support;
mod tidy;
mod tier_folder;
mod traces;
mod usage_reports;
