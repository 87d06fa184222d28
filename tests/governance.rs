//! Admission as a client meets it: exact limits, truthful waits, exactly one ledger row, whatever happens in between.

use std::sync::Arc;
use std::time::Duration;

use millgate::governance::ports::Extent;
use millgate::governance::pricing::Price;
use millgate::governance::{
    CompletionCap, Config, Denied, ManualClock, NewKey, NewPrice, Permit, Principal, Refusal, Status, Usage,
};
use proptest::prelude::*;

use crate::governance_house::{House, MINUTE_US, NOON_US, ask, used, with_cap};

fn denied(refusal: Refusal) -> Denied {
    match refusal {
        Refusal::Denied(denied) => *denied,
        other => panic!("not a limit: {other}"),
    }
}

async fn refused(house: &House, who: &Principal, prompt: u64, max: u64) -> Denied {
    denied(house.governor.admit(who, ask(prompt, max)).await.expect_err("refused"))
}

async fn admitted(house: &House, who: &Principal, prompt: u64, max: u64) -> Permit {
    house.governor.admit(who, ask(prompt, max)).await.expect("admitted")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn sixty_four_parallel_requests_never_charge_more_than_the_hundred_tokens_of_the_minute() {
    let house = Arc::new(House::new().await);
    let who = house.limited(&["100 tokens / 1m"]).await;
    let mut given = Usage::default();
    let mut requests = 0;
    for round in 0..3 {
        let mut tasks = tokio::task::JoinSet::new();
        for i in 0..64u64 {
            let (house, who) = (house.clone(), who.clone());
            tasks.spawn(async move {
                let permit = house.governor.admit(&who, ask(7, 5 + i % 9)).await.ok()?;
                permit.durable().await.expect("durable");
                let usage = used(7, (i + round) % 5);
                permit.settle(usage, Status::Completed).await.expect("settled");
                Some(usage)
            });
        }
        let mut this_minute = 0;
        for usage in tasks.join_all().await.into_iter().flatten() {
            requests += 1;
            this_minute += usage.total_tokens();
            given.prompt_tokens += usage.prompt_tokens;
            given.completion_tokens += usage.completion_tokens;
        }
        assert!(this_minute <= 100, "{this_minute} in one minute");
        assert!(this_minute > 0, "somebody got through");
        house.clock.advance(Duration::from_secs(62));
    }
    assert_eq!(house.ledger().await, (requests, given));
    assert!(house.counters_are_at_rest());
}

#[tokio::test]
async fn a_refused_request_passes_exactly_after_retry_after_and_not_a_microsecond_before() {
    let house = House::new().await;
    let who = house.limited(&["100 tokens / 1m", "1000 requests / 1h"]).await;
    admitted(&house, &who, 40, 20).await.settle(used(40, 20), Status::Completed).await.expect("settled");
    house.clock.advance(Duration::from_millis(12_345));
    admitted(&house, &who, 30, 10).await.settle(used(30, 10), Status::Completed).await.expect("settled");
    let denied = refused(&house, &who, 50, 10).await;
    assert_eq!(denied.reason, "tokens_exceeded");
    assert_eq!(&*denied.limit, "tight: 100 tokens / 1m");
    assert_eq!((denied.used, denied.requested), (100, 60));
    let wait = denied.retry_after.expect("a wait");
    house.clock.advance(wait - Duration::from_micros(1));
    let earlier = refused(&house, &who, 50, 10).await;
    assert_eq!(earlier.retry_after, Some(Duration::from_micros(1)));
    house.clock.advance_us(1);
    drop(admitted(&house, &who, 50, 10).await);
}

#[tokio::test]
async fn what_was_not_used_is_free_again_at_once() {
    let house = House::new().await;
    let who = house.limited(&["100 tokens / 1m", "3 requests / 1m"]).await;
    let permit = admitted(&house, &who, 10, 90).await;
    assert_eq!(house.standing(&who).await, [(0, 100), (0, 1)]);
    assert_eq!(permit.allowance(), 90);
    permit.settle(used(10, 7), Status::Completed).await.expect("settled");
    assert_eq!(house.standing(&who).await, [(17, 0), (1, 0)]);
    let permit = admitted(&house, &who, 10, 73).await;
    permit.settle(used(10, 73), Status::Failed).await.expect("settled");
    assert_eq!(house.standing(&who).await, [(17, 0), (1, 0)], "a failed answer costs nothing, not even the request");
    assert_eq!(house.ledger().await, (1, used(10, 7)));
    let rows = house.records.ledger_since(0).await.expect("rows");
    assert_eq!(rows.iter().filter(|row| row.status == Status::Failed).count(), 1, "its row is kept");
}

#[tokio::test]
async fn a_refusal_consumes_nothing_on_any_limit() {
    let house = House::new().await;
    let who = house.limited(&["100 requests / 1m", "50 tokens / 1m", "4 concurrent"]).await;
    let before = house.standing(&who).await;
    let denied = refused(&house, &who, 10, 41).await;
    assert_eq!(denied.retry_after, None, "51 tokens never fit into 50");
    assert_eq!(house.standing(&who).await, before);
    assert_eq!(denied.standing.len(), 3);
}

#[tokio::test]
async fn of_several_limits_that_refuse_the_longest_wait_is_told() {
    let house = House::new().await;
    let who = house.limited(&["1 requests / 1m", "1 requests / 1h", "1 requests / day"]).await;
    drop(admitted(&house, &who, 1, 1).await);
    let denied = refused(&house, &who, 1, 1).await;
    assert_eq!(&*denied.limit, "tight: 1 requests / day");
    assert_eq!(denied.retry_after, Some(Duration::from_secs(12 * 3600)), "it is noon");
}

#[tokio::test]
async fn a_dropped_permit_settles_with_what_was_reported_last() {
    let house = House::new().await;
    let who = house.limited(&["1000 tokens / 1m"]).await;
    let permit = admitted(&house, &who, 10, 500).await;
    permit.progress(used(10, 3));
    permit.progress(used(10, 77));
    drop(permit);
    house.governor.shutdown().await;
    assert_eq!(house.standing(&who).await, [(87, 0)]);
    let rows = house.records.ledger_since(0).await.expect("rows");
    assert_eq!((rows.len(), rows[0].status, rows[0].usage), (1, Status::Aborted, used(10, 77)));
}

#[tokio::test]
async fn an_open_answer_takes_what_is_left_and_extends_until_the_limit_says_stop() {
    let house = House::new().await;
    let who = house.limited(&["700 tokens / 1m"]).await;
    let open = || with_cap(100, 1, CompletionCap::Open { most: 4000 });
    let mut permit = house.governor.admit(&who, open()).await.expect("admitted");
    assert_eq!(permit.allowance(), 256);
    assert_eq!(permit.extend(256).await.expect("granted"), 256);
    assert_eq!(permit.extend(256).await.expect("the rest"), 88);
    let denied = permit.extend(256).await.expect_err("nothing left");
    assert!(denied.retry_after.expect("a wait") <= Duration::from_secs(61));
    house.clock.advance(Duration::from_secs(61));
    assert_eq!(permit.extend(256).await.expect("the minute is over"), 256);
    permit.settle(used(100, 700), Status::LimitReached).await.expect("settled");
    // 600 charged in the first minute have left; 100 of the second are used, 156 were given back.
    assert_eq!(house.standing(&who).await, [(100, 0)]);
    assert_eq!(house.ledger().await, (1, used(100, 700)));
}

#[tokio::test]
async fn an_open_answer_needs_one_token_for_every_sequence() {
    let house = House::new().await;
    let who = house.limited(&["100 tokens / 1m"]).await;
    let three = |prompt| with_cap(prompt, 3, CompletionCap::Open { most: 4000 });
    let refusal = house.governor.admit(&who, three(98)).await.expect_err("98 + 3");
    assert_eq!(denied(refusal).requested, 101);
    assert_eq!(house.governor.admit(&who, three(97)).await.expect("97 + 3").allowance(), 3);
}

#[tokio::test]
async fn sequences_in_flight_are_counted_and_released() {
    let house = House::new().await;
    let who = house.limited(&["4 concurrent"]).await;
    let four = house.governor.admit(&who, with_cap(1, 4, CompletionCap::Explicit(1))).await.expect("four");
    let denied = refused(&house, &who, 1, 1).await;
    assert_eq!((denied.reason, denied.is_estimate), ("concurrency_exceeded", true));
    assert_eq!(denied.retry_after, Some(Duration::from_secs(1)));
    four.settle(used(1, 1), Status::Completed).await.expect("settled");
    drop(admitted(&house, &who, 1, 1).await);
}

#[tokio::test]
async fn soft_limits_lower_the_weight_and_shadow_limits_only_count() {
    let house = House::new().await;
    let who = house.limited(&["10 tokens / 1m soft", "5 tokens / 1m shadow", "1000 tokens / 1m"]).await;
    assert_eq!(who.policy.tier.as_ref().map(|tier| tier.weight), Some(1), "the lightest there is");
    let light = admitted(&house, &who, 4, 4).await;
    let heavy = admitted(&house, &who, 4, 4).await;
    assert_eq!((light.scheduling().weight, heavy.scheduling().weight), (8, 1), "it has an eighth, too");
    assert_eq!(house.standing(&who).await, [(0, 16), (0, 16), (0, 16)], "three limits on one counter count once");
}

#[tokio::test]
async fn a_daily_quota_ends_at_midnight_of_its_zone_and_a_stream_over_midnight_pays_the_day_it_began() {
    let house = House::new().await;
    let who = house.limited(&["100 tokens / day Asia/Tokyo"]).await;
    let permit = admitted(&house, &who, 50, 50).await;
    let denied = refused(&house, &who, 1, 0).await;
    let wait = denied.retry_after.expect("a wait");
    assert_eq!(wait, Duration::from_secs(3 * 3600), "noon in London is 21:00 in Tokyo");
    house.clock.advance(wait);
    let today = admitted(&house, &who, 60, 0).await;
    permit.settle(used(50, 10), Status::Completed).await.expect("settled");
    today.settle(used(60, 0), Status::Completed).await.expect("settled");
    assert_eq!(house.standing(&who).await, [(60, 0)], "yesterday's stream does not touch today's quota");
}

#[tokio::test]
async fn editing_an_amount_and_moving_between_tiers_keeps_what_was_used() {
    let house = House::new().await;
    let (who, key) = house.limited_with_key(&["100 tokens / 1m"]).await;
    admitted(&house, &who, 60, 0).await.settle(used(60, 0), Status::Completed).await.expect("settled");
    house.set_limits("tight", &["50 tokens / 1m"]).await;
    let who = house.authenticate(&key).await.expect("still valid");
    assert!(refused(&house, &who, 1, 0).await.retry_after.is_some());
    let operator = house.governor.operator();
    house.set_limits("premium", &["70 tokens / 60s"]).await;
    let patch = millgate::governance::UserPatch { groups: Some(vec!["premium-users".into()]), active: None };
    house.governor.update_user(&operator, "ann", patch).await.expect("moved");
    let who = house.authenticate(&key).await.expect("still valid");
    assert_eq!(who.policy.tier_name(), Some("premium"));
    assert_eq!(house.standing(&who).await, [(60, 0)]);
}

#[tokio::test]
async fn a_restart_forgets_nothing_that_still_counts() {
    let house = House::new().await;
    let limits = ["100 tokens / 1m", "1000 tokens / 1h", "10000 tokens / month", "9 requests / day", "5 concurrent"];
    let (who, key) = house.limited_with_key(&limits).await;
    for _ in 0..3 {
        let permit = admitted(&house, &who, 10, 20).await;
        permit.settle(used(10, 5), Status::Completed).await.expect("settled");
        house.clock.advance(Duration::from_secs(15));
    }
    let before = house.standing(&who).await;
    let house = house.restart().await;
    assert!(house.first.admin_key.is_none(), "the admin key is told once");
    let who = house.authenticate(&key).await.expect("keys survive");
    assert_eq!(house.standing(&who).await, before);
    assert_eq!(before, [(45, 0), (45, 0), (45, 0), (3, 0), (0, 0)]);
    let wait = refused(&house, &who, 60, 0).await.retry_after.expect("a wait");
    house.clock.advance(wait - Duration::from_micros(1));
    refused(&house, &who, 60, 0).await;
    house.clock.advance_us(1);
    drop(admitted(&house, &who, 60, 0).await);
}

#[tokio::test]
async fn after_a_crash_open_requests_are_charged_once_with_what_the_journal_shows() {
    let house = House::new().await;
    let (who, key) = house.limited_with_key(&["1000 tokens / 1m"]).await;
    let finished = admitted(&house, &who, 10, 20).await;
    finished.settle(used(10, 5), Status::Completed).await.expect("settled");
    let running = admitted(&house, &who, 10, 300).await;
    running.durable().await.expect("durable");
    running.progress(used(10, 100));
    running.progress(used(10, 131));
    // Any later commit shows that the progress before it is on the disk, too.
    admitted(&house, &who, 1, 1).await.settle(used(1, 1), Status::Completed).await.expect("settled");
    let image = house.crash_image();
    let after = House::open(image, house.clock.clone(), Config::default()).await;
    let rows = after.records.ledger_since(0).await.expect("rows");
    let recovered: Vec<_> = rows.iter().filter(|row| row.status == Status::Recovered).collect();
    assert_eq!((rows.len(), recovered.len()), (3, 1));
    let lost = 131 - recovered[0].usage.completion_tokens;
    assert!(lost <= 64, "{lost} tokens behind");
    let total = after.ledger().await.1.total_tokens();
    let who_after = after.authenticate(&key).await.expect("keys survive");
    assert_eq!(after.standing(&who_after).await, [(total, 0)], "limits agree with the ledger");
    assert!(after.records.open_reservations().await.expect("journal").is_empty());
    let after = after.restart().await;
    assert_eq!(after.ledger().await, (3, used(10 + 10 + 1, 5 + 100 + 1)), "nothing is doubled");
    drop(running);
}

#[tokio::test]
async fn what_was_settled_is_on_the_disk_before_settle_returns() {
    let house = House::new().await;
    let who = house.limited(&["100000 tokens / 1m"]).await;
    for n in 1..=10u64 {
        let permit = admitted(&house, &who, n, 10).await;
        permit.settle(used(n, 10), Status::Completed).await.expect("settled");
        let after = House::open(house.crash_image(), house.clock.clone(), Config::default()).await;
        assert_eq!(after.ledger().await.0, n);
    }
}

#[tokio::test]
async fn a_limit_on_one_model_does_not_count_the_others_and_keys_and_pools_have_their_own() {
    let house = House::new().await;
    let limits =
        ["50 tokens / 1m on demo", "20 tokens / 1m on other", "100 tokens / 1m per key", "70 tokens / 1m per tier"];
    let who = house.limited(&limits).await;
    admitted(&house, &who, 50, 0).await.settle(used(50, 0), Status::Completed).await.expect("settled");
    assert_eq!(&*refused(&house, &who, 1, 0).await.limit, "tight: 50 tokens / 1m on demo");
    let (colleague, _) = house.user("bob", &["tight"]).await;
    let denied = refused(&house, &colleague, 21, 0).await;
    assert_eq!(&*denied.limit, "tight: 70 tokens / 1m per tier", "the pool is shared");
    drop(admitted(&house, &colleague, 20, 0).await);
}

#[tokio::test]
async fn peek_consumes_nothing_and_refuses_who_has_nothing_left() {
    let house = House::new().await;
    let who = house.limited(&["2 requests / 1m"]).await;
    for _ in 0..5 {
        house.governor.peek(&who, None, 2048).await.expect("two left");
    }
    drop(admitted(&house, &who, 1, 1).await);
    drop(admitted(&house, &who, 1, 1).await);
    let denied = house.governor.peek(&who, None, 2048).await.expect_err("none left");
    assert_eq!((denied.reason, denied.used), ("requests_exceeded", 2));
}

#[tokio::test]
async fn raising_a_limit_never_cuts_an_answer_that_began_under_the_lower_one() {
    let house = House::new().await;
    let who = house.limited(&["1 concurrent", "1000 tokens / 1m"]).await;
    let open = with_cap(1, 1, CompletionCap::Open { most: 600 });
    let mut permit = house.governor.admit(&who, open).await.expect("admitted");
    house.set_limits("tight", &["5 concurrent", "1000 tokens / 1m"]).await;
    let again = house.again(&who).await;
    let others = [admitted(&house, &again, 1, 1).await, admitted(&house, &again, 1, 1).await];
    assert_eq!(permit.extend(100).await.expect("tokens are left"), 100);
    drop((permit, others));
}

#[tokio::test]
async fn a_machine_that_slept_forgets_no_charge_at_the_next_start() {
    let house = House::new().await;
    let who = house.limited(&["100 tokens / 1m"]).await;
    // Asleep, only the wall clock goes on.
    house.clock.jump_wall_us(7_200_000_000);
    admitted(&house, &who, 80, 10).await.settle(used(80, 10), Status::Completed).await.expect("settled");
    let awake = Arc::new(ManualClock::at(house.clock_us()));
    let after = House::open(house.crash_image(), awake, Config::default()).await;
    let operator = after.governor.operator();
    let new = NewKey { name: "again".into(), ..NewKey::default() };
    let key = after.governor.create_key_for(&operator, "ann", new).await.expect("a key");
    let who = after.authenticate(&key.secret).await.expect("works");
    assert_eq!(after.standing(&who).await, [(90, 0)]);
}

#[tokio::test]
async fn models_of_other_tiers_and_strangers_are_refused() {
    let house = House::new().await;
    let operator = house.governor.operator();
    let premium = millgate::governance::ModelPatch {
        published: Some(millgate::governance::records::Published::Tiers(vec!["premium".into()])),
        ..Default::default()
    };
    house.governor.update_model(&operator, "demo", premium).await.expect("published");
    let (free, _) = house.user("free-one", &[]).await;
    let (enterprise, _) = house.user("big-one", &["enterprise-users", "premium-users"]).await;
    let (member, _) = house.user("premium-one", &["premium-users"]).await;
    for outsider in [&free, &enterprise] {
        let refusal = house.governor.admit(outsider, ask(1, 1)).await.expect_err("only the own tier's models");
        assert!(matches!(refusal, Refusal::ModelForbidden));
        assert!(house.governor.visible_models(outsider).await.expect("models").is_empty());
    }
    drop(admitted(&house, &member, 1, 1).await);
    for tier in ["free", "premium", "enterprise"] {
        house.governor.delete_tier(&operator, tier).await.expect("deleted");
    }
    let refusal = house.governor.admit(&house.again(&member).await, ask(1, 1)).await;
    assert!(matches!(refusal.expect_err("no tier"), Refusal::NoTier));
}

#[derive(Debug, Clone)]
enum Op {
    Admit { user: usize, prompt: u64, open: bool, cap: u64 },
    Extend { pick: usize, want: u64 },
    Settle { pick: usize, permille: u64, status: usize },
    Drop { pick: usize, permille: u64 },
    Wait { us: i64 },
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        4 => (0..3usize, 0..30u64, any::<bool>(), 0..60u64)
            .prop_map(|(user, prompt, open, cap)| Op::Admit { user, prompt, open, cap }),
        2 => (any::<usize>(), 1..300u64).prop_map(|(pick, want)| Op::Extend { pick, want }),
        2 => (any::<usize>(), 0..=1000u64, 0..3usize).prop_map(|(pick, permille, status)| Op::Settle { pick, permille, status }),
        1 => (any::<usize>(), 0..=1000u64).prop_map(|(pick, permille)| Op::Drop { pick, permille }),
        2 => (0..MINUTE_US / 2).prop_map(|us| Op::Wait { us }),
    ]
}

/// Prices that are no whole nano-dollars, so that rounding shows.
const PRICE: Price = Price { prompt_pico_usd: 1_337, cached_pico_usd: 1_337, completion_pico_usd: 2_749 };

async fn play(ops: Vec<Op>) {
    let house = House::new().await;
    let price = NewPrice {
        model: "demo".into(),
        prompt_pico_usd: Some(PRICE.prompt_pico_usd),
        completion_pico_usd: Some(PRICE.completion_pico_usd),
        ..NewPrice::default()
    };
    house.governor.set_prices(&house.governor.operator(), &[price]).await.expect("the price is set");
    let limits = [
        "200 tokens / 1m",
        "500 tokens / 1h",
        "20 requests / 1m",
        "300 tokens / 1m per tier",
        "6 concurrent",
        "0.0000004 usd / 1m",
    ];
    let mut people = vec![house.limited(&limits).await];
    people.push(house.user("bob", &["tight"]).await.0);
    people.push(house.user("cid", &["tight"]).await.0);
    let mut open: Vec<(Permit, u64)> = Vec::new();
    for op in ops {
        match op {
            Op::Admit { user, prompt, open: is_open, cap } => {
                let cap = if is_open { CompletionCap::Open { most: cap * 10 } } else { CompletionCap::Explicit(cap) };
                if let Ok(permit) = house.governor.admit(&people[user], with_cap(prompt, 1, cap)).await {
                    open.push((permit, prompt));
                }
            }
            Op::Extend { pick, want } if !open.is_empty() => {
                let at = pick % open.len();
                let _ = open[at].0.extend(want).await;
            }
            Op::Settle { pick, permille, status } if !open.is_empty() => {
                let (permit, prompt) = open.swap_remove(pick % open.len());
                let usage = used(prompt, permit.allowance() * permille / 1000);
                let status = [Status::Completed, Status::Aborted, Status::Failed][status];
                permit.settle(usage, status).await.expect("settled");
            }
            Op::Drop { pick, permille } if !open.is_empty() => {
                let (permit, prompt) = open.swap_remove(pick % open.len());
                permit.progress(used(prompt, permit.allowance() * permille / 1000));
            }
            Op::Wait { us } => house.clock.advance_us(us),
            _ => {}
        }
        for who in &people {
            let standing = house.governor.standing(who, Some("demo")).await.expect("standing");
            let over: Vec<_> = standing.iter().filter(|limit| limit.used + limit.held > limit.amount).collect();
            assert!(over.is_empty(), "{over:?}");
        }
    }
    drop(open);
    house.governor.shutdown().await;
    check_books(&house, &people).await;
}

/// By charge time, no interval of a minute holds more than the amount: neither for a user nor for the pool.
fn check_every_minute(charged: impl Iterator<Item = Extent>, amount: u64) {
    let mut charged: Vec<(i64, u64)> =
        charged.map(|extent| (extent.at_us, extent.prompt_tokens + extent.completion_tokens)).collect();
    charged.sort_unstable();
    for (i, (start, _)) in charged.iter().enumerate() {
        let within = charged[i..].iter().take_while(|(at, _)| *at < start + MINUTE_US);
        let sum: u64 = within.map(|(_, tokens)| tokens).sum();
        assert!(sum <= amount, "{sum} of {amount} tokens in the minute from {start}");
    }
}

/// The ledger and the counters agree, for every user and for the pool; after a restart, too.
async fn check_books(house: &House, people: &[Principal]) {
    assert!(house.counters_are_at_rest());
    let rows = house.records.ledger_since(0).await.expect("rows");
    for row in &rows {
        let charged: u64 = row.charged.iter().map(|extent| extent.prompt_tokens + extent.completion_tokens).sum();
        assert_eq!(charged, row.usage.total_tokens());
        let cost: u64 = row.charged.iter().map(|extent| extent.cost_nano_usd).sum();
        assert_eq!(cost, row.cost_nano_usd, "the money charged by time adds up to the cost");
        if row.request.price_version.is_some() {
            assert_eq!(cost, PRICE.cost_nano_usd(row.usage));
        }
    }
    check_every_minute(rows.iter().flat_map(|row| row.charged.clone()), 300);
    for who in people {
        let own = rows.iter().filter(|row| row.request.user == who.user);
        check_every_minute(own.clone().flat_map(|row| row.charged.clone()), 200);
        let as_tokens = |extent: Extent| Extent { prompt_tokens: extent.cost_nano_usd, completion_tokens: 0, ..extent };
        if own.clone().any(|row| row.request.price_version.is_some()) {
            check_every_minute(own.flat_map(|row| row.charged.clone()).map(as_tokens), 400);
        }
    }
    for (who, hour_us) in people.iter().zip([60 * MINUTE_US; 3]) {
        let standing = house.standing(who).await;
        let now = NOON_US.max(rows.iter().map(|row| row.settled_at_us).max().unwrap_or(0));
        if now - NOON_US < hour_us {
            let ledger: u64 =
                rows.iter().filter(|row| row.request.user == who.user).map(|row| row.usage.total_tokens()).sum();
            assert_eq!(standing[1], (ledger, 0), "the hour's counter is the ledger's sum");
        }
    }
    let after = House::open(house.crash_image(), house.clock.clone(), Config::default()).await;
    for who in people {
        assert_eq!(after.standing(who).await, house.standing(who).await, "a restart changes nothing");
    }
}

/// Eight tasks at once, each on its own random path; time moves while they run.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn many_tasks_at_once_never_exceed_a_limit_and_the_books_agree() {
    let house = Arc::new(House::new().await);
    let limits = ["200 tokens / 1m", "100000 tokens / 1h", "100000 requests / 1m", "300 tokens / 1m per tier"];
    let mut people = vec![house.limited(&limits).await];
    people.push(house.user("bob", &["tight"]).await.0);
    let mut tasks = tokio::task::JoinSet::new();
    for task in 0..8u64 {
        let (house, who) = (house.clone(), people[usize::from(task % 2 == 1)].clone());
        tasks.spawn(async move {
            let mut seed = task + 1;
            for _ in 0..60 {
                seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                let draw = seed >> 33;
                house.clock.advance_us(i64::try_from(draw % 900_000).expect("small"));
                let prompt = draw % 9;
                let cap =
                    if draw % 2 == 0 { CompletionCap::Open { most: 90 } } else { CompletionCap::Explicit(draw % 30) };
                let Ok(mut permit) = house.governor.admit(&who, with_cap(prompt, 1, cap)).await else { continue };
                let _ = permit.extend(draw % 50).await;
                tokio::task::yield_now().await;
                let usage = used(prompt, permit.allowance() * (draw % 101) / 100);
                if draw % 7 == 0 {
                    permit.progress(usage);
                } else {
                    permit.settle(usage, Status::Completed).await.expect("settled");
                }
            }
        });
    }
    tasks.join_all().await;
    house.governor.drain().await;
    check_books(&house, &people).await;
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    #[test]
    fn whatever_happens_no_limit_is_exceeded_and_ledger_and_counters_agree(ops in prop::collection::vec(op(), 1..60)) {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("a runtime");
        runtime.block_on(play(ops));
    }
}
