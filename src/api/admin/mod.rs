//! Administration: tiers, users, groups, models and everybody's keys. All rules are governance's; this only maps.
pub(super) mod audit;
pub(super) mod keys;
pub(super) mod model_life;
mod model_view;
pub(super) mod models;
pub(super) mod notices;
pub(super) mod prices;
pub(super) mod settings;
pub(super) mod tier_apply;
pub(super) mod tiers;
pub(super) mod tokens;
pub(super) mod users;

pub(crate) use audit::{list_audit, verify_audit};
pub(crate) use keys::{
    bulk_revoke_any, create_key_for, get_any_key, list_all_keys, patch_any_key, revoke_any_key, rotate_any_key,
};
pub(crate) use model_life::{create_model, delete_model, load_model, unload_model};
pub(crate) use model_view::standing;
pub(crate) use models::{get_model, list_models, put_model};
pub(crate) use notices::list_notices;
pub(crate) use prices::{list_prices, put_prices};
pub(crate) use settings::{get_config, put_config};
pub(crate) use tier_apply::apply_tiers;
pub(crate) use tiers::{create_tier, delete_tier, get_tier, list_tiers, put_tier};
pub(crate) use tokens::{list_signing_keys, revoke_tokens_of, rotate_signing_key, withdraw_signing_key};
pub(crate) use users::{create_group, create_user, delete_user, get_user, list_groups, list_users, patch_user};
