//! Documents of the caller's own things.
#![expect(dead_code, reason = "the fields are read by the derived schemas alone")]

use utoipa::ToSchema;

use super::shared::{Amount, Mode, Resource, Scope};

/// Who the caller is and what is left.
#[derive(ToSchema)]
pub(crate) struct Me {
    user: String,
    groups: Vec<String>,
    /// `null`: no tier holds any of the groups.
    #[schema(required)]
    tier: Option<String>,
    #[schema(required)]
    tier_display_name: Option<String>,
    is_admin: bool,
    limits: Vec<Standing>,
    models: Vec<String>,
}

/// One limit and how much of it is used.
#[derive(ToSchema)]
pub(crate) struct Standing {
    /// The limit in words.
    limit: String,
    resource: Resource,
    amount: Amount,
    window: String,
    scope: Scope,
    mode: Mode,
    #[schema(required)]
    model: Option<String>,
    used: Amount,
    /// Reserved by requests in flight.
    held: Amount,
    remaining: Amount,
    /// The highest threshold of a quota that is reached, in percent.
    #[schema(required)]
    notice: Option<u8>,
    /// When it is whole again, in seconds since the Unix epoch.
    reset: i64,
    reset_after_ms: u64,
}

/// What a new token should be.
#[derive(ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct NewToken {
    /// `10m` to `24h`; `4h` when absent.
    #[schema(pattern = "^[0-9]+[smhd]$", example = "4h")]
    expiration: Option<String>,
    /// What it is for.
    #[schema(
        min_length = 1,
        max_length = 100,
        pattern = "^[^\\u0000-\\u001f\\u007f-\\u009f]*[^\\s\\u0000-\\u001f\\u007f-\\u009f][^\\u0000-\\u001f\\u007f-\\u009f]*$"
    )]
    name: Option<String>,
}

/// A token just made, which is shown here and never again.
#[derive(ToSchema)]
pub(crate) struct IssuedToken {
    /// A JWT.
    token: String,
    #[schema(format = DateTime)]
    expires_at: String,
    /// Its id.
    jti: String,
    #[schema(required)]
    name: Option<String>,
}

/// Public keys that verify tokens, as RFC 7517 has them.
#[derive(ToSchema)]
pub(crate) struct Jwks {
    keys: Vec<Jwk>,
}

/// One of them.
#[derive(ToSchema)]
pub(crate) struct Jwk {
    kty: String,
    crv: String,
    #[schema(rename = "use")]
    purpose: String,
    alg: String,
    kid: String,
    x: String,
}

/// Groups whose tier is wanted.
#[derive(ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct TierLookup {
    #[schema(min_items = 1, example = json!(["premium-users"]))]
    groups: Vec<String>,
}

/// The tier that members of some groups get.
#[derive(ToSchema)]
pub(crate) struct LookedUpTier {
    tier: String,
    display_name: String,
    /// The same, as clients of the replaced service read it.
    #[schema(rename = "displayName")]
    display_name_in_camel_case: String,
    level: u32,
}
