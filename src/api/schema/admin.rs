//! Documents of administration.
#![expect(dead_code, reason = "the fields are read by the derived schemas alone")]

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::shared::{GivenGroup, GroupName, Limit, LimitInput, Words};

/// A tier: who belongs to it and what they may use.
#[derive(ToSchema)]
pub(crate) struct Tier {
    #[schema(inline)]
    object: TierWord,
    name: String,
    display_name: String,
    description: String,
    /// Of several tiers that hold a user's groups, the highest level wins.
    #[schema(maximum = 2_147_483_647)]
    level: u32,
    groups: Vec<String>,
    /// Empty: unlimited.
    limits: Vec<Limit>,
    /// Share of the engine against other tiers.
    weight: u32,
    /// Who declared it: the API, a file, or a ConfigMap.
    origin: String,
}

#[derive(ToSchema, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum TierWord {
    Tier,
}

/// A new tier.
#[derive(ToSchema)]
pub(crate) struct NewTier {
    /// Made from the display name when absent; it cannot be changed later.
    #[schema(example = "gold", max_length = 253, pattern = "^[a-z0-9]([-a-z0-9]*[a-z0-9])?$")]
    name: Option<String>,
    #[schema(example = "Gold")]
    display_name: Option<Words>,
    #[schema(max_length = 2000)]
    description: Option<String>,
    #[schema(maximum = 2_147_483_647, example = 3)]
    level: u32,
    /// At least one.
    #[schema(min_items = 1, example = json!(["gold-users"]))]
    groups: Vec<GroupName>,
    /// Absent: those of `tiers.new_limits` of the configuration. Empty: unlimited.
    limits: Option<Vec<LimitInput>>,
    /// Share of the engine against other tiers; 1 when absent.
    #[schema(minimum = 1, maximum = 1000)]
    weight: Option<u32>,
}

/// Fields of a tier to change.
#[derive(ToSchema)]
pub(crate) struct TierChange {
    display_name: Option<Words>,
    #[schema(max_length = 2000)]
    description: Option<String>,
    #[schema(maximum = 2_147_483_647)]
    level: Option<u32>,
    #[schema(min_items = 1)]
    groups: Option<Vec<GroupName>>,
    /// Takes the place of all limits; empty: unlimited.
    limits: Option<Vec<LimitInput>>,
    #[schema(minimum = 1, maximum = 1000)]
    weight: Option<u32>,
}

/// A tier that is or would be deleted, and who is affected.
#[derive(ToSchema)]
pub(crate) struct DeletedTier {
    #[serde(flatten)]
    tier: Tier,
    /// False in a dry run.
    deleted: bool,
    /// The first thousand.
    affected: Vec<Affected>,
    affected_count: u64,
    /// Models that were published to it.
    models: Vec<String>,
}

/// A file of tiers, as it is.
#[derive(ToSchema)]
pub(crate) struct TierFile {
    /// Tiers in Millgate's own format, or the ConfigMap `tier-to-group-mapping`.
    #[schema(example = "tiers:\n  - {name: gold, level: 3, groups: [gold-users], limits: [5 requests / 2m]}\n")]
    content: String,
    #[schema(inline)]
    format: Option<TierFileFormat>,
}

#[derive(ToSchema, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum TierFileFormat {
    Yaml,
    Json,
    Toml,
}

/// What applying a file of tiers did, or would do.
#[derive(ToSchema)]
pub(crate) struct TierPlan {
    #[schema(inline)]
    object: TierPlanWord,
    dry_run: bool,
    created: Vec<Tier>,
    updated: Vec<UpdatedTier>,
    deleted: Vec<DeletedTier>,
}

#[derive(ToSchema, Serialize, Deserialize)]
enum TierPlanWord {
    #[serde(rename = "tier.plan")]
    TierPlan,
}

/// A tier that a file changes.
#[derive(ToSchema)]
pub(crate) struct UpdatedTier {
    before: Tier,
    after: Tier,
}

/// Somebody whose tier changes.
#[derive(ToSchema)]
pub(crate) struct Affected {
    user: String,
    /// `null`: no tier is left for them.
    #[schema(required)]
    falls_to: Option<String>,
}

/// A user.
#[derive(ToSchema)]
pub(crate) struct User {
    #[schema(inline)]
    object: UserWord,
    id: String,
    name: String,
    /// `local`, or who vouches for them: an identity provider, or `kubernetes`.
    issuer: String,
    groups: Vec<String>,
    active: bool,
    #[schema(format = DateTime)]
    created_at: String,
}

#[derive(ToSchema, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum UserWord {
    User,
}

/// A new user.
#[derive(ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct NewUser {
    #[schema(min_length = 1, max_length = 128, pattern = "^[A-Za-z0-9._@+:-]+$", example = "ann")]
    name: String,
    groups: Option<Vec<GivenGroup>>,
}

/// Fields of a user to change.
#[derive(ToSchema)]
pub(crate) struct UserChange {
    groups: Option<Vec<GivenGroup>>,
    /// A user who is not active is refused with every key.
    active: Option<bool>,
}

/// A user who was deleted; the keys are revoked.
#[derive(ToSchema)]
pub(crate) struct DeletedUser {
    #[serde(flatten)]
    user: User,
    deleted: bool,
}

/// A key that signs tokens, or did and still verifies; never its secret.
#[derive(ToSchema)]
pub(crate) struct SigningKey {
    #[schema(inline)]
    object: SigningKeyWord,
    /// The `kid` of tokens.
    id: String,
    #[schema(inline)]
    status: SigningKeyStatus,
    #[schema(format = DateTime)]
    created_at: String,
    #[schema(required, format = DateTime)]
    retired_at: Option<String>,
}

#[derive(ToSchema, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum SigningKeyWord {
    SigningKey,
}

#[derive(ToSchema, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum SigningKeyStatus {
    Active,
    Retired,
}

/// A group that is known.
#[derive(ToSchema)]
pub(crate) struct Group {
    #[schema(inline)]
    object: GroupWord,
    name: String,
}

#[derive(ToSchema, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum GroupWord {
    Group,
}

/// A group to pick from.
#[derive(ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct NewGroup {
    #[schema(
        min_length = 1,
        max_length = 253,
        pattern = "^(?!system:)[^\\s\\u0000-\\u001f\\u007f-\\u009f]([^\\u0000-\\u001f\\u007f-\\u009f]*[^\\s\\u0000-\\u001f\\u007f-\\u009f])?$",
        example = "premium-users"
    )]
    name: String,
}
