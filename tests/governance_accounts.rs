//! Keys, users, tiers and models: who may change what, and that every change acts on the very next request.

use std::sync::Arc;
use std::time::Duration;

use millgate::governance::records::{MembershipSource, Published};
use millgate::governance::tier_files::Declaration;
use millgate::governance::{
    ADMINS, AuthFailure, Config, Credential, Governor, KeySearch, KeyStatus, NewKey, NewTier, NewUser, Secret,
    ServiceError, TierPatch, UserPatch,
};
use millgate::store::MemoryCounters;

use crate::governance_house::{HERE, House, ask, open_store};

fn named(name: &str) -> NewKey {
    NewKey { name: name.into(), ..NewKey::default() }
}

#[tokio::test]
async fn the_first_start_makes_one_administrator_and_tells_the_key_once() {
    let house = House::new().await;
    let admin = house.admin().await;
    assert!(admin.is_admin);
    assert_eq!((&*admin.name, admin.policy.tier_name()), ("admin", Some("enterprise")));
    assert_eq!(house.governor.tiers(&admin).await.expect("tiers").len(), 3);
    let key = house.first.admin_key.clone().expect("told");
    let house = house.restart().await;
    assert!(house.first.admin_key.is_none() && !house.first.is_first);
    assert!(house.authenticate(&key).await.expect("it works on").is_admin);
}

#[tokio::test]
async fn a_configured_admin_key_is_the_one_bootstrap_key_and_a_new_one_replaces_it() {
    let with = |text: &str| Config { admin_key: Some(Secret::new(text)), ..Config::default() };
    let (first, second) = (Secret::new("the-first-admin-secret-of-all"), Secret::new("another-admin-secret-entirely"));
    let house = House::with(with(first.reveal())).await;
    assert!(house.first.admin_key.is_none(), "a configured key is never printed");
    assert!(house.authenticate(&first).await.expect("works").is_admin);
    assert!(house.authenticate(&second).await.is_none());
    let house = house.restart_with(with(second.reveal())).await;
    assert!(house.authenticate(&first).await.is_none(), "replaced");
    assert!(house.authenticate(&second).await.expect("works").is_admin);
    let minted = millgate::governance::keys::mint().expect("randomness").text;
    let house = house.restart_with(with(minted.reveal())).await;
    assert!(house.authenticate(&second).await.is_none(), "replaced by a well-formed key");
    assert!(house.authenticate(&minted).await.expect("works").is_admin);
    let house = house.restart_with(with(minted.reveal())).await;
    assert!(house.authenticate(&minted).await.is_some());
}

#[tokio::test]
async fn a_weak_admin_key_stops_the_start() {
    for weak in ["short", "sk-mg_almost_a_key_but_with_a_wrong_checksum_000"] {
        let dir = tempfile::TempDir::new().expect("dir");
        let clock = Arc::new(millgate::governance::SystemClock::new());
        let config = Config { admin_key: Some(Secret::new(weak)), ..Config::default() };
        let records = Arc::new(open_store(dir.path()).await);
        let counters = Arc::new(MemoryCounters::new(clock.clone()));
        let error = Governor::start(records, counters, clock, config).await.err().expect("refused");
        assert!(!error.to_string().contains(weak), "{error}");
    }
}

#[tokio::test]
async fn a_revoked_key_a_deactivated_user_and_a_deleted_user_are_refused_on_the_next_request() {
    let house = House::new().await;
    let operator = house.governor.operator();
    let (who, secret) = house.user("ann", &[]).await;
    let key = who.key.clone().expect("a key");
    let revoked = house.governor.revoke_key(&who, &key).await.expect("revoked");
    assert_eq!(revoked.status, KeyStatus::Revoked);
    assert!(house.authenticate(&secret).await.is_none());
    let again = house.governor.revoke_key(&who, &key).await;
    assert!(matches!(again, Err(ServiceError::NotFound(_))));

    let (_, secret) = house.user("bob", &[]).await;
    let active = |active| UserPatch { active: Some(active), groups: None };
    house.governor.update_user(&operator, "bob", active(false)).await.expect("deactivated");
    assert!(house.authenticate(&secret).await.is_none());
    house.governor.update_user(&operator, "bob", active(true)).await.expect("activated");
    assert!(house.authenticate(&secret).await.is_some());
    house.governor.delete_user(&operator, "bob").await.expect("deleted");
    assert!(house.authenticate(&secret).await.is_none());
    house.governor.create_user(&operator, NewUser { name: "bob".into(), groups: vec![] }).await.expect("another bob");
    assert!(house.authenticate(&secret).await.is_none(), "a namesake inherits nothing");
}

#[tokio::test]
async fn a_key_expires_to_the_microsecond() {
    let house = House::new().await;
    let (who, _) = house.user("ann", &[]).await;
    let new = NewKey { expires_in: Some(Duration::from_secs(600)), ..named("short") };
    let issued = house.governor.create_key(&who, new).await.expect("a key");
    house.clock.advance(Duration::from_secs(600) - Duration::from_micros(1));
    assert!(house.authenticate(&issued.secret).await.is_some());
    house.clock.advance_us(1);
    assert!(house.authenticate(&issued.secret).await.is_none());
    assert_eq!(house.governor.key(&who, &issued.key.id).await.expect("still listed").status, KeyStatus::Expired);
}

#[tokio::test]
async fn a_key_never_makes_a_stronger_one() {
    let house = House::new().await;
    let (who, _) = house.user("ann", &[]).await;
    let weak =
        NewKey { models: Some(vec!["demo".into()]), expires_in: Some(Duration::from_secs(3600)), ..named("weak") };
    let weak = house.governor.create_key(&who, weak).await.expect("a key");
    let weak = house.authenticate(&weak.secret).await.expect("works");
    let child = house.governor.create_key(&weak, named("child")).await.expect("a key");
    assert_eq!(child.key.models.as_deref(), Some(&["demo".to_owned()][..]));
    assert!(child.key.expires_at_us <= Some(house.clock_us() + 3_600_000_000));
    let more = NewKey { models: Some(vec!["demo".into(), "other".into()]), ..named("more") };
    assert!(matches!(house.governor.create_key(&weak, more).await, Err(ServiceError::Forbidden(_))));
    let limited = NewKey { limits: crate::governance_house::parse(&["5 tokens / 1m"]), ..named("limited") };
    let limited = house.governor.create_key(&who, limited).await.expect("a key");
    let limited = house.authenticate(&limited.secret).await.expect("works");
    assert!(house.governor.admit(&limited, ask(6, 0)).await.is_err(), "the key's own limit holds");
}

#[tokio::test]
async fn an_administrators_weak_key_makes_no_stronger_one_for_its_owner() {
    let house = House::new().await;
    let admin = house.admin().await;
    let weak = NewKey { expires_in: Some(Duration::from_secs(3600)), ..named("weak") };
    let weak = house.governor.create_key(&admin, weak).await.expect("a key");
    let weak = house.authenticate(&weak.secret).await.expect("works");
    let child = house.governor.create_key_for(&weak, "admin", named("child")).await.expect("a key");
    assert!(child.key.expires_at_us <= Some(house.clock_us() + 3_600_000_000));
}

#[tokio::test]
async fn a_key_that_ended_after_the_request_began_makes_no_other() {
    let house = House::new().await;
    let (who, _) = house.user("ann", &[]).await;
    let key = who.key.clone().expect("came with a key");
    house.governor.revoke_key(&who, &key).await.expect("revoked");
    assert!(matches!(house.governor.create_key(&who, named("late")).await, Err(ServiceError::Forbidden(_))));
}

#[tokio::test]
async fn at_most_so_many_live_keys_a_user_also_when_made_at_once() {
    let house = Arc::new(House::with(Config { keys_max_per_user: 5, ..Config::default() }).await);
    let (who, _) = house.user("ann", &[]).await;
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..12 {
        let (house, who) = (house.clone(), who.clone());
        tasks.spawn(async move { house.governor.create_key(&who, named("one of many")).await.is_ok() });
    }
    let made = tasks.join_all().await.into_iter().filter(|made| *made).count();
    assert_eq!(made, 4, "and the one she came with");
    let page = house.governor.keys(&who, &Default::default()).await.expect("keys");
    let other = page.keys.iter().find(|key| Some(&key.id) != who.key.as_ref()).expect("one of the four");
    house.governor.revoke_key(&who, &other.id).await.expect("revoked");
    house.governor.create_key(&who, named("room again")).await.expect("a key");
}

#[tokio::test]
async fn nobody_sees_or_ends_another_users_keys_and_lists_have_pages() {
    let house = House::new().await;
    let (ann, _) = house.user("ann", &[]).await;
    let (bob, _) = house.user("bob", &[]).await;
    let theirs = bob.key.clone().expect("a key");
    assert!(matches!(house.governor.key(&ann, &theirs).await, Err(ServiceError::NotFound(_))));
    assert!(matches!(house.governor.revoke_key(&ann, &theirs).await, Err(ServiceError::NotFound(_))));
    for i in 0..6 {
        house.clock.advance_us(i % 2);
        house.governor.create_key(&ann, named("more")).await.expect("a key");
    }
    let (mut seen, mut after) = (Vec::new(), None);
    loop {
        let search = KeySearch { cursor: after, limit: Some(3), ..KeySearch::default() };
        let page = house.governor.keys(&ann, &search).await.expect("a page");
        seen.extend(page.keys.into_iter().map(|key| key.id));
        after = page.next;
        if after.is_none() {
            break;
        }
    }
    assert_eq!(seen.len(), 7);
    let admin = house.admin().await;
    let all = house.governor.all_keys(&admin, Some("ann"), &Default::default()).await.expect("keys");
    assert_eq!(all.keys.len(), 7);
    assert!(all.keys.iter().all(|key| key.user_name == "ann"));
}

#[tokio::test]
async fn only_administrators_administer() {
    let house = House::new().await;
    let (ann, _) = house.user("ann", &["enterprise-users"]).await;
    let g = &house.governor;
    let refused = |result: Result<(), ServiceError>| assert!(matches!(result, Err(ServiceError::Forbidden(_))));
    refused(g.tiers(&ann).await.map(drop));
    refused(g.create_tier(&ann, NewTier::default()).await.map(drop));
    refused(g.update_tier(&ann, "free", TierPatch::default()).await.map(drop));
    refused(g.delete_tier(&ann, "free").await.map(drop));
    refused(g.users(&ann, None, None).await.map(drop));
    refused(g.create_user(&ann, NewUser::default()).await.map(drop));
    refused(g.update_user(&ann, "ann", UserPatch::default()).await.map(drop));
    refused(g.delete_user(&ann, "admin").await.map(drop));
    refused(g.create_key_for(&ann, "ann", named("x")).await.map(drop));
    refused(g.all_keys(&ann, None, &Default::default()).await.map(drop));
    refused(g.models(&ann).await.map(drop));
    refused(g.update_model(&ann, "demo", Default::default()).await.map(drop));
    refused(g.groups(&ann, None, None).await.map(drop));
    refused(g.usage(&ann, &Default::default()).await.map(drop));
    let declared = Declaration::from_yaml("tiers: []").expect("declaration");
    refused(g.apply_tiers(&ann, &declared).await.map(drop));
    assert_eq!(g.own_usage(&ann, &Default::default()).await.expect("own")[0].requests, 0);
}

#[tokio::test]
async fn groups_named_system_cannot_be_given_and_names_are_checked() {
    let house = House::new().await;
    let operator = house.governor.operator();
    for (name, groups) in [("a b", vec![]), ("", vec![]), ("x", vec!["system:authenticated"]), ("x", vec!["a\nb"])] {
        let groups = groups.into_iter().map(str::to_owned).collect();
        let made = house.governor.create_user(&operator, NewUser { name: name.into(), groups }).await;
        assert!(matches!(made, Err(ServiceError::Invalid { .. })), "{name:?}");
    }
    let twice = NewUser { name: "admin".into(), groups: vec![] };
    assert!(matches!(house.governor.create_user(&operator, twice).await, Err(ServiceError::Conflict(_))));
    let user = NewUser { name: "eve".into(), groups: vec![ADMINS.into()] };
    let user = house.governor.create_user(&operator, user).await.expect("made");
    assert_eq!(user.groups[0].source, MembershipSource::Local);
}

#[tokio::test]
async fn tiers_are_made_changed_and_deleted_under_their_rules() {
    let house = House::new().await;
    let admin = house.admin().await;
    let g = &house.governor;
    let new = |display: &str, level| NewTier {
        display_name: Some(display.into()),
        level,
        groups: vec!["ds".into()],
        ..NewTier::default()
    };
    let tier = g.create_tier(&admin, new("Data Science Team", 7)).await.expect("made");
    assert_eq!(tier.name, "data-science-team");
    assert!(matches!(g.create_tier(&admin, new("Data Science Team", 8)).await, Err(ServiceError::Conflict(_))));
    assert!(matches!(g.create_tier(&admin, new("Another", 7)).await, Err(ServiceError::Conflict(_))));
    let level = TierPatch { level: Some(0), ..TierPatch::default() };
    assert!(matches!(g.update_tier(&admin, "data-science-team", level).await, Err(ServiceError::Conflict(_))));
    let (member, _) = house.user("ann", &["ds", "premium-users"]).await;
    let publish = |tiers: &[&str]| millgate::governance::ModelPatch {
        published: Some(Published::Tiers(tiers.iter().map(|tier| (*tier).to_owned()).collect())),
        ..Default::default()
    };
    assert!(matches!(g.update_model(&admin, "demo", publish(&["nowhere"])).await, Err(ServiceError::Invalid { .. })));
    g.update_model(&admin, "demo", publish(&["data-science-team"])).await.expect("published");
    assert!(house.again(&member).await.policy.allows("demo"));
    let preview = g.preview_tier_deletion(&admin, "data-science-team").await.expect("preview");
    assert_eq!((preview.affected.len(), preview.models.len()), (1, 1));
    assert_eq!(preview.affected[0].falls_to.as_deref(), Some("premium"));
    g.delete_tier(&admin, "data-science-team").await.expect("deleted");
    assert_eq!(house.again(&member).await.policy.tier_name(), Some("premium"));
    g.create_tier(&admin, new("Data Science Team", 7)).await.expect("made again");
    assert!(!house.again(&member).await.policy.allows("demo"), "a namesake tier inherits no models");
    for tier in g.tiers(&admin).await.expect("tiers") {
        g.delete_tier(&admin, &tier.name).await.expect("deleted");
    }
    g.create_tier(&admin, new("First Again", 0)).await.expect("another after the last");
    let house = house.restart().await;
    let names: Vec<String> = house
        .governor
        .tiers(&house.governor.operator())
        .await
        .expect("tiers")
        .into_iter()
        .map(|tier| tier.name)
        .collect();
    assert_eq!(names, ["first-again"], "deleted defaults do not come back");
}

#[tokio::test]
async fn the_tier_lookup_answers_for_groups_alone() {
    let house = House::new().await;
    let lookup = |groups: &[&str]| {
        let groups: Vec<String> = groups.iter().map(|group| (*group).to_owned()).collect();
        let governor = house.governor.clone();
        async move { governor.lookup_tier(&groups).await }
    };
    assert_eq!(lookup(&["premium-users", "enterprise-users"]).await.expect("tier").name, "enterprise");
    assert!(matches!(lookup(&["strangers"]).await, Err(ServiceError::NotFound(_))));
    assert!(matches!(lookup(&[]).await, Err(ServiceError::Invalid { param: "groups", .. })));
}

#[tokio::test]
async fn the_documented_files_are_applied_in_one_step_and_act_at_once() {
    let house = House::new().await;
    let admin = house.admin().await;
    let (ann, _) = house.user("ann", &[]).await;
    let ours = Declaration::from_yaml(include_str!("../docs/examples/tiers.yaml")).expect("ours");
    let plan = house.governor.plan_tiers(&admin, &ours).await.expect("plan");
    assert_eq!((plan.created.len(), plan.updated.len(), plan.deleted.len()), (0, 3, 0));
    house.governor.apply_tiers(&admin, &ours).await.expect("applied");
    assert!(house.governor.plan_tiers(&admin, &ours).await.expect("plan").is_empty());
    let limits: Vec<String> = house.again(&ann).await.policy.limits().map(ToString::to_string).collect();
    assert_eq!(limits, ["5 requests / 2m", "100 tokens / 1m"]);
    let map = include_str!("../docs/examples/tier-to-group-mapping.yaml");
    let map = Declaration::from_yaml(map).expect("the ConfigMap");
    house.governor.apply_tiers(&admin, &map).await.expect("applied");
    let tier = house.again(&ann).await.policy.tier.clone().expect("a tier");
    assert_eq!((tier.display_name.as_str(), tier.limits.len()), ("Free Tier", 2), "limits stay");
}

#[tokio::test]
async fn failing_credentials_are_throttled_and_a_right_one_always_passes() {
    let house = House::with(Config { failed_credentials_per_minute: 10, ..Config::default() }).await;
    let (_, secret) = house.user("ann", &[]).await;
    let wrong = millgate::governance::keys::mint().expect("randomness").text;
    let mut throttled = 0;
    for _ in 0..25 {
        match house.governor.authenticate(&Credential::parse(wrong.reveal()), HERE).await {
            Err(AuthFailure::Throttled { retry_after }) => {
                throttled += 1;
                assert!(retry_after <= Duration::from_secs(6));
            }
            Err(AuthFailure::Invalid) => {}
            other => panic!("{other:?}"),
        }
        assert!(house.authenticate(&secret).await.is_some());
    }
    assert_eq!(throttled, 15);
}

#[tokio::test]
async fn a_change_made_by_another_process_reaches_this_one() {
    let house = House::with(Config { policy_poll: Duration::from_millis(5), ..Config::default() }).await;
    let (who, secret) = house.user("ann", &[]).await;
    // Another governor over the same records stands for another replica.
    let counters = Arc::new(MemoryCounters::new(house.clock.clone()));
    let (other, _) = Governor::start(house.records.clone(), counters, house.clock.clone(), Config::default())
        .await
        .expect("a second governor");
    other.revoke_any_key(&other.operator(), who.key.as_ref().expect("a key")).await.expect("revoked there");
    let refused = async {
        while house.authenticate(&secret).await.is_some() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(5), refused).await.expect("refused here, too");
    other.shutdown().await;
}

#[tokio::test]
async fn the_use_of_a_key_is_noted_late_and_once() {
    let house = House::new().await;
    let (who, secret) = house.user("ann", &[]).await;
    house.clock.advance(Duration::from_secs(5));
    house.authenticate(&secret).await.expect("works");
    house.governor.shutdown().await;
    let key = house.governor.key(&who, who.key.as_ref().expect("a key")).await.expect("the key");
    assert_eq!(key.last_used_at_us, Some(house.clock_us()));
}

#[tokio::test]
async fn me_tells_name_groups_tier_limits_and_models() {
    let house = House::new().await;
    let (who, _) = house.user("ann", &["premium-users"]).await;
    let permit = house.governor.admit(&who, ask(10, 5)).await.expect("admitted");
    let me = house.governor.me(&who).await.expect("me");
    assert_eq!((me.user.as_str(), me.models.as_slice()), ("ann", &["demo".to_owned()][..]));
    assert_eq!(me.groups, ["premium-users", "system:authenticated"]);
    assert_eq!(me.tier, Some(("premium".into(), "Premium".into())));
    let tokens = me.limits.iter().find(|limit| limit.limit.contains("tokens / 1m")).expect("the limit");
    assert_eq!((tokens.used, tokens.held, tokens.remaining), (0, 15, tokens.amount - 15));
    drop(permit);
}
