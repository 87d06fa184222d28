//! K1 to K10 and X16: the life of API keys.

#![expect(clippy::unwrap_used, reason = "in a test a panic is the report")]

use std::time::Duration;

use serde_json::{Value, json};

use crate::support::{Actor, MODEL, TestApp};

async fn create(user: &Actor, body: Value) -> Value {
    let reply = user.post("/v1/api-keys", &body).await;
    assert_eq!(reply.status, 201, "{}", reply.body);
    reply.json()
}

fn names(list: &Value) -> Vec<&str> {
    list["data"].as_array().unwrap().iter().map(|key| key["name"].as_str().unwrap()).collect()
}

#[tokio::test]
async fn k1_a_key_is_shown_when_it_is_made_and_never_again() {
    let app = TestApp::new().start().await;
    let user = app.user("ann", &[]).await;
    let made = create(&user, json!({"name": "laptop", "description": "the old one"})).await;
    let (key, id) = (made["key"].as_str().unwrap(), made["id"].as_str().unwrap());
    assert!(key.starts_with(made["prefix"].as_str().unwrap()));
    assert_eq!((made["status"].as_str(), made["limits_set_by"].as_str()), (Some("active"), Some("owner")));
    assert_eq!(user.with_key(key).get("/v1/me").await.status, 200);
    let secret = key.rsplit('_').next().unwrap();
    for path in [&format!("/v1/api-keys/{id}"), "/v1/api-keys", "/v1/api-keys?name=lap&status=active"] {
        let reply = user.get(path).await;
        assert!(reply.status == 200 && reply.body.contains("laptop"), "{path}: {}", reply.body);
        assert!(!reply.body.contains(secret), "{path} shows the secret");
    }
    let twice = user.post("/v1/api-keys", &json!({})).await;
    assert_eq!((twice.status, twice.param()), (400, json!("name")));
}

#[tokio::test]
async fn k2_keys_are_listed_in_pages_filtered_and_sorted() {
    let app = TestApp::new().start().await;
    let user = app.user("ann", &[]).await;
    for (name, labels) in [("beta", json!({"team": "a"})), ("Alpha", json!({"team": "b"})), ("gamma", json!({}))] {
        app.advance(Duration::from_secs(60));
        create(&user, json!({"name": name, "labels": labels})).await;
    }
    let list = async |query: &str| user.get(&format!("/v1/api-keys?{query}")).await.json();
    assert_eq!(names(&list("").await), ["gamma", "Alpha", "beta", "test"]);
    assert_eq!(names(&list("order=asc").await), ["test", "beta", "Alpha", "gamma"]);
    assert_eq!(names(&list("sort=name").await), ["Alpha", "beta", "gamma", "test"]);
    assert_eq!(names(&list("name=ALPH").await), ["Alpha"]);
    assert_eq!(names(&list("label=team").await), ["Alpha", "beta"]);
    assert_eq!(names(&list("label=team%3Da").await), ["beta"]);
    assert_eq!(names(&list("created_after=1700000100&created_before=2023-11-14T22:16:20Z").await), ["Alpha"]);
    assert_eq!(names(&list("sort=last_used_at").await).len(), 4);
    for sort in ["created_at", "expires_at", "name"] {
        let (mut seen, mut cursor) = (Vec::new(), String::new());
        for page in 0..4 {
            let reply = list(&format!("sort={sort}&limit=1{cursor}")).await;
            assert_eq!(reply["has_more"], page < 3, "{sort}");
            seen.extend(names(&reply).into_iter().map(str::to_owned));
            cursor = format!("&cursor={}", reply["next_cursor"].as_str().unwrap_or_default());
        }
        seen.sort();
        assert_eq!(seen, ["Alpha", "beta", "gamma", "test"], "each once, by {sort}");
    }
    let id = list("name=beta").await["data"][0]["id"].as_str().unwrap().to_owned();
    user.delete(&format!("/v1/api-keys/{id}")).await;
    assert_eq!(names(&list("status=revoked").await), ["beta"]);
    assert_eq!(names(&list("status=active,expired&label=team").await), ["Alpha"]);
    for (query, param) in
        [("status=alive", "status"), ("sort=colour", "sort"), ("cursor=x", "cursor"), ("user=bob", "user")]
    {
        let reply = user.get(&format!("/v1/api-keys?{query}")).await;
        assert_eq!((reply.status, reply.param()), (400, json!(param)), "{query}");
    }
    let all = app.admin().get("/admin/v1/api-keys?user=ann&label=team&status=active").await.json();
    assert_eq!(names(&all), ["Alpha"]);
}

#[tokio::test]
async fn k3_a_revoked_key_says_so_and_cannot_be_revoked_again() {
    let app = TestApp::new().start().await;
    let user = app.user("ann", &[]).await;
    let made = create(&user, json!({"name": "k"})).await;
    let path = format!("/v1/api-keys/{}", made["id"].as_str().unwrap());
    let revoked = user.delete(&path).await;
    assert_eq!((revoked.status, revoked.json()["status"].as_str()), (200, Some("revoked")));
    assert_eq!(user.delete(&path).await.status, 404);
    assert_eq!(user.delete("/v1/api-keys/unknown").await.status, 404);
    assert_eq!(user.get(&path).await.json()["status"], "revoked", "it stays on the record");
    assert_eq!(user.post(&format!("{path}/rotate"), &json!({})).await.status, 404);
}

#[tokio::test]
async fn k4_another_users_key_does_not_exist_and_an_administrator_may() {
    let app = TestApp::new().start().await;
    let (ann, bob) = (app.user("ann", &[]).await, app.user("bob", &[]).await);
    let id = create(&ann, json!({"name": "hers"})).await["id"].as_str().unwrap().to_owned();
    let own = format!("/v1/api-keys/{id}");
    for other in [&bob, &app.admin()] {
        assert_eq!(other.get(&own).await.status, 404);
        assert_eq!(other.delete(&own).await.status, 404);
        assert_eq!(other.send_json("PATCH", &own, &json!({"name": "mine"})).await.status, 404);
        assert_eq!(other.post(&format!("{own}/rotate"), &json!({})).await.status, 404);
    }
    let any = format!("/admin/v1/api-keys/{id}");
    assert_eq!(bob.get(&any).await.status, 403);
    assert_eq!(app.admin().get(&any).await.json()["user"], "ann");
    assert_eq!(app.admin().delete(&any).await.json()["status"], "revoked");
}

#[tokio::test]
async fn k5_many_keys_are_revoked_at_once_and_a_dry_run_changes_nothing() {
    let app = TestApp::new().start().await;
    let (ann, bob) = (app.user("ann", &[]).await, app.user("bob", &[]).await);
    for name in ["one", "two"] {
        create(&ann, json!({"name": name, "labels": {"run": "7"}})).await;
    }
    create(&bob, json!({"name": "his", "labels": {"run": "7"}})).await;
    let bulk = async |who: &Actor, path: &str, body: Value| who.post(&format!("{path}/bulk-revoke"), &body).await;
    let empty = bulk(&ann, "/v1/api-keys", json!({})).await;
    assert_eq!(empty.status, 400, "a body that selects nothing revokes nothing: {}", empty.body);
    assert_eq!(bulk(&ann, "/v1/api-keys", json!({"dry_run": true})).await.status, 400);
    assert_eq!(bulk(&ann, "/v1/api-keys", json!({"user": "bob"})).await.status, 403);
    assert_eq!(bulk(&ann, "/admin/v1/api-keys", json!({"user": "ann"})).await.status, 403);
    assert_eq!(bulk(&app.admin(), "/admin/v1/api-keys", json!({})).await.status, 400);
    let dry = bulk(&ann, "/v1/api-keys", json!({"label": "run=7", "dry_run": true})).await.json();
    assert_eq!((dry["count"].as_u64(), dry["dry_run"].as_bool()), (Some(2), Some(true)));
    assert_eq!(names(&ann.get("/v1/api-keys?status=active").await.json()).len(), 3);
    let done = bulk(&ann, "/v1/api-keys", json!({"label": "run=7"})).await.json();
    assert_eq!((done["count"].as_u64(), done["data"][0]["status"].as_str()), (Some(2), Some("revoked")));
    assert_eq!(names(&ann.get("/v1/api-keys?status=active").await.json()), ["test"]);
    let rest = bulk(&app.admin(), "/admin/v1/api-keys", json!({"label": "run"})).await.json();
    assert_eq!((rest["count"].as_u64(), rest["data"][0]["user"].as_str()), (Some(1), Some("bob")));
    app.advance(Duration::from_secs(1));
    let old =
        bulk(&app.admin(), "/v1/api-keys", json!({"user": "ann", "created_before": "2023-11-14T22:13:21Z"})).await;
    assert_eq!(old.json()["count"], 1);
    assert_eq!(ann.get("/v1/me").await.status, 401);
    let own = bulk(&bob, "/v1/api-keys", json!({"user": "bob"})).await.json();
    assert_eq!((own["count"].as_u64(), bob.get("/v1/me").await.status), (Some(1), 401));
}

#[tokio::test]
async fn k6_a_life_within_the_limit_is_given_and_a_longer_one_is_refused_by_name() {
    let app = TestApp::new().start().await;
    let user = app.user("ann", &[]).await;
    let life =
        async |expires_in: &str| user.post("/v1/api-keys", &json!({"name": "k", "expires_in": expires_in})).await;
    assert_eq!(life("1h").await.json()["expires_at"], "2023-11-14T23:13:20Z");
    assert_eq!(life("365d").await.status, 201);
    let longer = life("366d").await;
    assert_eq!((longer.status, longer.param()), (400, json!("expires_in")));
    assert!(longer.message().contains("at most 365d"), "{}", longer.message());
    for nonsense in ["0s", "1w", "-1h", "soon"] {
        assert_eq!(life(nonsense).await.status, 400, "{nonsense}");
    }
    assert_eq!(create(&user, json!({"name": "usual"})).await["expires_at"], "2024-02-12T22:13:20Z", "90 days");
}

#[tokio::test]
async fn k7_a_key_is_refused_from_the_instant_it_ends() {
    let app = TestApp::new().start().await;
    let user = app.user("ann", &[]).await;
    let made = create(&user, json!({"name": "short", "expires_in": "1s"})).await;
    let short = user.with_key(made["key"].as_str().unwrap());
    app.advance(Duration::from_millis(999));
    assert_eq!(short.get("/v1/me").await.status, 200);
    app.advance(Duration::from_millis(1));
    assert_eq!(short.get("/v1/me").await.status, 401);
    let path = format!("/v1/api-keys/{}", made["id"].as_str().unwrap());
    assert_eq!(user.get(&path).await.json()["status"], "expired");
    assert_eq!(user.post(&format!("{path}/rotate"), &json!({})).await.status, 409, "a new one is made instead");
}

#[tokio::test]
async fn k8_labels_are_kept_found_changed_and_checked() {
    let app = TestApp::new().start().await;
    let user = app.user("ann", &[]).await;
    let plain = create(&user, json!({"name": "plain"})).await;
    assert_eq!(plain["labels"], json!({}));
    let tricky = json!({"team": "r\"d\\", "env": "prod"});
    let made = create(&user, json!({"name": "k", "labels": tricky})).await;
    assert_eq!(made["labels"], tricky);
    assert_eq!(names(&user.get("/v1/api-keys?label=team%3Dr%22d%5C&label=env%3Dprod").await.json()), ["k"]);
    assert_eq!(names(&user.get("/v1/api-keys?label=team%3Dr").await.json()).len(), 0, "the whole value");
    let path = format!("/v1/api-keys/{}", made["id"].as_str().unwrap());
    let changed = user.send_json("PATCH", &path, &json!({"name": "new", "labels": {"env": "test"}})).await.json();
    assert_eq!((changed["name"].as_str(), &changed["labels"]), (Some("new"), &json!({"env": "test"})));
    let back = user.send_json("PATCH", &path, &changed).await;
    assert_eq!(back.json(), changed, "what was shown may be sent back");
    for labels in [json!({"a b": "x"}), json!({"": "x"}), json!({"a": "x\n"}), json!({"a": 1}), json!({"a\"": "x"})] {
        for (method, path) in [("POST", "/v1/api-keys"), ("PATCH", path.as_str())] {
            let reply = user.send_json(method, path, &json!({"name": "k", "labels": labels})).await;
            assert_eq!(reply.status, 400, "{method} {labels}: {}", reply.body);
        }
    }
    let unknown = user.send_json("PATCH", &path, &json!({"expires_in": "9d"})).await;
    assert_eq!((unknown.status, unknown.param()), (400, json!("expires_in")));
}

#[tokio::test]
async fn k9_ephemeral_keys_stay_out_of_lists_and_only_those_that_ended_are_forgotten() {
    let app = TestApp::new().start().await;
    let user = app.user("ann", &[]).await;
    let made = create(&user, json!({"ephemeral": true, "expires_in": "10m"})).await;
    let lasting = create(&user, json!({"ephemeral": true})).await;
    assert!(made["name"].as_str().unwrap().starts_with("ephemeral-"));
    assert_eq!(lasting["expires_at"], "2023-11-14T23:13:20Z", "an hour, unless it says less");
    let longer = user.post("/v1/api-keys", &json!({"ephemeral": true, "expires_in": "2h"})).await;
    assert!(longer.status == 400 && longer.message().contains("at most 1h"), "{}", longer.body);
    assert_eq!(names(&user.get("/v1/api-keys").await.json()), ["test"]);
    let all = async || user.get("/v1/api-keys?include_ephemeral=true").await.json()["data"].as_array().unwrap().len();
    assert_eq!(all().await, 3);
    let ephemeral = user.with_key(made["key"].as_str().unwrap());
    assert_eq!(ephemeral.chat("hi").await.status, 200);
    app.advance(Duration::from_secs(41 * 60));
    app.eventually("the one that ended is forgotten", async |_| all().await == 2).await;
    assert_eq!(user.with_key(lasting["key"].as_str().unwrap()).get("/v1/me").await.status, 200);
    assert_eq!(ephemeral.get("/v1/me").await.status, 401);
    assert_eq!(app.ledger().await.len(), 1, "what it used stays");
}

#[tokio::test]
async fn k10_after_a_revocation_a_new_key_works_and_keys_are_ended_one_by_one() {
    let app = TestApp::new().start().await;
    let user = app.user("ann", &[]).await;
    let made: Vec<Value> =
        [create(&user, json!({"name": "a"})).await, create(&user, json!({"name": "b"})).await].into();
    user.delete(&format!("/v1/api-keys/{}", made[0]["id"].as_str().unwrap())).await;
    assert_eq!(user.with_key(made[0]["key"].as_str().unwrap()).get("/v1/me").await.status, 401);
    let rest = user.with_key(made[1]["key"].as_str().unwrap());
    assert_eq!(rest.get("/v1/me").await.status, 200);
    let again = create(&rest, json!({"name": "a"})).await;
    assert_eq!(rest.with_key(again["key"].as_str().unwrap()).chat("hi").await.status, 200);
}

#[tokio::test]
async fn x16_a_rotated_key_is_one_key_and_the_old_secret_works_until_its_grace_ends() {
    let app = TestApp::new().start().await;
    let user = app.user("ann", &["premium-users"]).await;
    let made = create(&user, json!({"name": "k", "limits": ["3 requests / 1h"], "models": [MODEL]})).await;
    let path = format!("/v1/api-keys/{}", made["id"].as_str().unwrap());
    let old = user.with_key(made["key"].as_str().unwrap());
    assert_eq!(old.chat("hi").await.status, 200);
    let rotated = old.post(&format!("{path}/rotate"), &json!({"grace": "10m"})).await.json();
    let new = user.with_key(rotated["key"].as_str().unwrap());
    assert_eq!((&rotated["id"], &rotated["expires_at"]), (&made["id"], &made["expires_at"]));
    assert_eq!(rotated["previous_secret_until"], "2023-11-14T22:23:20Z");
    assert_eq!((old.chat("hi").await.status, new.chat("hi").await.status), (200, 200));
    let refused = new.chat("hi").await;
    assert_eq!(refused.status, 429, "one limit for both");
    assert_eq!(refused.json()["error"]["detail"]["limit"], "key: 3 requests / 1h per key");
    assert_eq!(names(&user.get("/v1/api-keys?name=k").await.json()), ["k"]);
    app.advance(Duration::from_secs(600));
    assert_eq!((old.get("/v1/me").await.status, new.get("/v1/me").await.status), (401, 200));
    let at_once = new.post(&format!("{path}/rotate"), &json!({"grace": "0s"})).await.json();
    assert_eq!(new.get("/v1/me").await.status, 401, "no grace, no old secret");
    let newest = user.with_key(at_once["key"].as_str().unwrap());
    let no_body = newest.send("POST", &format!("{path}/rotate")).await;
    assert_eq!(no_body.json()["previous_secret_until"], "2023-11-15T22:23:20Z", "a day when nobody says");
    let last = user.with_key(no_body.json()["key"].as_str().unwrap());
    assert_eq!((newest.get("/v1/me").await.status, last.get("/v1/me").await.status), (200, 200));
    let long = last.post(&format!("{path}/rotate"), &json!({"grace": "31d"})).await;
    assert!(long.status == 400 && long.message().contains("at most 30d"), "{}", long.body);
    user.delete(&path).await;
    assert_eq!((newest.get("/v1/me").await.status, last.get("/v1/me").await.status), (401, 401));
}

#[tokio::test]
async fn x16_a_key_is_bound_to_its_models_and_limits() {
    let app = TestApp::new().start().await;
    let user = app.user("ann", &["premium-users"]).await;
    let other = create(&user, json!({"name": "k", "models": ["not-yet"]})).await;
    let other = user.with_key(other["key"].as_str().unwrap());
    assert_eq!(other.chat("hi").await.status, 403);
    assert_eq!(other.get("/v1/models").await.json()["data"], json!([]));
    let made = create(&user, json!({"name": "k", "limits": ["1 requests / 1m"]})).await;
    let limited = user.with_key(made["key"].as_str().unwrap());
    assert_eq!((limited.chat("hi").await.status, limited.chat("hi").await.status), (200, 429));
    assert_eq!(user.chat("hi").await.status, 200, "the user's other keys go on");
}
