//! Documents of threshold notices.
#![expect(dead_code, reason = "the fields are read by the derived schemas alone")]

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::shared::Amount;

/// A share of a quota was used up; the webhook gets the same, without `object` and `delivery`.
#[derive(ToSchema)]
pub(crate) struct Notice {
    #[schema(inline)]
    object: NoticeWord,
    /// Of limit, subject, period and threshold: the same again has the same id.
    id: String,
    #[schema(format = DateTime)]
    at: String,
    /// `quota.threshold`
    r#type: String,
    /// The limit in words.
    limit: String,
    resource: String,
    scope: String,
    mode: String,
    /// Whose request reached it.
    user: String,
    user_id: String,
    #[schema(required)]
    key: Option<String>,
    tier: String,
    #[schema(required)]
    model: Option<String>,
    /// Percent of the amount.
    threshold: u8,
    used: Amount,
    amount: Amount,
    #[schema(format = DateTime)]
    period_start: String,
    #[schema(format = DateTime)]
    period_end: String,
    delivery: Delivery,
}

#[derive(ToSchema, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum NoticeWord {
    Notice,
}

/// Whether the webhook was told.
#[derive(ToSchema)]
pub(crate) struct Delivery {
    #[schema(inline)]
    state: DeliveryState,
    attempts: u32,
    #[schema(required)]
    last_error: Option<String>,
}

#[derive(ToSchema, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum DeliveryState {
    /// There was no webhook.
    Unsent,
    Pending,
    Delivered,
    /// It was tried too often.
    Failed,
    /// Too many waited already.
    Dropped,
}
