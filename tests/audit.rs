//! The audit log: every change leaves exactly one row, no secret is in it, and tampering is found at its row.

use std::sync::Arc;

use millgate::governance::ports::Records;
use millgate::governance::{Config, Governor, ManualClock, NewKey, Secret};
use millgate::store::{LedgerReader, MemoryCounters};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::governance_house::{House, NOON_US, open_store};
use crate::support::TestApp;

async fn rows(app: &TestApp, query: &str) -> Vec<Value> {
    let reply = app.admin().get(&format!("/admin/v1/audit?{query}")).await;
    assert_eq!(reply.status, 200, "{}", reply.body);
    reply.json()["data"].as_array().expect("a list").clone()
}

#[tokio::test]
async fn a_change_is_told_with_who_made_it_from_where_and_both_states() {
    let app = TestApp::new().start().await;
    let admin = app.admin();
    assert_eq!(admin.put("/admin/v1/tiers/free", &json!({"limits": ["7 requests / 1m"]})).await.status, 200);
    let found = rows(&app, "target=tier/free&action=tier.update").await;
    assert_eq!(found.len(), 1);
    let row = &found[0];
    assert_eq!(row["actor"]["name"], "admin");
    assert_eq!(row["actor"]["source"], "127.0.0.1");
    assert!(row["actor"]["id"].is_string() && row["actor"]["key"].is_string(), "{row}");
    assert_eq!(row["before"]["limits"][0]["amount"], 60);
    assert_eq!(
        row["after"]["limits"],
        json!([{"resource": "requests", "amount": 7, "window": "1m", "scope": "user", "mode": "hard"}])
    );
    app.stop().await;
}

#[tokio::test]
async fn every_kind_of_change_leaves_one_row_and_one_without_effect_none() {
    let app = TestApp::new().start().await;
    let admin = app.admin();
    let count = async || rows(&app, "limit=1").await[0]["id"].as_i64().unwrap();
    let tier = json!({"display_name": "Gold Class", "level": 9, "groups": ["gold"]});
    let steps: [(&str, &str, Value, &[&str]); 13] = [
        ("POST", "/admin/v1/groups", json!({"name": "gold"}), &["group.create"]),
        ("POST", "/admin/v1/tiers", tier, &["tier.create"]),
        ("PUT", "/admin/v1/tiers/gold-class", json!({"weight": 3}), &["tier.update"]),
        ("PUT", "/admin/v1/tiers/gold-class", json!({"weight": 3}), &[]),
        ("PUT", "/admin/v1/models/fake", json!({"tiers": ["gold-class"]}), &["model.update"]),
        ("POST", "/admin/v1/users", json!({"name": "ann", "groups": ["gold"]}), &["user.create"]),
        ("PATCH", "/admin/v1/users/ann", json!({"groups": ["gold"]}), &[]),
        ("PATCH", "/admin/v1/users/ann", json!({"active": false}), &["user.deactivate"]),
        ("PATCH", "/admin/v1/users/ann", json!({"active": true}), &["user.activate"]),
        ("POST", "/admin/v1/api-keys", json!({"user": "ann", "name": "k"}), &["key.create"]),
        ("DELETE", "/admin/v1/users/ann", json!({}), &["user.delete", "user.revoke_keys"]),
        ("DELETE", "/admin/v1/tiers/gold-class", json!({}), &["tier.delete", "model.update"]),
        ("GET", "/admin/v1/tiers", json!({}), &[]),
    ];
    for (method, path, body, actions) in steps {
        let before = count().await;
        let reply = admin.send_json(method, path, &body).await;
        assert!(matches!(reply.status, 200 | 201), "{method} {path}: {}", reply.body);
        let written = (count().await - before) as usize;
        let newest = rows(&app, "limit=10").await;
        let told: Vec<&str> = newest[..written].iter().map(|row| row["action"].as_str().unwrap()).collect();
        assert_eq!(told, actions, "{method} {path} {body}");
    }
    let refused = admin.post("/admin/v1/tiers", &json!({"name": "x", "level": 0, "groups": ["g"]})).await;
    assert_eq!(refused.status, 409);
    assert!(rows(&app, "target=tier/x").await.is_empty(), "what was refused changed nothing");
    app.stop().await;
}

#[tokio::test]
async fn the_log_is_searched_by_actor_action_target_and_time_and_read_in_pages() {
    let app = TestApp::new().start().await;
    let ann = app.user("ann", &[]).await;
    app.advance(std::time::Duration::from_secs(100));
    assert_eq!(ann.post("/v1/api-keys", &json!({"name": "hers"})).await.status, 201);
    let hers = rows(&app, "actor=ann").await;
    assert_eq!(hers.len(), 1);
    assert_eq!(hers[0]["action"], "key.create");
    let key = hers[0]["actor"]["key"].as_str().unwrap();
    assert_eq!(rows(&app, &format!("actor={key}")).await, hers, "a key is an actor, too");
    assert_eq!(rows(&app, "start=1700000100").await, hers);
    assert!(!rows(&app, "end=2023-11-14T22:15:00Z").await.contains(&hers[0]));
    assert!(rows(&app, "target=tier").await.iter().all(|row| row["target"].as_str().unwrap().starts_with("tier/")));
    assert!(rows(&app, "action=ti").await.is_empty(), "a part of a word is no thing");
    let all = rows(&app, "limit=1000").await;
    let mut paged = Vec::new();
    let mut cursor = String::new();
    loop {
        let page = app.admin().get(&format!("/admin/v1/audit?limit=3{cursor}")).await.json();
        paged.extend(page["data"].as_array().unwrap().clone());
        let Some(next) = page["next_cursor"].as_str() else { break };
        cursor = format!("&cursor={next}");
    }
    assert_eq!(paged, all);
    for (query, param) in [("start=soon", "start"), ("cursor=x", "cursor"), ("colour=red", "colour")] {
        let reply = app.admin().get(&format!("/admin/v1/audit?{query}")).await;
        assert_eq!((reply.status, reply.param()), (400, json!(param)));
    }
    assert_eq!(ann.get("/admin/v1/audit").await.status, 403);
    app.stop().await;
}

#[tokio::test]
async fn verification_gives_a_head_that_stays_part_of_the_log() {
    let app = TestApp::new().start().await;
    let admin = app.admin();
    let verify = async |query: &str| admin.get(&format!("/admin/v1/audit/verify{query}")).await;
    let first = verify("").await.json();
    assert_eq!(first["intact"], true, "{first}");
    let head = first["head"].as_str().unwrap();
    app.user("ann", &[]).await;
    let second = verify(&format!("?head={head}")).await.json();
    assert_eq!(second["intact"], true, "{second}");
    assert!(second["rows"].as_i64() > first["rows"].as_i64());
    let beyond = format!("?head=9999:{}", &head[head.len() - 64..]);
    let cut = verify(&beyond).await.json();
    assert_eq!(cut["intact"], false);
    assert!(cut["broken"]["reason"].as_str().unwrap().contains("cut off"), "{cut}");
    assert_eq!(verify("?head=x").await.param(), "head");
    app.stop().await;
}

#[tokio::test]
async fn the_database_refuses_to_change_rows_and_a_change_by_force_is_found() {
    let house = House::new().await;
    house.user("ann", &["g"]).await;
    let image = house.crash_image();
    house.close().await;
    let url = format!("sqlite://{}", image.path().join("millgate.db").display());
    let pool = sqlx::SqlitePool::connect(&url).await.expect("the file");
    for forbidden in [
        "UPDATE audit SET actor = 'nobody' WHERE sequence = 3",
        "DELETE FROM audit WHERE sequence = 3",
        "INSERT OR REPLACE INTO audit SELECT * FROM audit WHERE sequence = 3",
        "INSERT INTO audit SELECT 9999, at_us, actor_id, actor, key_id, source, action, target, state_before, state_after, previous, hash FROM audit WHERE sequence = 3",
    ] {
        let error = sqlx::query(forbidden).execute(&pool).await.expect_err(forbidden).to_string();
        assert!(error.contains("append-only"), "{forbidden}: {error}");
    }
    sqlx::query("DROP TRIGGER audit_is_never_updated").execute(&pool).await.expect("by force");
    sqlx::query("UPDATE audit SET actor = 'nobody' WHERE sequence = 3").execute(&pool).await.expect("by force");
    pool.close().await;
    let records: Arc<dyn Records> = Arc::new(open_store(image.path()).await);
    let clock = Arc::new(ManualClock::at(NOON_US));
    let counters = Arc::new(MemoryCounters::new(clock.clone()));
    let (governor, _) = Governor::start(records.clone(), counters, clock, Config::default()).await.expect("started");
    let verdict = governor.verify_audit(&governor.operator(), None).await.expect("read");
    assert_eq!((verdict.head.sequence, verdict.broken.expect("found").sequence), (2, 3));
    governor.shutdown().await;
    records.close().await;
    let reader = LedgerReader::open(image.path()).await.expect("without the server");
    assert_eq!(reader.audit_after(2, 1).await.expect("read")[0].actor, "nobody");
}

#[tokio::test]
async fn a_replaced_bootstrap_key_and_another_configuration_are_told_by_the_next_start() {
    let with = |text: &str| Config { admin_key: Some(Secret::new(text)), ..Config::default() };
    let house = House::with(with("the-first-admin-secret-of-all")).await;
    house.governor.note_config(&json!({"server": {"listen": "a"}})).await.expect("noted");
    let house = house.restart_with(with("another-admin-secret-entirely")).await;
    house.governor.note_config(&json!({"server": {"listen": "a"}})).await.expect("noted");
    house.governor.note_config(&json!({"server": {"listen": "b"}})).await.expect("noted");
    let page = house.governor.audit(&house.governor.operator(), Default::default()).await.expect("read");
    let told: Vec<(&str, &str)> = page
        .rows
        .iter()
        .map(|row| (row.actor.as_str(), row.action.as_str()))
        .filter(|row| !row.1.starts_with("t"))
        .collect();
    assert_eq!(told[..2], [("server", "config.update"), ("server", "key.replace")]);
    assert!(page.rows.iter().all(|row| !format!("{row:?}").contains("admin-secret")));
    house.close().await;
}

#[tokio::test]
async fn no_key_and_no_digest_is_in_the_log() {
    let house = House::new().await;
    let (ann, first) = house.user("ann", &["g"]).await;
    let second = house.governor.create_key(&ann, NewKey { name: "n".into(), ..NewKey::default() }).await.expect("made");
    house.governor.revoke_key(&ann, &second.key.id).await.expect("revoked");
    let page = house.governor.audit(&house.governor.operator(), Default::default()).await.expect("read");
    let text = format!("{:?}", page.rows);
    for key in [&first, &second.secret] {
        let secret = key.reveal().rsplit('_').next().expect("a secret part");
        let digest: String =
            millgate::governance::keys::digest(key.reveal()).iter().map(|byte| format!("{byte:02x}")).collect();
        assert!(!text.contains(secret) && !text.contains(&digest));
    }
    house.close().await;
}

#[tokio::test]
async fn a_change_that_fails_leaves_no_row() {
    let dir = TempDir::new().expect("dir");
    let records = open_store(dir.path()).await;
    let edit = |changes| millgate::governance::ports::Edit {
        author: millgate::governance::Author::server(),
        at_us: NOON_US,
        changes,
    };
    use millgate::governance::ports::Change;
    let stale = records.change(7, edit(vec![Change::PutGroup("g".into())])).await;
    assert!(stale.is_err());
    assert!(records.audit_after(0, 10).await.expect("read").is_empty());
    records.change(0, edit(vec![Change::PutGroup("g".into())])).await.expect("changed");
    assert_eq!(records.audit_after(0, 10).await.expect("read").len(), 1);
    records.close().await;
}
