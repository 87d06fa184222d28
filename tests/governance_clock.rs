//! The clock misbehaves: jumps of an hour both ways, days of 23 and 25 hours, streams over midnight. No limit lets more
//! through for it, and none holds anybody up for longer than its window.

#![expect(clippy::unwrap_used, reason = "in a test a panic is the report")]

use std::sync::Arc;
use std::time::Duration;

use millgate::engine::fake::Gate;
use millgate::governance::{Config, ManualClock, Permit, Principal, Refusal, Status};
use serde_json::json;

use crate::governance_house::{House, ask, used};
use crate::support::{Reply, TestApp};

const HOUR_US: i64 = 3_600_000_000;

async fn house_at(moment: &str) -> House {
    let moment: jiff::Timestamp = moment.parse().unwrap();
    let dir = Arc::new(tempfile::tempdir().unwrap());
    House::open(dir, Arc::new(ManualClock::at(moment.as_microsecond())), Config::default()).await
}

async fn admit(house: &House, who: &Principal, tokens: u64) -> Result<Permit, Duration> {
    match house.governor.admit(who, ask(tokens, 0)).await {
        Ok(permit) => Ok(permit),
        Err(Refusal::Denied(denied)) => Err(denied.retry_after.unwrap()),
        Err(other) => panic!("{other:?}"),
    }
}

async fn spend(house: &House, who: &Principal, tokens: u64) {
    let permit = admit(house, who, tokens).await.unwrap_or_else(|wait| panic!("refused for {wait:?}"));
    permit.settle(used(tokens, 0), Status::Completed).await.unwrap();
}

#[tokio::test]
async fn a_rate_neither_frees_nor_freezes_when_the_clock_is_set_an_hour_forward_or_back() {
    for jump in [HOUR_US, -HOUR_US] {
        let house = house_at("2026-11-23T12:00:00Z").await;
        let who = house.limited(&["100 tokens / 1m"]).await;
        spend(&house, &who, 60).await;
        house.clock.advance(Duration::from_secs(20));
        spend(&house, &who, 40).await;
        house.clock.jump_wall_us(jump);
        let Err(wait) = admit(&house, &who, 10).await else { panic!("the minute is not over") };
        assert!((Duration::from_secs(40)..=Duration::from_secs(41)).contains(&wait), "{wait:?}");
        house.clock.advance(wait - Duration::from_micros(1));
        assert!(admit(&house, &who, 10).await.is_err());
        house.clock.advance_us(1);
        spend(&house, &who, 60).await;
        assert!(admit(&house, &who, 1).await.is_err());
    }
}

#[tokio::test]
async fn a_restart_after_a_jump_forgets_no_charge() {
    for jump in [HOUR_US / 2, -HOUR_US] {
        let house = house_at("2026-11-23T12:00:00Z").await;
        let (who, key) = house.limited_with_key(&["100 tokens / 1h", "1000 tokens / day"]).await;
        spend(&house, &who, 90).await;
        house.clock.jump_wall_us(jump);
        let again = Arc::new(ManualClock::at(house.clock_us()));
        let after = House::open(house.crash_image(), again, Config::default()).await;
        let who = after.authenticate(&key).await.unwrap();
        assert_eq!(after.standing(&who).await, [(90, 0), (90, 0)], "after a jump of {jump} us");
        assert!(admit(&after, &who, 11).await.is_err());
    }
}

#[tokio::test]
async fn a_clock_that_goes_back_over_midnight_gives_no_day_twice() {
    let house = house_at("2026-11-23T23:30:00Z").await;
    let who = house.limited(&["100 tokens / day"]).await;
    spend(&house, &who, 60).await;
    house.clock.jump_wall_us(HOUR_US);
    spend(&house, &who, 50).await;
    house.clock.jump_wall_us(-HOUR_US);
    assert_eq!(house.standing(&who).await, [(60, 0)]);
    assert_eq!(admit(&house, &who, 41).await.err(), Some(Duration::from_secs(1800)));
    spend(&house, &who, 40).await;
    house.clock.jump_wall_us(HOUR_US);
    assert_eq!(house.standing(&who).await, [(50, 0)]);
    spend(&house, &who, 50).await;
    assert_eq!(admit(&house, &who, 1).await.err(), Some(Duration::from_secs(23 * 3600 + 1800)));
}

#[tokio::test]
async fn the_days_on_which_summer_time_begins_and_ends_last_23_and_25_hours_and_give_one_quota_each() {
    for (midnight, hours) in [("2026-03-28T23:00:00Z", 23), ("2026-10-24T22:00:00Z", 25)] {
        let house = house_at(midnight).await;
        let who = house.limited(&["100 tokens / day Europe/Berlin"]).await;
        spend(&house, &who, 100).await;
        let Err(wait) = admit(&house, &who, 1).await else { panic!("the day is used up") };
        assert_eq!(wait, Duration::from_secs(hours * 3600));
        for _ in 0..hours - 1 {
            house.clock.advance_us(HOUR_US);
            assert!(admit(&house, &who, 1).await.is_err(), "also in the hour that comes twice or not at all");
        }
        house.clock.advance_us(HOUR_US - 1);
        assert_eq!(admit(&house, &who, 1).await.err(), Some(Duration::from_micros(1)));
        house.clock.advance_us(1);
        spend(&house, &who, 100).await;
        assert_eq!(admit(&house, &who, 1).await.err(), Some(Duration::from_secs(24 * 3600)), "an ordinary day follows");
    }
}

#[tokio::test]
async fn a_stream_over_midnight_is_charged_to_the_day_on_which_it_was_admitted() {
    let gate = Arc::new(Gate::default());
    let app = TestApp::new()
        .tier("daily", |tier| tier.tokens_per_day(1000))
        .fake(|fake| {
            fake.end_logit = f32::NEG_INFINITY;
            fake.gate = Some(gate.clone());
        })
        .start()
        .await;
    let user = app.key("daily").await;
    let ask = json!({"max_tokens": 50, "stream_options": {"include_usage": true}});
    let streaming = async { Reply::read(user.chat_stream("hello", ask).await).await };
    let over_midnight = async {
        gate.allow(20);
        app.eventually("the stream is under way", async |app| app.engine.status().totals.completion_tokens == 20).await;
        // The test's clock began at 22:13:20.
        app.advance(Duration::from_secs(2 * 3600));
        gate.allow(u64::MAX / 2);
    };
    let (reply, ()) = tokio::join!(streaming, over_midnight);
    assert!(reply.body.ends_with("data: [DONE]\n\n"));
    let row = app.ledger().await.remove(0);
    assert_eq!((row.status, row.usage.completion_tokens), (Status::Completed, 50));
    assert!(
        row.charged.iter().all(|extent| extent.at_us / (24 * HOUR_US) == row.request.admitted_at_us / (24 * HOUR_US))
    );
    assert_ne!(row.settled_at_us / (24 * HOUR_US), row.request.admitted_at_us / (24 * HOUR_US), "it ended a day later");
    let remaining = user.get("/v1/me").await.json()["limits"][0]["remaining"].clone();
    assert_eq!(remaining, 1000, "today's quota is untouched");
}
