//! The one test binary.

mod governance;
mod governance_accounts;
mod governance_house;
mod source_text;
mod store_contract;
mod tidy;
