//! Keys that make keys: their limits are shared down the line, also over a restart.

use std::time::Duration;

use millgate::governance::{NewKey, ServiceError, Status};

use crate::governance_house::{House, ask, parse, used};

fn named(name: &str) -> NewKey {
    NewKey { name: name.into(), ..NewKey::default() }
}

#[tokio::test]
async fn what_children_used_counts_on_the_parents_limit_after_a_restart_too() {
    let house = House::new().await;
    let (ann, _) = house.user("ann", &["premium-users"]).await;
    let limits = parse(&["100 tokens / 1h", "150 tokens / month"]);
    let parent = house.governor.create_key(&ann, NewKey { limits, ..named("parent") }).await.expect("a key");
    let secret = parent.secret;
    let mut in_use = house.authenticate(&secret).await.expect("works");
    for depth in 0..3 {
        let child = house.governor.create_key(&in_use, named(&format!("child-{depth}"))).await.expect("a key");
        in_use = house.authenticate(&child.secret).await.expect("works");
        let permit = house.governor.admit(&in_use, ask(10, 10)).await.expect("admitted");
        permit.settle(used(10, 10), Status::Completed).await.expect("settled");
    }
    assert!(house.governor.admit(&in_use, ask(30, 11)).await.is_err(), "60 of 100 are gone");
    let house = house.restart().await;
    let parent = house.authenticate(&secret).await.expect("works");
    assert!(house.governor.admit(&parent, ask(30, 11)).await.is_err(), "and still are");
    let permit = house.governor.admit(&parent, ask(30, 10)).await.expect("exactly what is left");
    permit.settle(used(30, 10), Status::Completed).await.expect("settled");
    house.clock.advance(Duration::from_secs(2 * 3600));
    let house = house.restart().await;
    let parent = house.authenticate(&secret).await.expect("works");
    assert!(house.governor.admit(&parent, ask(30, 21)).await.is_err(), "100 of 150 this month");
    assert!(house.governor.admit(&parent, ask(30, 20)).await.is_ok());
}

#[tokio::test]
async fn keys_make_keys_only_so_deep() {
    let house = House::new().await;
    let (ann, _) = house.user("ann", &[]).await;
    let mut in_use = ann;
    let mut depth = 0;
    let refused = loop {
        match house.governor.create_key(&in_use, named("deeper")).await {
            Ok(made) => in_use = house.authenticate(&made.secret).await.expect("works"),
            Err(error) => break error,
        }
        depth += 1;
        assert!(depth < 20);
    };
    assert!(matches!(refused, ServiceError::Conflict(_)), "{refused}");
    assert_eq!(depth, 8);
}

#[tokio::test]
async fn of_ephemeral_keys_only_those_long_over_are_forgotten_and_limited_ones_much_later() {
    let house = House::new().await;
    let (ann, _) = house.user("ann", &["premium-users"]).await;
    let ephemeral = |name: &str| NewKey { is_ephemeral: true, ..named(name) };
    house.governor.create_key(&ann, ephemeral("plain")).await.expect("a key");
    let limits = parse(&["100 tokens / 1h"]);
    let limited = house.governor.create_key(&ann, NewKey { limits, ..named("limited") }).await.expect("a key");
    let limited = house.authenticate(&limited.secret).await.expect("works");
    house.governor.create_key(&limited, ephemeral("under a limit")).await.expect("a key");
    let now_us = house.clock_us();
    let hour_us = 3_600_000_000;
    assert_eq!(house.records.forget_ephemeral_keys(now_us + hour_us, now_us).await.expect("done"), 0, "not over yet");
    assert_eq!(house.records.forget_ephemeral_keys(now_us + hour_us + 1, now_us).await.expect("done"), 1);
    let left = house.records.forget_ephemeral_keys(now_us + hour_us + 1, now_us + hour_us + 1).await.expect("done");
    assert_eq!(left, 1);
    assert!(house.authenticate(&house.first.admin_key.clone().expect("told")).await.is_some());
    assert!(house.governor.key(&ann, ann.key.as_ref().expect("a key")).await.is_ok(), "others stay");
}
