//! Keys, tiers, users and models over HTTP.

use std::time::Duration;

use serde_json::{Value, json};

use crate::support::TestApp;

#[tokio::test]
async fn a_key_is_shown_once_and_works_at_once() {
    let app = TestApp::new().start().await;
    let user = app.user("ann", &[]).await;
    app.advance(Duration::from_secs(1));
    let body = json!({"name": "laptop", "description": "mine", "expires_in": "4h", "labels": {"team": "red"}});
    let made = user.post("/v1/api-keys", &body).await;
    assert_eq!(made.status, 201, "{}", made.body);
    let made = made.json();
    let key = made["key"].as_str().unwrap();
    assert!(
        key.starts_with("sk-mg_")
            && key.starts_with(made["prefix"].as_str().unwrap().trim_end_matches(['.', '*', '…']))
    );
    assert_eq!((&made["status"], &made["expires_at"]), (&json!("active"), &json!("2023-11-15T02:13:21Z")));
    let fresh = user.with_key(key);
    assert_eq!(fresh.get("/v1/me").await.json()["user"], "ann");

    let shown = user.get(&format!("/v1/api-keys/{}", made["id"].as_str().unwrap())).await.json();
    assert!(shown.get("key").is_none() && shown["labels"]["team"] == "red");
    let list = user.get("/v1/api-keys?limit=1").await.json();
    assert_eq!(
        (&list["object"], &list["has_more"], &list["data"][0]["name"]),
        (&json!("list"), &json!(true), &json!("laptop"))
    );
    let next = user.get(&format!("/v1/api-keys?limit=1&cursor={}", list["next_cursor"].as_str().unwrap())).await.json();
    assert_eq!((&next["has_more"], &next["data"][0]["name"]), (&json!(false), &json!("test")));
}

#[tokio::test]
async fn another_users_key_does_not_exist() {
    let app = TestApp::new().start().await;
    let (ann, ben) = (app.user("ann", &[]).await, app.user("ben", &[]).await);
    let id = ann.get("/v1/api-keys").await.json()["data"][0]["id"].as_str().unwrap().to_owned();
    for actor in [&ben, &app.admin()] {
        assert_eq!(actor.get(&format!("/v1/api-keys/{id}")).await.status, 404);
        assert_eq!(actor.delete(&format!("/v1/api-keys/{id}")).await.status, 404);
    }
    assert_eq!(app.admin().get(&format!("/admin/v1/api-keys/{id}")).await.json()["user"], "ann");
    assert_eq!(app.admin().delete(&format!("/admin/v1/api-keys/{id}")).await.json()["status"], "revoked");
    assert_eq!(app.admin().delete(&format!("/admin/v1/api-keys/{id}")).await.status, 404, "revoked is revoked");
    assert_eq!(ann.get("/v1/me").await.status, 401);
}

#[tokio::test]
async fn wrong_wishes_for_a_key_name_the_field() {
    let app = TestApp::new().start().await;
    let user = app.user("ann", &[]).await;
    for (body, param) in [
        (json!({}), "name"),
        (json!({"name": ""}), "name"),
        (json!({"name": "x", "expires_in": "soon"}), "expires_in"),
        (json!({"name": "x", "expires_in": "0s"}), "expires_in"),
        (json!({"name": "x", "expires_in": "4000d"}), "expires_in"),
        (json!({"name": "x", "labels": {"a": 1}}), "labels.a"),
        (json!({"name": "x", "limits": ["many tokens"]}), "limits[0]"),
        (json!({"name": "x", "limits": [{"resource": "tokens", "amount": 0, "window": "1m"}]}), "limits[0]"),
        (json!({"name": "x", "limits": ["5 tokens / 1m per tier"]}), "limits[0]"),
        (
            json!({"name": "x", "limits": [{"resource": "tokens", "amount": 5, "window": "1m", "scope": "tier"}]}),
            "limits[0]",
        ),
        (json!({"name": "x", "models": "fake"}), "models"),
        (json!({"name": "x", "expires": "4h"}), "expires"),
    ] {
        let reply = user.post("/v1/api-keys", &body).await;
        assert_eq!((reply.status, reply.param()), (400, json!(param)), "{}", reply.body);
    }
}

#[tokio::test]
async fn an_administrator_makes_keys_for_users() {
    let app = TestApp::new().start().await;
    let admin = app.admin();
    assert_eq!(admin.post("/admin/v1/users", &json!({"name": "carl", "groups": ["premium-users"]})).await.status, 201);
    let made = admin.post("/admin/v1/api-keys", &json!({"user": "carl", "name": "ci"})).await;
    assert_eq!(made.status, 201, "{}", made.body);
    let carl = admin.with_key(made.json()["key"].as_str().unwrap());
    assert_eq!(carl.get("/v1/me").await.json()["tier"], "premium");
    assert_eq!(admin.post("/admin/v1/api-keys", &json!({"user": "nobody", "name": "x"})).await.status, 404);
    assert_eq!(admin.get("/admin/v1/api-keys?user=carl").await.json()["data"].as_array().unwrap().len(), 1);
}

#[tokio::test]
async fn a_new_tier_is_unlimited_only_when_it_says_so() {
    let app = TestApp::new().governance(|config| config.new_tier_limits = vec!["7 requests / 3m".parse().unwrap()]);
    let app = app.start().await;
    let make = async |name: &str, level: u32, limits: Value| {
        let body = json!({"name": name, "level": level, "groups": ["g"], "limits": limits});
        app.admin().post("/admin/v1/tiers", &body).await.json()["limits"].clone()
    };
    let usual = make("silent", 40, Value::Null).await;
    assert_eq!((&usual[0]["amount"], &usual[0]["window"]), (&json!(7), &json!("3m")));
    assert_eq!(make("open", 41, json!([])).await, json!([]));
}

#[tokio::test]
async fn wrong_wishes_for_a_tier_name_the_field_and_the_real_bounds() {
    let app = TestApp::new().start().await;
    for (field, value, says) in [
        ("level", json!(-1), "must be between 0 and 2147483647, found -1"),
        ("level", json!(2_147_483_648_u32), "must be between 0 and 2147483647, found 2147483648"),
        ("weight", json!(0), "must be between 1 and 1000, found 0"),
    ] {
        let mut body = json!({"name": "x", "level": 50, "groups": ["g"]});
        body[field] = value;
        let reply = app.admin().post("/admin/v1/tiers", &body).await;
        assert_eq!((reply.status, reply.param()), (400, json!(field)));
        assert!(reply.body.contains(says), "{}", reply.body);
    }
}

#[tokio::test]
async fn keys_of_somebody_who_was_deleted_are_listed_under_their_name() {
    let app = TestApp::new().start().await;
    let ann = app.user("ann", &[]).await;
    assert_eq!(app.admin().delete("/admin/v1/users/ann").await.status, 200);
    app.user("ann", &[]).await;
    let list = app.admin().get("/admin/v1/api-keys?sort=created_at&order=asc").await.json();
    let users: Vec<&str> = list["data"].as_array().unwrap().iter().map(|key| key["user"].as_str().unwrap()).collect();
    assert_eq!(users.iter().filter(|user| **user == "ann").count(), 1, "{users:?}");
    let former = list["data"].as_array().unwrap().iter().find(|key| key["user"] == "ann (deleted)").unwrap();
    let shown = app.admin().get(&format!("/admin/v1/api-keys/{}", former["id"].as_str().unwrap())).await;
    assert_eq!((shown.status, &shown.json()["status"]), (200, &json!("revoked")));
    assert_eq!(ann.get("/v1/me").await.status, 401);
}

#[tokio::test]
async fn cursors_that_no_list_gave_are_refused() {
    let app = TestApp::new().start().await;
    for (name, group) in [("ann", "a"), ("ben", "b"), ("cid", "c")] {
        app.user(name, &[group]).await;
    }
    for list in ["users", "groups", "audit", "notices", "prices", "api-keys"] {
        let reply = app.admin().get(&format!("/admin/v1/{list}?cursor=garbage")).await;
        assert_eq!((reply.status, reply.param()), (400, json!("cursor")), "{list}: {}", reply.body);
    }
    for list in ["users", "groups"] {
        let mut names = Vec::new();
        let mut next = String::new();
        loop {
            let page = app.admin().get(&format!("/admin/v1/{list}?limit=1{next}")).await.json();
            names.extend(page["data"].as_array().unwrap().iter().map(|one| one["name"].clone()));
            let Some(cursor) = page["next_cursor"].as_str() else { break };
            next = format!("&cursor={cursor}");
        }
        let whole = app.admin().get(&format!("/admin/v1/{list}")).await.json();
        let all: Vec<Value> = whole["data"].as_array().unwrap().iter().map(|one| one["name"].clone()).collect();
        assert!(names == all && names.len() >= 3, "{list}: {names:?}");
    }
}

#[tokio::test]
async fn tiers_are_made_changed_and_deleted() {
    let app = TestApp::new().start().await;
    let admin = app.admin();
    let gold = json!({"name": "gold", "display_name": "Gold", "level": 9, "groups": ["gold-users"],
        "limits": ["5 requests / 2m", {"resource": "tokens", "amount": 1000, "window": "day", "timezone": "Europe/Paris"}]});
    let made = admin.post("/admin/v1/tiers", &gold).await;
    assert_eq!(made.status, 201, "{}", made.body);
    assert_eq!(made.json()["limits"][1]["timezone"], "Europe/Paris");
    assert_eq!(admin.post("/admin/v1/tiers", &gold).await.status, 409);
    let user = app.user("ann", &["gold-users"]).await;
    assert_eq!(user.get("/v1/me").await.json()["tier_display_name"], "Gold");

    let changed =
        admin.put("/admin/v1/tiers/gold", &json!({"limits": [], "display_name": "Pure gold", "name": "ignored"})).await;
    assert_eq!((changed.status, changed.json()["limits"].clone()), (200, json!([])));
    assert_eq!(user.get("/v1/me").await.json()["tier_display_name"], "Pure gold", "on the very next request");
    assert_eq!(admin.put("/admin/v1/tiers/gold", &json!({"levle": 3})).await.param(), "levle");
    let unlimited = user.chat_with("hi", json!({"max_tokens": 1})).await;
    assert_eq!((unlimited.status, unlimited.header("x-ratelimit-limit")), (200, ""), "no limit, no header");

    let preview = admin.delete("/admin/v1/tiers/gold?dry_run=true").await.json();
    assert_eq!(
        (&preview["deleted"], &preview["affected"]),
        (&json!(false), &json!([{"user": "ann", "falls_to": "free"}]))
    );
    assert_eq!(admin.delete("/admin/v1/tiers/gold").await.json()["deleted"], true);
    assert_eq!(user.get("/v1/me").await.json()["tier"], "free");
    assert_eq!(admin.get("/admin/v1/tiers/gold").await.status, 404);
}

#[tokio::test]
async fn the_last_tier_may_go_and_tiers_can_be_made_again() {
    let app = TestApp::new().start().await;
    let (admin, user) = (app.admin(), app.user("ann", &[]).await);
    for name in ["free", "premium", "enterprise"] {
        assert_eq!(admin.delete(&format!("/admin/v1/tiers/{name}")).await.status, 200);
    }
    assert_eq!(user.chat("hi").await.status, 403, "deny by default");
    assert_eq!(user.get("/v1/me").await.json()["tier"], Value::Null);
    let free = json!({"name": "free", "level": 0, "groups": ["system:authenticated"]});
    assert_eq!(admin.post("/admin/v1/tiers", &free).await.status, 201);
    assert_eq!(user.chat_with("hi", json!({"max_tokens": 1})).await.status, 200);
}

#[tokio::test]
async fn tier_lookup_finds_the_highest_level() {
    let app = TestApp::new().start().await;
    let user = app.user("ann", &[]).await;
    let lookup = async |groups: Value| user.post("/v1/tiers/lookup", &json!({"groups": groups})).await;
    let found = lookup(json!(["system:authenticated", "premium-users"])).await.json();
    assert_eq!(
        (&found["tier"], &found["displayName"], &found["level"]),
        (&json!("premium"), &json!("Premium"), &json!(1))
    );
    assert_eq!(lookup(json!([])).await.status, 400);
    assert_eq!(lookup(json!(["strangers"])).await.status, 404);
    assert_eq!(lookup(json!("premium-users")).await.param(), "groups");
}

#[tokio::test]
async fn users_are_changed_deactivated_and_removed_with_their_keys() {
    let app = TestApp::new().start().await;
    let (admin, user) = (app.admin(), app.user("ann", &[]).await);
    let promoted = admin.send_json("PATCH", "/admin/v1/users/ann", &json!({"groups": ["premium-users"]})).await;
    assert_eq!(promoted.json()["groups"], json!(["premium-users"]));
    assert_eq!(user.get("/v1/me").await.json()["tier"], "premium");
    admin.send_json("PATCH", "/admin/v1/users/ann", &json!({"active": false})).await;
    assert_eq!(user.get("/v1/me").await.status, 401);
    admin.send_json("PATCH", "/admin/v1/users/ann", &json!({"active": true})).await;
    assert_eq!(user.get("/v1/me").await.status, 200);
    assert_eq!(admin.delete("/admin/v1/users/ann").await.json()["deleted"], true);
    assert_eq!(user.get("/v1/me").await.status, 401);
    assert_eq!(admin.get("/admin/v1/users/ann").await.status, 404);
    assert_eq!(admin.post("/admin/v1/users", &json!({"name": "bad name"})).await.param(), "name");
    let names = admin.get("/admin/v1/users").await.json();
    assert_eq!(names["data"][0]["name"], "admin");
}

#[tokio::test]
async fn models_are_published_to_tiers() {
    let app = TestApp::new().hidden_model("second").start().await;
    let admin = app.admin();
    let models = admin.get("/admin/v1/models").await.json();
    assert_eq!((&models["data"][0]["tiers"], &models["data"][1]["tiers"]), (&json!("all"), &json!([])));
    assert_eq!(models["data"][0]["status"], "ready");
    let published =
        admin.put("/admin/v1/models/second", &json!({"tiers": "all", "display_name": "Second"})).await.json();
    assert_eq!((&published["published"], &published["display_name"]), (&json!(true), &json!("Second")));
    let hidden = admin.put("/admin/v1/models/second", &json!({"published": false})).await.json();
    assert_eq!(hidden["tiers"], json!([]));
    for (body, param) in [
        (json!({"tiers": ["no-such-tier"]}), "tiers"),
        (json!({"tiers": 5}), "tiers"),
        (json!({"tires": []}), "tires"),
        (json!({"env": []}), "env"),
        (json!({"source": 1}), "source"),
    ] {
        let reply = admin.put("/admin/v1/models/second", &body).await;
        assert_eq!((reply.status, reply.param()), (400, json!(param)), "{}", reply.body);
    }
    let elsewhere = admin.put("/admin/v1/models/second", &json!({"source": "hf:other/model"})).await;
    assert_eq!(elsewhere.status, 409, "{}", elsewhere.body);
    assert!(elsewhere.message().contains("comes from the test"), "{}", elsewhere.body);
    assert_eq!(admin.put("/admin/v1/models/second", &json!({"env": {}})).await.status, 200, "nothing changes");
    assert_eq!(admin.put("/admin/v1/models/third", &json!({})).await.status, 404);
}

#[tokio::test]
async fn groups_are_known_once_somebody_names_them() {
    let app = TestApp::new().start().await;
    let admin = app.admin();
    assert_eq!(admin.post("/admin/v1/groups", &json!({"name": "research"})).await.status, 201);
    app.user("ann", &["red-team"]).await;
    let groups = admin.get("/admin/v1/groups").await.body;
    for name in ["research", "red-team", "millgate-admins"] {
        assert!(groups.contains(&format!("\"{name}\"")), "{name} in {groups}");
    }
}
