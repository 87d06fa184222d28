//! Money at admission: reserved as the most a request can cost, kept as what it did cost, never more than there is.

use std::sync::Arc;
use std::time::Duration;

use millgate::governance::usage::UsageQuery;
use millgate::governance::{
    CompletionCap, Config, Denied, NewPrice, Permit, Principal, Refusal, Resource, ServiceError, Status, Usage,
};

use crate::governance_house::{House, MODEL, ask, used, with_cap};

/// A thousand nano-dollars a prompt token, a quarter of it when cached, two thousand a completion token.
fn price() -> NewPrice {
    NewPrice {
        model: MODEL.into(),
        prompt_pico_usd: Some(1_000_000),
        cached_pico_usd: Some(250_000),
        completion_pico_usd: Some(2_000_000),
        effective_from_us: None,
    }
}

async fn set(house: &House, price: NewPrice) {
    house.governor.set_prices(&house.governor.operator(), &[price]).await.expect("the price is set");
}

/// Somebody with these limits, in a house where tokens cost money.
async fn spender(limits: &[&str]) -> (House, Principal) {
    let house = House::new().await;
    set(&house, price()).await;
    let who = house.limited(limits).await;
    (house, who)
}

async fn refused(house: &House, who: &Principal, prompt: u64, max: u64) -> Denied {
    match house.governor.admit(who, ask(prompt, max)).await.expect_err("refused") {
        Refusal::Denied(denied) => *denied,
        other => panic!("not a limit: {other}"),
    }
}

async fn admitted(house: &House, who: &Principal, prompt: u64, max: u64) -> Permit {
    house.governor.admit(who, ask(prompt, max)).await.expect("admitted")
}

#[tokio::test]
async fn the_most_it_can_cost_is_held_and_what_it_did_not_cost_comes_back() {
    let (house, who) = spender(&["0.00012 usd / 1h", "1 usd / month Europe/Paris"]).await;
    let permit = admitted(&house, &who, 10, 50).await;
    assert_eq!(house.standing(&who).await, [(0, 110_000), (0, 110_000)]);
    let denied = refused(&house, &who, 1, 5).await;
    assert_eq!((denied.reason, &*denied.limit), ("cost_exceeded", "tight: 0.00012 usd / 1h"));
    assert_eq!((denied.used, denied.requested, denied.resource), (110_000, 11_000, Resource::Cost));
    let usage = Usage { prompt_tokens: 10, cached_tokens: 4, completion_tokens: 7 };
    permit.settle(usage, Status::Completed).await.expect("settled");
    assert_eq!(house.standing(&who).await, [(21_000, 0), (21_000, 0)], "6 x 1000 + 4 x 250 + 7 x 2000");
    let row = house.records.ledger_since(0).await.expect("rows").remove(0);
    assert_eq!((row.cost_nano_usd, row.request.price_version), (21_000, Some(1)));
    assert_eq!(row.charged.iter().map(|extent| extent.cost_nano_usd).sum::<u64>(), 21_000);
    drop(admitted(&house, &who, 1, 5).await);
}

#[tokio::test]
async fn what_costs_more_than_the_whole_budget_is_refused_at_once_and_told_so() {
    let (house, who) = spender(&["0.00012 usd / 1h", "100 requests / 1m"]).await;
    let before = house.standing(&who).await;
    let denied = refused(&house, &who, 20, 51).await;
    assert_eq!((denied.retry_after, denied.requested), (None, 122_000));
    assert_eq!(house.standing(&who).await, before, "nothing was taken anywhere");
    drop(admitted(&house, &who, 20, 50).await);
}

#[tokio::test]
async fn an_open_answer_is_granted_what_the_money_is_enough_for() {
    let (house, who) = spender(&["0.00012 usd / 1h", "100000 tokens / 1m"]).await;
    let open = |prompt| with_cap(prompt, 1, CompletionCap::Open { most: 4000 });
    let mut permit = house.governor.admit(&who, open(20)).await.expect("admitted");
    assert_eq!(permit.allowance(), 50, "100000 nano-dollars are left after the prompt");
    let denied = permit.extend(256).await.expect_err("nothing is left");
    assert_eq!(&*denied.limit, "tight: 0.00012 usd / 1h");
    house.clock.advance(denied.retry_after.expect("a wait"));
    assert_eq!(permit.extend(256).await.expect("an hour later"), 60);
    permit.settle(used(20, 55), Status::LimitReached).await.expect("settled");
    assert_eq!(house.standing(&who).await[0], (10_000, 0), "five tokens of the second hour");
    let row = house.records.ledger_since(0).await.expect("rows").remove(0);
    assert_eq!(row.cost_nano_usd, 130_000);
}

#[tokio::test]
async fn the_price_of_a_request_is_the_one_of_its_admission() {
    let (house, who) = spender(&["1 usd / day"]).await;
    let mut running =
        house.governor.admit(&who, with_cap(10, 1, CompletionCap::Open { most: 4000 })).await.expect("admitted");
    let dearer =
        NewPrice { completion_pico_usd: Some(9_000_000), ..NewPrice { model: MODEL.into(), ..NewPrice::default() } };
    set(&house, dearer).await;
    let next = admitted(&house, &house.again(&who).await, 10, 1).await;
    assert_eq!(running.extend(100).await.expect("granted"), 100);
    running.settle(used(10, 300), Status::Completed).await.expect("settled");
    next.settle(used(10, 1), Status::Completed).await.expect("settled");
    let rows = house.records.ledger_since(0).await.expect("rows");
    let costs: Vec<_> = rows.iter().map(|row| (row.request.price_version, row.cost_nano_usd)).collect();
    assert!(costs.contains(&(Some(1), 610_000)) && costs.contains(&(Some(2), 19_000)), "{costs:?}");
    assert_eq!(house.standing(&who).await, [(629_000, 0)]);
}

#[tokio::test]
async fn a_price_to_come_holds_from_its_moment_on_and_a_star_for_models_without_their_own() {
    let house = House::new().await;
    let who = house.limited(&["1 usd / day"]).await;
    let operator = house.governor.operator();
    admitted(&house, &who, 10, 1).await.settle(used(10, 1), Status::Completed).await.expect("settled");
    assert_eq!(house.standing(&who).await, [(0, 0)], "without a price nothing costs anything");
    let later = house.clock_us() + 60_000_000;
    let star = NewPrice { model: "*".into(), ..price() };
    house.governor.set_prices(&operator, &[star]).await.expect("set");
    let own = NewPrice { effective_from_us: Some(later), prompt_pico_usd: Some(7_000), ..price() };
    house.governor.set_prices(&operator, &[own]).await.expect("set");
    let who = house.again(&who).await;
    for expected in [10_000, 70] {
        admitted(&house, &who, 10, 0).await.settle(used(10, 0), Status::Completed).await.expect("settled");
        let newest = house.records.ledger_since(house.clock_us()).await.expect("rows");
        assert_eq!(newest.last().expect("a row").cost_nano_usd, expected);
        house.clock.advance(Duration::from_secs(61));
    }
    let past = NewPrice { effective_from_us: Some(later), ..price() };
    let refused = house.governor.set_prices(&operator, &[past]).await.expect_err("history is not rewritten");
    assert!(matches!(refused, ServiceError::Invalid { param: "effective_from", .. }), "{refused}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn fifty_at_once_spend_exactly_what_there_is() {
    let house = Arc::new(House::new().await);
    let nano = NewPrice { prompt_pico_usd: Some(1000), cached_pico_usd: None, completion_pico_usd: Some(0), ..price() };
    set(&house, nano).await;
    let who = house.limited(&["0.0000001 usd / day", "0.0000001 usd / 1m per tier"]).await;
    let barrier = Arc::new(tokio::sync::Barrier::new(50));
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..50 {
        let (house, who, barrier) = (house.clone(), who.clone(), barrier.clone());
        tasks.spawn(async move {
            barrier.wait().await;
            let Ok(permit) = house.governor.admit(&who, ask(5, 3)).await else { return 0 };
            permit.settle(used(5, 3), Status::Completed).await.expect("settled");
            1
        });
    }
    assert_eq!(tasks.join_all().await.into_iter().sum::<u32>(), 20, "100 nano-dollars at 5 each");
    assert_eq!(house.standing(&who).await, [(100, 0), (100, 0)]);
}

#[tokio::test]
async fn a_restart_and_a_crash_price_as_if_nothing_had_happened() {
    let house = House::new().await;
    set(&house, price()).await;
    let limits = ["1 usd / 1h", "1 usd / day", "1 usd / month per tier", "1 usd / 1m per key"];
    let (who, key) = house.limited_with_key(&limits).await;
    admitted(&house, &who, 10, 20).await.settle(used(10, 5), Status::Completed).await.expect("settled");
    let running = admitted(&house, &who, 10, 300).await;
    running.durable().await.expect("durable");
    running.progress(used(10, 100));
    set(&house, NewPrice { prompt_pico_usd: Some(0), completion_pico_usd: Some(1), ..price() }).await;
    // Any later commit shows that the progress before it is on the disk, too.
    admitted(&house, &who, 1, 1).await.settle(used(1, 1), Status::Failed).await.expect("settled");
    let after = House::open(house.crash_image(), house.clock.clone(), Config::default()).await;
    let rows = after.records.ledger_since(0).await.expect("rows");
    let recovered = rows.iter().find(|row| row.status == Status::Recovered).expect("the one that ran");
    assert_eq!((recovered.cost_nano_usd, recovered.request.price_version), (210_000, Some(1)));
    let who_after = after.authenticate(&key).await.expect("keys survive");
    assert_eq!(after.standing(&who_after).await, [(230_000, 0); 4], "10 + 5 and 10 + 100 tokens at the old price");
    drop(running);
}

#[tokio::test]
async fn refusals_are_counted_by_user_key_and_model_and_cost_no_write_each() {
    let (house, who) = spender(&["1 requests / 1m"]).await;
    admitted(&house, &who, 1, 1).await.settle(used(1, 1), Status::Completed).await.expect("settled");
    for _ in 0..5 {
        refused(&house, &who, 1, 1).await;
    }
    house.governor.peek(&who, Some(MODEL), 10).await.expect_err("nothing is left");
    let query = UsageQuery { start_us: 0, end_us: i64::MAX, ..UsageQuery::default() };
    let sums = house.governor.own_usage(&who, &query).await.expect("usage");
    assert_eq!((sums[0].requests, sums[0].refusals, sums[0].cost_nano_usd), (1, 6, 3_000));
    let (stranger, _) = house.user("bob", &["tight"]).await;
    let sums = house.governor.own_usage(&stranger, &query).await.expect("usage");
    assert_eq!((sums[0].requests, sums[0].refusals), (0, 0), "nobody else's");
}

#[tokio::test]
async fn only_administrators_set_prices_and_what_is_wrong_is_named() {
    let (house, who) = spender(&[]).await;
    let denied = house.governor.set_prices(&who, &[price()]).await.expect_err("a member");
    assert!(matches!(denied, ServiceError::Forbidden(_)));
    let operator = house.governor.operator();
    let cases = [
        ("model", NewPrice { model: " ".into(), ..price() }),
        ("prompt", NewPrice { model: "new".into(), prompt_pico_usd: None, ..price() }),
        ("completion", NewPrice { completion_pico_usd: Some(1_000_000_001), ..price() }),
    ];
    for (field, price) in cases {
        let error = house.governor.set_prices(&operator, &[price]).await.expect_err(field);
        assert!(matches!(error, ServiceError::Invalid { param, .. } if param == field), "{field}: {error}");
    }
    let twice = house.governor.set_prices(&operator, &[price(), price()]).await.expect_err("twice");
    assert!(twice.to_string().contains("twice"));
    assert_eq!(house.governor.prices(&operator).await.expect("prices").all().count(), 1, "all or none");
}
