//! What one caller may do: the tier their groups give them, the limits that apply, the models they see.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::ops::Deref;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;

use super::attribution::Attribution;
use super::audit::Author;
use super::calendar;
use super::error::{Denied, LimitStanding};
use super::identity::SecretInUse;
use super::limits::{Limit, Mode, Resource, Scope, Window};
use super::notices;
use super::ports::{Charge, Count, CounterKey, PolicyTables, Refusing, Retry};
use super::pricing::{PriceList, PriceRecord};
use super::records::{KeyId, KeyRecord, TierRecord, UserId};
use super::tiers;

/// The group that everybody authenticated is in.
pub const AUTHENTICATED: &str = "system:authenticated";
/// The group that administers this server.
pub const ADMINS: &str = "millgate-admins";

/// By what means a caller proved who they are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Means {
    /// An API key.
    Key,
    /// A short-lived token made here; it makes no other credential.
    Token,
    /// A token of an identity provider.
    Provider {
        /// Whether it opens inference, beside account and administration.
        may_infer: bool,
    },
}

/// Who is calling, and what they may do.
///
/// Cheap to clone: all requests of a caller share what lies behind `person`, at which it can be looked through.
#[derive(Debug, Clone)]
pub struct Principal {
    pub(super) person: Arc<Person>,
    /// Their stable internal id.
    pub user: UserId,
    /// What they came with.
    pub means: Means,
    /// The user's token epoch when they were let in.
    pub(super) epoch: u64,
    /// Of a token of ours: the key that signed it.
    pub(super) signed_with: Option<Arc<str>>,
    /// Of a key, and of a token made with one: with which of its secrets.
    pub(super) secret: Option<SecretInUse>,
    /// Whether they administer this server.
    pub is_admin: bool,
    /// The address this request came from.
    pub address: Option<IpAddr>,
    /// Separates this user's cached prefixes from everybody else's.
    pub(super) cache_salt: [u8; 16],
}

/// The part of a caller that is the same for all their requests under one policy version.
#[derive(Debug)]
pub struct Person {
    /// Their name, for people.
    pub name: Arc<str>,
    /// Their groups, `system:authenticated` included, sorted.
    pub groups: Vec<String>,
    /// The key they came with.
    pub key: Option<KeyId>,
    /// Tier, limits and models.
    pub policy: Policy,
    /// What their usage is reported by.
    pub(super) attribution: Arc<Attribution>,
}

impl Deref for Principal {
    type Target = Person;

    fn deref(&self) -> &Person {
        &self.person
    }
}

impl Principal {
    /// Whether what they came with opens inference at all.
    pub fn may_infer(&self) -> bool {
        !matches!(self.means, Means::Provider { may_infer: false })
    }

    /// How the audit log names them.
    pub fn author(&self) -> Author {
        let user = Some(self.user).filter(|user| !user.0.is_nil());
        Author { user, name: self.name.to_string(), key: self.key.clone(), address: self.address }
    }
}

/// A limit with the words it is called by.
#[derive(Debug)]
struct Named {
    limit: Limit,
    name: Arc<str>,
    window: Arc<str>,
    /// Whose counter it is when it counts per key: the key in use, or the one it comes from.
    key: Option<KeyId>,
}

/// A plan, and the model it is for.
type PlanOf = (Option<Arc<str>>, Arc<Plan>);

/// The rules for one caller at one version.
#[derive(Debug)]
pub struct Policy {
    /// The policy version it was made from.
    pub version: u64,
    /// The tier; `None`: no tier matches, nothing may be used.
    pub tier: Option<Arc<TierRecord>>,
    /// Rank of the tier among all tiers, 0 the lowest.
    pub priority: u8,
    user: UserId,
    models: BTreeSet<Arc<str>>,
    limits: Vec<Arc<Named>>,
    has_model_limits: bool,
    prices: Arc<PriceList>,
    /// One for each model asked for so far that has limits of its own, and one for all others.
    plans: ArcSwap<Vec<PlanOf>>,
}

impl Policy {
    /// Works out what a user in `groups` may do with a key: the first of `lineage`, under the terms of all of it.
    pub(super) fn new(
        tables: &PolicyTables,
        user: UserId,
        groups: &[String],
        lineage: &[KeyRecord],
        instance: &str,
    ) -> Self {
        let tier = tiers::resolve(&tables.tiers, groups, instance).cloned().map(Arc::new);
        let mut limits = Vec::new();
        if let Some(tier) = &tier {
            let in_use = lineage.first().map(|key| &key.id);
            limits.extend(tier.limits.iter().map(|limit| Arc::new(Named::new(&tier.name, limit, in_use))));
            for key in lineage {
                // Children charge the same counters as the key that made them: many of them do not multiply a limit.
                let owner = if Some(&key.id) == in_use { "key" } else { "parent key" };
                limits.extend(key.limits.iter().map(|limit| Arc::new(Named::new(owner, limit, Some(&key.id)))));
            }
        }
        let models = match &tier {
            None => BTreeSet::new(),
            Some(tier) => visible_models(tables, tier, lineage),
        };
        Self {
            version: tables.version,
            priority: tier.as_ref().map_or(0, |tier| tiers::rank(&tables.tiers, tier.level)),
            user,
            has_model_limits: limits.iter().any(|named| named.limit.model.is_some()),
            prices: tables.prices.clone(),
            tier,
            models,
            limits,
            plans: ArcSwap::default(),
        }
    }

    /// The name of the tier.
    pub fn tier_name(&self) -> Option<&str> {
        self.tier.as_ref().map(|tier| tier.name.as_str())
    }

    /// True when requests for `model` are allowed.
    pub fn allows(&self, model: &str) -> bool {
        self.models.contains(model)
    }

    /// The models that are visible, by name.
    pub fn models(&self) -> impl Iterator<Item = &str> {
        self.models.iter().map(AsRef::as_ref)
    }

    /// What tokens of `model` cost now; `None`: nothing.
    pub(super) fn price(&self, model: &str, now_us: i64) -> Option<&PriceRecord> {
        self.prices.at(model, now_us)
    }

    /// The limits that apply, in words.
    pub fn limits(&self) -> impl Iterator<Item = &Limit> {
        self.limits.iter().map(|named| &named.limit)
    }

    /// True when the limits that concern a request are known although its model may not be.
    pub(super) fn is_planned_by(&self, model: Option<&str>) -> bool {
        model.is_some() || !self.has_model_limits
    }

    /// The counters a request for `model` charges; `None`: those of limits over all models.
    pub(super) fn plan(&self, model: Option<&str>, now_us: i64) -> Arc<Plan> {
        let model = model.filter(|_| self.has_model_limits);
        let found = self.plans.load().iter().find(|(of, _)| of.as_deref() == model).map(|(_, plan)| plan.clone());
        if let Some(plan) = found.filter(|plan| (plan.fresh_from_us..plan.fresh_until_us).contains(&now_us)) {
            return plan;
        }
        let plan = Arc::new(self.make_plan(model, now_us));
        self.plans.rcu(|plans| {
            let others = plans.iter().filter(|(of, _)| of.as_deref() != model).cloned();
            others.chain([(model.map(Arc::from), plan.clone())]).collect::<Vec<_>>()
        });
        plan
    }

    fn make_plan(&self, model: Option<&str>, now_us: i64) -> Plan {
        let mut plan =
            Plan { charges: Arc::default(), marks: Vec::new(), fresh_from_us: i64::MIN, fresh_until_us: i64::MAX };
        let mut charges: Vec<Charge> = Vec::new();
        for named in &self.limits {
            let limit = &named.limit;
            if limit.model.is_some() && limit.model.as_deref() != model {
                continue;
            }
            let tier = self.tier_name().unwrap_or_default();
            let Some(key) = CounterKey::for_subject(limit, self.user, named.key.as_ref(), tier) else {
                continue;
            };
            let charge = charges.iter().position(|charge| charge.key == key).unwrap_or_else(|| {
                charges.push(Charge { key, hard: None, bounds: plan.bounds_of(limit, now_us) });
                charges.len() - 1
            });
            if limit.mode == Mode::Hard {
                let hard = &mut charges[charge].hard;
                *hard = Some(hard.map_or(limit.amount, |other| other.min(limit.amount)));
            }
            plan.marks.push(Mark { named: named.clone(), charge });
        }
        plan.charges = charges.into();
        plan
    }
}

fn visible_models(tables: &PolicyTables, tier: &TierRecord, lineage: &[KeyRecord]) -> BTreeSet<Arc<str>> {
    let is_allowed = |model: &str| {
        let lists = lineage.iter().filter_map(|key| key.models.as_ref());
        lists.into_iter().all(|names| names.iter().any(|name| name == model))
    };
    tables
        .models
        .iter()
        .filter(|model| model.published.includes(&tier.name))
        .filter(|model| is_allowed(&model.name))
        .map(|model| model.name.as_str().into())
        .collect()
}

impl Named {
    fn new(owner: &str, limit: &Limit, key: Option<&KeyId>) -> Self {
        Self {
            name: format!("{owner}: {limit}").into(),
            window: limit.window_text().into(),
            limit: limit.clone(),
            key: key.cloned(),
        }
    }
}

/// One limit and the charge it watches; a hard and a soft limit may watch the same one.
#[derive(Debug)]
struct Mark {
    named: Arc<Named>,
    charge: usize,
}

/// The most that a request which is not read yet may turn out to need.
#[derive(Debug, Clone, Copy)]
pub(super) struct Largest {
    pub(super) tokens: u64,
    pub(super) cost_nano_usd: u64,
}

/// The counters one request charges, and the limits that watch them.
#[derive(Debug)]
pub(super) struct Plan {
    pub(super) charges: Arc<[Charge]>,
    marks: Vec<Mark>,
    fresh_from_us: i64,
    fresh_until_us: i64,
}

impl Plan {
    /// The calendar periods of a limit; the plan is good until the first of them ends.
    fn bounds_of(&mut self, limit: &Limit, now_us: i64) -> Option<calendar::Bounds> {
        let Window::Calendar(period, zone) = &limit.window else {
            return None;
        };
        let bounds = calendar::bounds(*period, zone, now_us);
        self.fresh_from_us = self.fresh_from_us.max(bounds.start_us);
        self.fresh_until_us = self.fresh_until_us.min(bounds.end_us);
        Some(bounds)
    }

    /// Where every limit stands, from the counts of its charges.
    pub(super) fn standing(&self, counts: &[Count], now_us: i64) -> Vec<LimitStanding> {
        self.marks.iter().map(|mark| mark.standing(counts[mark.charge], now_us)).collect()
    }

    /// True when a quota is among the limits.
    pub(super) fn has_quotas(&self) -> bool {
        self.marks.iter().any(|mark| notices::is_quota(&mark.named.limit))
    }

    /// Each quota with its name, its charge and its count.
    pub(super) fn quotas<'a>(
        &'a self,
        counts: &'a [Count],
    ) -> impl Iterator<Item = (&'a Limit, &'a str, &'a Charge, Count)> {
        let quotas = self.marks.iter().filter(|mark| notices::is_quota(&mark.named.limit));
        quotas.map(|mark| (&mark.named.limit, &*mark.named.name, &self.charges[mark.charge], counts[mark.charge]))
    }

    /// True when a soft limit is exceeded.
    pub(super) fn is_over_soft(&self, counts: &[Count]) -> bool {
        let mut soft = self.marks.iter().filter(|mark| mark.named.limit.mode == Mode::Soft);
        soft.any(|mark| mark.standing(counts[mark.charge], 0).is_over_soft())
    }

    /// True when no limit on tokens or money can make a request of at most `largest` wait longer than `refusing` does.
    pub(super) fn is_last_word(&self, refusing: &[Refusing], counts: &[Count], largest: Largest) -> bool {
        let wait_us = refusing.iter().map(|one| one.retry.wait_us()).max().unwrap_or(0);
        self.charges.iter().zip(counts).all(|(charge, count)| {
            let needed = match charge.key.resource {
                Resource::Tokens | Resource::PromptTokens | Resource::CompletionTokens => largest.tokens,
                Resource::Cost => largest.cost_nano_usd,
                Resource::Requests | Resource::Concurrent => return true,
            };
            let Some(amount) = charge.hard else { return true };
            let left = amount.saturating_sub(count.used).saturating_sub(count.held);
            left >= needed.min(amount) || count.reset_after_us <= wait_us
        })
    }

    /// The refusal, named after the limit that makes the caller wait longest.
    pub(super) fn denied(&self, refusing: &[Refusing], counts: &[Count], now_us: i64) -> Denied {
        let worst = refusing
            .iter()
            .max_by_key(|one| one.retry.wait_us())
            .expect("a refusal names at least one counter that refused");
        let mark = self
            .marks
            .iter()
            .filter(|mark| mark.charge == worst.charge && mark.named.limit.mode == Mode::Hard)
            .min_by_key(|mark| mark.named.limit.amount)
            .expect("only a hard limit makes a counter refuse");
        let (limit, count) = (&mark.named.limit, counts[worst.charge]);
        Denied {
            reason: limit.resource.exceeded(),
            limit: mark.named.name.clone(),
            resource: limit.resource,
            window: mark.named.window.clone(),
            scope: limit.scope,
            used: count.used + count.held,
            requested: worst.requested,
            retry_after: match worst.retry {
                Retry::After(us) | Retry::Estimate(us) => Some(duration(us)),
                Retry::Never => None,
            },
            is_estimate: matches!(worst.retry, Retry::Estimate(_)),
            standing: self.standing(counts, now_us),
        }
    }
}

impl Plan {
    /// The refusal when nobody can tell where the limits stand.
    pub(super) fn unreachable() -> Denied {
        Denied {
            reason: "limits_unavailable",
            limit: "limits cannot be checked at the moment".into(),
            resource: Resource::Tokens,
            window: "now".into(),
            scope: Scope::User,
            used: 0,
            requested: 0,
            retry_after: Some(Duration::from_secs(1)),
            is_estimate: true,
            standing: Vec::new(),
        }
    }
}

impl Mark {
    fn standing(&self, count: Count, now_us: i64) -> LimitStanding {
        let limit = &self.named.limit;
        LimitStanding {
            limit: self.named.name.clone(),
            resource: limit.resource,
            window: self.named.window.clone(),
            scope: limit.scope,
            mode: limit.mode,
            model: limit.model.clone(),
            is_quota: limit.is_quota(),
            amount: limit.amount,
            used: count.used,
            held: count.held,
            remaining: limit.amount.saturating_sub(count.used).saturating_sub(count.held),
            reset_after: duration(count.reset_after_us),
            reset_at_us: now_us.saturating_add(count.reset_after_us),
        }
    }
}

fn duration(us: i64) -> Duration {
    Duration::from_micros(u64::try_from(us).unwrap_or(0))
}
