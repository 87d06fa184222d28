//! Tiers from outside: who gets which, what a change does to the next request, and that there is no wall.

use std::time::Duration;

use millgate::governance::ports::{Change, Edit, Records};
use millgate::governance::records::{KeyRecord, SetBy};
use millgate::governance::{Author, Credential, Secret, keys};
use serde_json::{Value, json};

use crate::governance_house::HERE;
use crate::support::{Actor, MODEL, TestApp};

async fn tier_of(who: &Actor, groups: Value) -> (u16, Value) {
    let reply = who.post("/v1/tiers/lookup", &json!({"groups": groups})).await;
    (reply.status, reply.json()["tier"].clone())
}

async fn apply(app: &TestApp, content: &str) -> Value {
    let reply = app.admin().post("/admin/v1/tiers/apply", &json!({"content": content})).await;
    assert_eq!(reply.status, 200, "{}", reply.body);
    reply.json()
}

fn names(list: &Value) -> Vec<&str> {
    list.as_array().expect("a list").iter().map(|one| one["name"].as_str().expect("a name")).collect()
}

#[tokio::test]
async fn t1_the_highest_level_wins_and_among_equal_declared_ones_the_first() {
    let app = TestApp::new().start().await;
    let ann = app.user("ann", &[]).await;
    assert_eq!(tier_of(&ann, json!(["system:authenticated"])).await, (200, json!("free")));
    assert_eq!(tier_of(&ann, json!(["premium-users", "enterprise-users"])).await, (200, json!("enterprise")));
    assert_eq!(tier_of(&ann, json!(["strangers"])).await, (404, Value::Null));
    assert_eq!(tier_of(&ann, json!([])).await.0, 400);
    apply(
        &app,
        "tiers:\n  - {name: zebra, level: 50, groups: [z, both]}\n  - {name: ape, level: 50, groups: [a, both]}\n",
    )
    .await;
    assert_eq!(tier_of(&ann, json!(["both"])).await, (200, json!("zebra")));
    assert_eq!(tier_of(&ann, json!(["a"])).await, (200, json!("ape")));
    app.stop().await;
}

#[tokio::test]
async fn t1_the_documented_service_accounts_of_a_tier_are_in_it() {
    let app = TestApp::new().start().await;
    let ann = app.user("ann", &[]).await;
    let found = tier_of(&ann, json!(["system:serviceaccounts:maas-default-gateway-tier-premium"])).await;
    assert_eq!(found, (200, json!("premium")));
    assert_eq!(tier_of(&ann, json!(["system:serviceaccounts:other-tier-premium"])).await.0, 404);
    app.stop().await;
}

#[tokio::test]
async fn t1_names_that_are_empty_blank_twice_or_malformed_are_refused() {
    let app = TestApp::new().start().await;
    let admin = app.admin();
    for name in ["", " ", "A", "a b", "-a", "a-", "apply", &"x".repeat(254)] {
        let reply = admin.post("/admin/v1/tiers", &json!({"name": name, "level": 77, "groups": ["g"]})).await;
        assert_eq!((reply.status, reply.param()), (400, json!("name")), "{name:?}");
    }
    let twice = admin.post("/admin/v1/tiers", &json!({"name": "free", "level": 77, "groups": ["g"]})).await;
    assert_eq!(twice.status, 409);
    let declared = "kind: ConfigMap\ndata:\n  tiers: |\n    - {name: a, groups: [g]}\n    - {name: a, groups: [h]}\n";
    let twice = admin.post("/admin/v1/tiers/apply", &json!({"content": declared})).await;
    assert_eq!((twice.status, twice.param()), (400, json!("content")));
    assert!(twice.message().contains("line 5: tier `a` is there twice"), "{}", twice.message());
    app.stop().await;
}

#[tokio::test]
async fn a_tier_follows_the_documented_rules_of_its_form() {
    let app = TestApp::new().start().await;
    let admin = app.admin();
    let make = async |body: Value| admin.post("/admin/v1/tiers", &body).await;
    let made = make(json!({"display_name": "Data Science Team", "level": 40, "groups": ["ds", "ds"]})).await.json();
    assert_eq!((&made["name"], &made["groups"]), (&json!("data-science-team"), &json!(["ds"])));
    let renamed = json!({"name": "other", "display_name": "Renamed"});
    let renamed = admin.put("/admin/v1/tiers/data-science-team", &renamed).await.json();
    assert_eq!((&renamed["name"], &renamed["display_name"]), (&json!("data-science-team"), &json!("Renamed")));
    for (body, param) in [
        (json!({"name": "a", "level": -1, "groups": ["g"]}), "level"),
        (json!({"name": "a", "level": 2_147_483_648_u64, "groups": ["g"]}), "level"),
        (json!({"name": "a", "groups": ["g"]}), "level"),
        (json!({"name": "a", "level": 41, "groups": []}), "groups"),
        (json!({"name": "a", "level": 41}), "groups"),
        (json!({"name": "a", "level": 41, "groups": ["g"], "weight": 0}), "weight"),
        (json!({"name": "a", "level": 41, "groups": ["g"], "limits": ["0 tokens / 1m"]}), "limits[0]"),
        (json!({"name": "a", "level": 41, "groups": ["g"], "limits": ["5 tokens / 60s", "6 tokens / 1m"]}), "limits"),
        (json!({"name": "a", "level": 41, "groups": ["g"], "colour": "red"}), "colour"),
    ] {
        let reply = make(body.clone()).await;
        assert_eq!((reply.status, reply.param()), (400, json!(param)), "{body}: {}", reply.body);
    }
    let highest = make(json!({"name": "top", "level": 2_147_483_647, "groups": ["top"]})).await;
    assert_eq!(highest.status, 201, "{}", highest.body);
    let taken = make(json!({"name": "b", "level": 40, "groups": ["g"]})).await;
    assert_eq!(taken.status, 409);
    assert!(taken.message().contains("level 40 is in use by tier `data-science-team`"), "{}", taken.message());
    assert_eq!(admin.put("/admin/v1/tiers/top", &json!({"level": 40})).await.status, 409);
    assert_eq!(admin.put("/admin/v1/tiers/top", &json!({"level": 2_147_483_647})).await.status, 200, "its own");
    app.stop().await;
}

#[tokio::test]
async fn several_windows_and_models_hold_at_once_and_the_right_one_is_named() {
    let app = TestApp::new()
        .tier("multi", |tier| {
            tier.limit("3 requests / 1m").limit("5 requests / 1h").limit(&format!("2 requests / 1h on {MODEL}"))
        })
        .hidden_model("second")
        .start()
        .await;
    app.admin().put("/admin/v1/models/second", &json!({"tiers": "all"})).await;
    let ann = app.key("multi").await;
    let ask = async |model: &str| {
        let body = json!({"model": model, "max_tokens": 1, "messages": [{"role": "user", "content": "hi"}]});
        ann.post("/v1/chat/completions", &body).await
    };
    assert_eq!((ask(MODEL).await.status, ask(MODEL).await.status), (200, 200));
    let refused = ask(MODEL).await;
    assert_eq!(refused.json()["error"]["detail"]["limit"], format!("multi: 2 requests / 1h on {MODEL}"));
    assert_eq!(ask("second").await.status, 200, "a limit on one model leaves the others alone");
    let refused = ask("second").await;
    assert_eq!(refused.json()["error"]["detail"]["limit"], "multi: 3 requests / 1m", "which count beside it");
    app.advance(Duration::from_secs(61));
    assert_eq!((ask("second").await.status, ask("second").await.status), (200, 200));
    assert_eq!(ask("second").await.json()["error"]["detail"]["limit"], "multi: 5 requests / 1h");
    app.stop().await;
}

#[tokio::test]
async fn a5_whom_no_tier_holds_and_models_of_other_tiers_are_denied_by_default() {
    let app = TestApp::new().tier("gold", |tier| tier).hidden_model("hidden").start().await;
    let (member, stranger) = (app.key("gold").await, app.user("ann", &["nobody-knows"]).await);
    let body = |model: &str| json!({"model": model, "max_tokens": 1, "messages": [{"role": "user", "content": "hi"}]});
    let chat = async |who: &Actor, model: &str| who.post("/v1/chat/completions", &body(model)).await;
    assert_eq!(chat(&member, MODEL).await.status, 200);
    app.admin().put(&format!("/admin/v1/models/{MODEL}"), &json!({"tiers": ["free"]})).await;
    let outside = chat(&member, MODEL).await;
    assert_eq!(outside.status, 403, "a higher tier has not the models of a lower one");
    assert_eq!(outside.message(), "Access denied. Your tier does not have permission to access this model.");
    assert_eq!(chat(&member, "hidden").await.status, 403, "a model published to nobody");
    assert_eq!(chat(&member, "unknown").await.status, 404);
    assert_eq!(chat(&stranger, MODEL).await.status, 200, "everybody authenticated is in free");
    app.admin().delete("/admin/v1/tiers/free").await;
    let denied = chat(&stranger, MODEL).await;
    assert_eq!((denied.status, denied.json()["error"]["type"].clone()), (403, json!("authorization_error")));
    app.stop().await;
}

#[tokio::test]
async fn a7_deleting_a_tier_denies_its_users_at_once_and_nobody_else() {
    let app = TestApp::new().tier("gold", |tier| tier).tier("silver", |tier| tier).start().await;
    app.admin().delete("/admin/v1/tiers/free").await;
    let (gold, silver) = (app.key("gold").await, app.key("silver").await);
    assert_eq!((gold.chat("hi").await.status, silver.chat("hi").await.status), (200, 200));
    let preview = app.admin().delete("/admin/v1/tiers/gold?dry_run=true").await.json();
    assert_eq!((&preview["deleted"], &preview["affected_count"]), (&json!(false), &json!(1)));
    assert_eq!(preview["affected"], json!([{"user": "gold-user-0", "falls_to": null}]));
    assert_eq!(gold.chat("hi").await.status, 200, "a dry run changes nothing");
    assert_eq!(app.admin().delete("/admin/v1/tiers/gold").await.status, 200);
    assert_eq!((gold.chat("hi").await.status, silver.chat("hi").await.status), (403, 200));
    app.stop().await;
}

#[tokio::test]
async fn m1_models_are_those_of_the_tier_and_of_the_key_each_once() {
    let app = TestApp::new().hidden_model("second").start().await;
    let ann = app.user("ann", &["premium-users"]).await;
    let listed = async |who: &Actor| {
        let models = who.get("/v1/models").await.json();
        let ids = models["data"].as_array().expect("a list").iter().map(|model| model["id"].clone()).collect();
        Value::Array(ids)
    };
    assert_eq!(listed(&ann).await, json!([MODEL]));
    app.admin().put("/admin/v1/models/second", &json!({"tiers": ["free", "premium", "premium"]})).await;
    assert_eq!(listed(&ann).await, json!([MODEL, "second"]));
    let bound = ann.post("/v1/api-keys", &json!({"name": "k", "models": ["second", "nothing"]})).await.json();
    let bound = ann.with_key(bound["key"].as_str().expect("a key"));
    assert_eq!(listed(&bound).await, json!(["second"]));
    app.admin().put("/admin/v1/models/second", &json!({"tiers": []})).await;
    let empty = bound.get("/v1/models").await;
    assert_eq!((empty.status, empty.json()["data"].clone()), (200, json!([])));
    app.stop().await;
}

#[tokio::test]
async fn m2_a_key_whose_tier_is_gone_gets_a_403_in_json_until_there_is_another() {
    let app = TestApp::new().start().await;
    let ann = app.user("ann", &[]).await;
    for name in ["free", "premium", "enterprise"] {
        app.admin().delete(&format!("/admin/v1/tiers/{name}")).await;
    }
    let denied = ann.chat("hi").await;
    assert_eq!((denied.status, denied.header("content-type")), (403, "application/json"));
    assert_eq!(denied.json()["error"]["type"], "authorization_error");
    let again = json!({"name": "back", "level": 0, "groups": ["system:authenticated"]});
    assert_eq!(app.admin().post("/admin/v1/tiers", &again).await.status, 201);
    assert_eq!(ann.chat("hi").await.status, 200);
    app.stop().await;
}

#[tokio::test]
async fn x12_the_last_tier_may_go_and_another_may_come() {
    let app = TestApp::new().start().await;
    let admin = app.admin();
    for name in ["enterprise", "premium", "free"] {
        assert_eq!(admin.delete(&format!("/admin/v1/tiers/{name}")).await.status, 200, "{name}");
    }
    assert_eq!(admin.get("/admin/v1/tiers").await.json()["data"], json!([]));
    let made = admin.post("/admin/v1/tiers", &json!({"display_name": "First", "level": 0, "groups": ["g"]})).await;
    assert_eq!((made.status, made.json()["name"].clone()), (201, json!("first")));
    app.stop().await;
}

#[tokio::test]
async fn a_file_is_applied_whole_keeps_what_it_does_not_own_and_tells_who_falls() {
    let app = TestApp::new().start().await;
    let admin = app.admin();
    let bob = app.user("bob", &["gold-users"]).await;
    let map = |tiers: &str| {
        format!("apiVersion: v1\nkind: ConfigMap\nmetadata:\n  name: tier-to-group-mapping\ndata:\n  tiers: |\n{tiers}")
    };
    let both = map(
        "    - {name: gold, displayName: Gold, level: 9, groups: [gold-users]}\n    - {name: free, groups: ['system:authenticated']}\n",
    );
    let dry = json!({"content": both});
    let dry = admin.post("/admin/v1/tiers/apply?dry_run=true", &dry).await.json();
    assert_eq!((names(&dry["created"]), dry["dry_run"].clone()), (vec!["gold"], json!(true)));
    assert_eq!(admin.get("/admin/v1/tiers/gold").await.status, 404, "a dry run changes nothing");
    let done = apply(&app, &both).await;
    assert_eq!(names(&done["created"]), ["gold"]);
    assert_eq!(done["created"][0]["limits"][0]["amount"], 60, "never unlimited in silence");
    assert_eq!(bob.get("/v1/me").await.json()["tier"], "gold");
    admin.put("/admin/v1/tiers/gold", &json!({"limits": ["7 requests / 1m"], "weight": 5})).await;
    let again = apply(&app, &both).await;
    assert!(["created", "updated", "deleted"].iter().all(|part| again[part] == json!([])), "{again}");
    let gold = admin.get("/admin/v1/tiers/gold").await.json();
    assert_eq!((&gold["limits"][0]["amount"], &gold["weight"]), (&json!(7), &json!(5)), "limits and weight survive");
    let fewer = map("    - {name: free, groups: ['system:authenticated']}\n");
    let dropped = apply(&app, &fewer).await;
    assert_eq!(names(&dropped["deleted"]), ["gold"], "not premium and enterprise, which it never declared");
    assert_eq!(dropped["deleted"][0]["affected"], json!([{"user": "bob", "falls_to": "free"}]));
    assert_eq!(bob.get("/v1/me").await.json()["tier"], "free");
    let wrong = "tiers:\n  - {name: fine, level: 5, groups: [g]}\n  - {name: wrong, level: 6, groups: []}\n";
    let wrong = admin.post("/admin/v1/tiers/apply", &json!({"content": wrong})).await;
    assert_eq!((wrong.status, wrong.param()), (400, json!("content")));
    assert!(wrong.message().contains("line 3: tier `wrong`"), "{}", wrong.message());
    assert_eq!(admin.get("/admin/v1/tiers/fine").await.status, 404, "all or nothing");
    app.stop().await;
}

#[tokio::test]
async fn groups_are_made_once_listed_in_pages_and_checked() {
    let app = TestApp::new().start().await;
    let admin = app.admin();
    let make = async |name: &str| admin.post("/admin/v1/groups", &json!({"name": name})).await;
    assert_eq!((make("a-team").await.status, make("a-team").await.status), (201, 200));
    for wrong in ["", " a", "a\nb", "system:masters", &"x".repeat(300)] {
        let reply = make(wrong).await;
        assert_eq!((reply.status, reply.param()), (400, json!("name")), "{wrong:?}");
    }
    let first = admin.get("/admin/v1/groups?limit=2").await.json();
    assert_eq!(names(&first["data"]), ["a-team", "enterprise-users"]);
    let next = first["next_cursor"].as_str().unwrap();
    let second = admin.get(&format!("/admin/v1/groups?limit=2&cursor={next}")).await.json();
    assert!(!names(&second["data"]).contains(&"enterprise-users"));
    app.stop().await;
}

#[tokio::test]
async fn x15_two_thousand_tiers_limits_and_keys_are_no_wall() {
    const MANY: u32 = 2000;
    let app = TestApp::new().start().await;
    let ann = app.user("ann", &["group-1999"]).await;

    let tier = |n: u32| json!({"name": format!("t{n}"), "level": n + 10, "groups": [format!("group-{n}")]});
    let mut tiers: Vec<Value> = (0..MANY).map(tier).collect();
    let limits =
        (1..MANY).map(|n| format!("{n} requests / 1m on model-{n}")).chain([format!("2 requests / 1m on {MODEL}")]);
    tiers[1999]["limits"] = limits.collect();
    let done = apply(&app, &json!({"tiers": tiers}).to_string()).await;
    assert_eq!(done["created"].as_array().map(Vec::len), Some(2000));
    let owner = app.records.user_by_subject("local", "ann").await.expect("read").expect("ann");
    let (minted, records): (Vec<Secret>, Vec<Change>) = (0..MANY).map(|_| a_key(owner.id)).unzip();
    let version = app.records.policy_version().await.expect("version");
    let edit = Edit { author: Author::server(), at_us: 0, changes: records };
    let version = app.records.change(version, edit).await.expect("written");

    app.eventually("the new keys are seen", async |app| {
        let first = Credential::parse(minted[0].reveal());
        let seen = app.governor.authenticate(&first, HERE).await;
        seen.is_ok_and(|who| who.policy.version >= version)
    })
    .await;
    let recognised = async |key: &Secret| {
        let who = app.governor.authenticate(&Credential::parse(key.reveal()), HERE).await.expect("every key works");
        who.policy.tier_name() == Some("t1999")
    };
    for key in &minted {
        assert!(recognised(key).await);
    }
    assert_eq!(ann.get("/v1/me").await.json()["tier"], "t1999");
    let answers = [ann.chat("hi").await.status, ann.chat("hi").await.status, ann.chat("hi").await.status];
    assert_eq!(answers, [200, 200, 429], "the limit among two thousand holds");
    // Who was seen once costs no look-up, however many there are.
    app.records.close().await;
    for key in &minted {
        assert!(recognised(key).await);
    }
    assert_eq!(ann.chat("hi").await.status, 429);
}

fn a_key(user: millgate::governance::UserId) -> (Secret, Change) {
    let fresh = keys::mint().expect("randomness");
    let record = KeyRecord {
        id: fresh.id,
        digest: fresh.digest,
        previous: None,
        user,
        name: "one of many".into(),
        description: None,
        labels: Default::default(),
        models: None,
        limits: Vec::new(),
        terms_by: SetBy::Owner,
        parent: None,
        is_ephemeral: false,
        is_bootstrap: false,
        created_at_us: 0,
        expires_at_us: None,
        revoked_at_us: None,
        last_used_at_us: None,
    };
    (fresh.text, Change::PutKey(record))
}
