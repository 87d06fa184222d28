//! The documents of the HTTP contract as types of the OpenAPI document; what is really sent is checked against them.
mod account;
mod admin;
mod audit;
mod keys;
mod models;
mod notices;
mod openai;
mod operations;
mod reconciliation;
mod settings;
mod shared;
mod simulation;
mod usage;

pub(crate) use account::{IssuedToken, Jwks, LookedUpTier, Me, NewToken, TierLookup};
pub(crate) use admin::{
    DeletedTier, DeletedUser, Group, NewGroup, NewTier, NewUser, SigningKey, Tier, TierChange, TierFile, TierPlan,
    User, UserChange,
};
pub(crate) use audit::{AuditRow, AuditVerdict};
pub(crate) use keys::{
    BulkRevocation, IssuedKey, Key, KeyChange, KeyQuery, KeySort, NewKey, NewKeyFor, RevokeMany, Rotation, SortOrder,
};
pub(crate) use models::{DeletedModel, Model, ModelChange, NewModel};
pub(crate) use notices::Notice;
pub(crate) use openai::{ChatCompletion, ChatRequest, CompletionRequest, ModelCard, ModelCards, TextCompletion};
pub(crate) use operations::{Health, HealthDetails};
pub(crate) use reconciliation::Reconciliation;
pub(crate) use settings::{ServerSettings, SettingsChange};
pub(crate) use shared::{ErrorBody, Listed, Moment, PageQuery};
pub(crate) use simulation::{NewSimulation, Simulation};
pub(crate) use usage::{
    Bucket, CompletionsGroup, CompletionsPage, CostsGroup, CostsPage, DayBucket, NewPrices, Price, ReportFormat,
    UsageReport, UserId,
};
