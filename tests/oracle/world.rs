//! Whose limits a random history is about: users with keys in one tier, two models, and limits of every kind on them.

use std::sync::Arc;

use millgate::governance::calendar;
use millgate::governance::limits::{Limit, Mode, Resource, Window};
use millgate::governance::ports::{Charge, CounterKey};
use millgate::governance::{KeyId, UserId};
use uuid::Uuid;

use super::random::Random;

const WINDOWS: [&str; 11] = [
    "1m",
    "1m",
    "7s",
    "1s",
    "90s",
    "2h",
    "day",
    "day Europe/Paris",
    "day Asia/Beirut",
    "week Europe/Paris",
    "month America/St_Johns",
];
const SUBJECTS: [&str; 5] = ["", "", "per key", "per tier", "on m1"];
/// A plain noon; shortly before days of 23 and 25 hours; before a day without midnight; at the end of a month and a week.
const STARTS_US: [i64; 5] =
    [1_795_435_200_000_000, 1_774_738_500_000_000, 1_792_878_300_000_000, 1_774_733_400_000_000, 1_793_404_700_000_000];

/// One limit, as a tier or a key would hold it.
struct Rule {
    limit: Limit,
    range: (u64, u64),
}

pub(super) struct World {
    pub(super) start_us: i64,
    rules: Vec<Rule>,
}

/// One of the callers: a user, one of their keys, a model.
#[derive(Clone, Copy)]
pub(super) struct Caller {
    user: u64,
    key: u64,
    model: u64,
}

impl World {
    pub(super) fn random(random: &mut Random) -> Self {
        let mut rules: Vec<Rule> = Vec::new();
        for _ in 0..random.within(1, 6) {
            let rule = random_rule(random);
            if !rules.iter().any(|other| other.limit.same_counter(&rule.limit)) {
                rules.push(rule);
            }
        }
        Self { start_us: *random.pick(&STARTS_US) + random.us(0, 3_000_000), rules }
    }

    /// Changes the amount or the mode of one limit.
    pub(super) fn edit(&mut self, random: &mut Random) {
        let index = usize::try_from(random.within(0, self.rules.len() as u64 - 1)).expect("an index");
        let Rule { limit, range } = &mut self.rules[index];
        if random.percent(70) {
            limit.amount = random.within(range.0, range.1);
        } else {
            limit.mode = *random.pick(&[Mode::Hard, Mode::Soft, Mode::Shadow]);
        }
    }

    pub(super) fn anybody(random: &mut Random) -> Caller {
        Caller { user: random.within(0, 1), key: random.within(0, 1), model: random.within(0, 1) }
    }

    /// Everybody, with every key and for every model.
    pub(super) fn everybody() -> Vec<Caller> {
        let all = (0..8).map(|bits| Caller { user: bits & 1, key: (bits >> 1) & 1, model: bits >> 2 });
        all.collect()
    }

    /// The charges of a request by `caller`, as a plan made at `planned_wall_us` lists them.
    pub(super) fn charges(&self, caller: Caller, planned_wall_us: i64) -> Arc<[Charge]> {
        let model = if caller.model == 0 { "m0" } else { "m1" };
        let key = KeyId::from(format!("key-{}-{}", caller.user, caller.key).as_str());
        let applying = self.rules.iter().filter(|rule| rule.limit.model.as_deref().is_none_or(|only| only == model));
        let charge = |Rule { limit, .. }: &Rule| {
            let user = UserId(Uuid::from_u128(u128::from(caller.user) + 1));
            let bounds = match &limit.window {
                Window::Calendar(period, zone) => Some(calendar::bounds(*period, zone, planned_wall_us)),
                Window::Sliding(_) | Window::Now => None,
            };
            let key = CounterKey::for_subject(limit, user, Some(&key), "tier").expect("every caller has a key");
            Charge { key, hard: (limit.mode == Mode::Hard).then_some(limit.amount), bounds }
        };
        applying.map(charge).collect()
    }
}

fn random_rule(random: &mut Random) -> Rule {
    let resource = *random.pick(&[
        Resource::Requests,
        Resource::Tokens,
        Resource::Tokens,
        Resource::PromptTokens,
        Resource::CompletionTokens,
        Resource::Concurrent,
        Resource::Cost,
    ]);
    let range = match resource {
        Resource::Requests => (1, 12),
        Resource::Concurrent => (1, 8),
        _ if random.percent(10) => (1, 1 << 50),
        _ => (10, 600),
    };
    let window = match resource {
        Resource::Concurrent => String::new(),
        _ => format!("/ {}", random.pick(&WINDOWS)),
    };
    let mode = random.pick(&["", "", "", "soft", "shadow"]);
    let amount = random.within(range.0, range.1);
    // Money is written in dollars and counted in nano-dollars.
    let what = match resource {
        Resource::Cost => format!("{} usd", millgate::governance::pricing::usd(amount)),
        _ => format!("{amount} {}", resource.as_str()),
    };
    let text = format!("{what} {window} {} {mode}", random.pick(&SUBJECTS));
    Rule { limit: text.parse().unwrap_or_else(|error| panic!("{text}: {error}")), range }
}
