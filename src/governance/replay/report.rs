//! What a replay found: who would have been refused or cut short, when, by which limit, and what that would have saved.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use uuid::Uuid;

use crate::governance::records::{LedgerRecord, UserId};

/// What no replay can know, for people to read beside the figures.
pub const UNKNOWN: &[&str] = &[
    "a refused client would have tried again later: each request is played once, at the time it came",
    "requests that were refused then are not on the ledger: what looser limits would have let in is not seen",
    "how much an answer was allowed to use is not on the ledger: played is what it did use, so a limit may refuse a little more than shown",
    "an answer that was granted tokens in one block is refused when they do not fit, one in several blocks is cut short",
    "each request counts as one sequence for limits on concurrency, and requests that failed do not count at all",
];

/// Users listed at most; the sums are over all of them.
const USERS_SHOWN: usize = 10_000;

/// Requests with their tokens and money.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Amounts {
    /// Requests.
    pub requests: u64,
    /// Prompt and completion tokens.
    pub tokens: u64,
    /// Money.
    pub cost_nano_usd: u64,
}

impl Amounts {
    fn add(&mut self, other: Self) {
        self.requests += other.requests;
        self.tokens += other.tokens;
        self.cost_nano_usd += other.cost_nano_usd;
    }
}

/// How requests fared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Verdicts {
    /// What was asked and served in truth.
    pub recorded: Amounts,
    /// Requests that would have been refused.
    pub refused: u64,
    /// Answers that would have been cut short.
    pub cut: u64,
    /// Requests that would have been over a soft limit.
    pub slowed: u64,
    /// What would not have been served.
    pub saved: Amounts,
}

impl Verdicts {
    fn add(&mut self, other: &Self) {
        self.recorded.add(other.recorded);
        self.refused += other.refused;
        self.cut += other.cut;
        self.slowed += other.slowed;
        self.saved.add(other.saved);
    }
}

/// One user in one tier, as it was and as it would be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UserLine {
    /// Who.
    pub user: UserId,
    /// Their name at that time.
    pub name: String,
    /// The tier on the ledger.
    pub tier_before: String,
    /// The tier they would be in; `None`: in none.
    pub tier_after: Option<String>,
    /// How their requests fared.
    pub verdicts: Verdicts,
    /// The first request that would have been refused or cut short.
    pub first_us: Option<i64>,
    /// The last one.
    pub last_us: Option<i64>,
}

/// One limit.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct LimitLine {
    /// Requests it would have refused.
    pub refused: u64,
    /// Answers it would have cut short.
    pub cut: u64,
    /// What that would have saved.
    pub saved: Amounts,
}

/// One request that would have been refused or cut short.
#[derive(Debug, Clone, PartialEq)]
pub struct Case {
    /// When.
    pub at_us: i64,
    /// Which.
    pub request: Uuid,
    /// Whose.
    pub user: String,
    /// The tier they would be in.
    pub tier: Option<String>,
    /// For which model.
    pub model: String,
    /// By which limit, or why else.
    pub limit: Arc<str>,
    /// True when it would have begun and been cut short.
    pub is_cut: bool,
    /// Tokens that would not have been served.
    pub saved_tokens: u64,
    /// How long it would have been asked to wait; `None`: waiting does not help.
    pub retry_after: Option<Duration>,
}

/// What a replay found.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Report {
    /// The new tiers are in force from here on.
    pub from_us: i64,
    /// Up to here, exclusive.
    pub to_us: i64,
    /// Over all users.
    pub total: Verdicts,
    /// Requests that failed; nothing was charged for them and they were not played.
    pub failed: u64,
    /// Earlier requests that still counted on a limit when the new tiers came into force.
    pub counted_before: u64,
    /// Requests whose groups are not on record; they keep the tier of that name.
    pub unknown_groups: u64,
    /// By tier as it would be; the empty name: in none.
    pub tiers: BTreeMap<String, Verdicts>,
    /// Users, those with most refusals first.
    pub users: Vec<UserLine>,
    /// Users that are not listed.
    pub users_left_out: u64,
    /// By limit, or why else.
    pub limits: BTreeMap<Arc<str>, LimitLine>,
    /// The first of those that would have been refused or cut short.
    pub cases: Vec<Case>,
    /// How many more there are.
    pub cases_left_out: u64,
}

/// How one request fared.
pub(super) enum Verdict {
    Served,
    Refused { limit: Arc<str>, retry_after: Option<Duration> },
    Cut { limit: Arc<str>, retry_after: Option<Duration>, at_us: i64, saved: Amounts },
}

/// A report while it is put together.
pub(super) struct Tally {
    pub(super) report: Report,
    users: HashMap<(UserId, String, Option<String>), UserLine>,
    cases_max: usize,
}

impl Tally {
    pub(super) fn new(from_us: i64, to_us: i64, cases_max: usize) -> Self {
        Self { report: Report { from_us, to_us, ..Report::default() }, users: HashMap::new(), cases_max }
    }

    /// Notes how one request fared.
    pub(super) fn note(&mut self, row: &LedgerRecord, tier: Option<&str>, is_slowed: bool, verdict: Verdict) {
        let request = &row.request;
        let recorded = Amounts { requests: 1, tokens: row.usage.total_tokens(), cost_nano_usd: row.cost_nano_usd };
        let mut verdicts = Verdicts { recorded, slowed: u64::from(is_slowed), ..Verdicts::default() };
        let (limit, retry_after, at_us) = match verdict {
            Verdict::Served => return self.add(row, tier, &verdicts, None),
            Verdict::Refused { limit, retry_after } => {
                (verdicts.refused, verdicts.saved) = (1, recorded);
                (limit, retry_after, request.admitted_at_us)
            }
            Verdict::Cut { limit, retry_after, at_us, saved } => {
                (verdicts.cut, verdicts.saved) = (1, saved);
                (limit, retry_after, at_us)
            }
        };
        let line = self.report.limits.entry(limit.clone()).or_default();
        line.refused += verdicts.refused;
        line.cut += verdicts.cut;
        line.saved.add(verdicts.saved);
        if self.report.cases.len() < self.cases_max {
            self.report.cases.push(Case {
                at_us,
                request: request.id,
                user: request.user_name.clone(),
                tier: tier.map(str::to_owned),
                model: request.model.clone(),
                limit,
                is_cut: verdicts.cut > 0,
                saved_tokens: verdicts.saved.tokens,
                retry_after,
            });
        } else {
            self.report.cases_left_out += 1;
        }
        self.add(row, tier, &verdicts, Some(at_us));
    }

    fn add(&mut self, row: &LedgerRecord, tier: Option<&str>, verdicts: &Verdicts, at_us: Option<i64>) {
        self.report.total.add(verdicts);
        let request = &row.request;
        let line = self.users.entry((request.user, request.tier.clone(), tier.map(str::to_owned)));
        let line = line.or_insert_with(|| UserLine {
            user: request.user,
            name: String::new(),
            tier_before: request.tier.clone(),
            tier_after: tier.map(str::to_owned),
            verdicts: Verdicts::default(),
            first_us: None,
            last_us: None,
        });
        line.name.clone_from(&request.user_name);
        line.verdicts.add(verdicts);
        line.first_us = line.first_us.min(at_us).or(line.first_us).or(at_us);
        line.last_us = line.last_us.max(at_us);
    }

    /// The report in order.
    pub(super) fn finish(self) -> Report {
        let Self { mut report, users, .. } = self;
        let mut users: Vec<UserLine> = users.into_values().collect();
        for line in &users {
            let tier = line.tier_after.clone().unwrap_or_default();
            report.tiers.entry(tier).or_default().add(&line.verdicts);
        }
        let weight = |line: &UserLine| {
            std::cmp::Reverse((line.verdicts.refused + line.verdicts.cut, line.verdicts.saved.tokens))
        };
        users.sort_by(|a, b| {
            (weight(a), &a.name, a.user, &a.tier_before, &a.tier_after).cmp(&(
                weight(b),
                &b.name,
                b.user,
                &b.tier_before,
                &b.tier_after,
            ))
        });
        report.users_left_out = users.len().saturating_sub(USERS_SHOWN) as u64;
        users.truncate(USERS_SHOWN);
        report.users = users;
        report.cases.sort_by_key(|case| (case.at_us, case.request));
        report
    }
}
