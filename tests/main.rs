//! The one test binary.

mod cli;
mod governance;
mod governance_accounts;
mod governance_crash;
mod governance_house;
mod source_text;
mod store_contract;
mod tidy;
