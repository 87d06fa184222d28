//! What somebody would try who wants more than they were given. Each test is one attempt, and it fails.

#![expect(clippy::unwrap_used, reason = "in a test a panic is the report")]

use std::time::Duration;

use serde_json::{Value, json};

use crate::support::{Actor, MODEL, Reply, TestApp, chat_body, exchange};

async fn made_with(user: &Actor, body: Value) -> Actor {
    let reply = user.post("/v1/api-keys", &body).await;
    assert_eq!(reply.status, 201, "{}", reply.body);
    user.with_key(reply.json()["key"].as_str().unwrap())
}

async fn id_of(user: &Actor, name: &str) -> String {
    let list = user.get(&format!("/v1/api-keys?name={name}")).await.json();
    list["data"][0]["id"].as_str().unwrap().to_owned()
}

#[tokio::test]
async fn many_children_do_not_multiply_a_keys_limit_also_after_a_restart_of_the_chain() {
    let app = TestApp::new().start().await;
    let user = app.user("ann", &["premium-users"]).await;
    let limited = made_with(&user, json!({"name": "limited", "limits": ["3 requests / 1h"]})).await;
    let child = made_with(&limited, json!({"name": "child"})).await;
    let grandchild = made_with(&child, json!({"name": "grandchild", "limits": ["100 requests / 1h"]})).await;
    let sibling = made_with(&limited, json!({"name": "sibling"})).await;
    assert_eq!(limited.chat("hi").await.status, 200);
    assert_eq!(child.chat("hi").await.status, 200);
    assert_eq!(grandchild.chat("hi").await.status, 200);
    for spent in [&limited, &child, &grandchild, &sibling] {
        let refused = spent.chat("hi").await;
        assert_eq!(refused.status, 429, "{}", refused.body);
    }
    let refused = grandchild.chat("hi").await.json();
    assert_eq!(refused["error"]["detail"]["limit"], "parent key: 3 requests / 1h per key");
    assert_eq!(user.chat("hi").await.status, 200, "the key that nobody limited goes on");
    limited.delete(&format!("/v1/api-keys/{}", id_of(&user, "limited").await)).await;
    assert_eq!(sibling.get("/v1/me").await.status, 200, "children outlive a revoked parent");
    assert_eq!(sibling.chat("hi").await.status, 429, "and its limit holds for them");
}

#[tokio::test]
async fn no_key_makes_or_becomes_a_stronger_one() {
    let app = TestApp::new().hidden_model("secret").start().await;
    app.admin().put("/admin/v1/models/secret", &json!({"tiers": "all"})).await;
    let user = app.user("ann", &["premium-users"]).await;
    let weak =
        made_with(&user, json!({"name": "weak", "models": [MODEL], "expires_in": "1h", "limits": ["2 requests / 1h"]}))
            .await;
    let wider = weak.post("/v1/api-keys", &json!({"name": "x", "models": [MODEL, "secret"]})).await;
    assert_eq!(wider.status, 403);
    let child = made_with(&weak, json!({"name": "child", "expires_in": "300d"})).await;
    let shown = user.get(&format!("/v1/api-keys/{}", id_of(&user, "child").await)).await.json();
    assert_eq!((&shown["models"], &shown["expires_at"]), (&json!([MODEL]), &json!("2023-11-14T23:13:20Z")));
    assert_eq!(child.chat_with("hi", json!({"model": "secret"})).await.status, 403);
    let (own, strong) = (id_of(&user, "weak").await, id_of(&user, "test").await);
    for id in [&own, &strong, &id_of(&user, "child").await] {
        let path = format!("/v1/api-keys/{id}");
        for change in [json!({"limits": ["9 requests / 1h"]}), json!({"models": [MODEL, "secret"]})] {
            let reply = weak.send_json("PATCH", &path, &change).await;
            assert_eq!(reply.status, 403, "{id} {change}: {}", reply.body);
        }
    }
    assert_eq!(weak.send_json("PATCH", &format!("/v1/api-keys/{own}"), &json!({"limits": []})).await.status, 403);
    let stolen = weak.post(&format!("/v1/api-keys/{strong}/rotate"), &json!({})).await;
    assert_eq!(stolen.status, 403, "a weak key does not get the secret of a strong one");
    assert_eq!(weak.post(&format!("/v1/api-keys/{own}/rotate"), &json!({})).await.status, 200, "its own it may");
    app.advance(Duration::from_secs(3600));
    assert_eq!((weak.get("/v1/me").await.status, child.get("/v1/me").await.status), (401, 401), "no child outlives it");
}

#[tokio::test]
async fn what_a_replaced_secret_made_ends_with_it_and_it_gets_no_new_one() {
    let app = TestApp::new().start().await;
    let user = app.user("ann", &[]).await;
    let old = made_with(&user, json!({"name": "leaked"})).await;
    let path = format!("/v1/api-keys/{}", id_of(&user, "leaked").await);
    let token_of = async |who: &Actor| {
        let made = who.post("/v1/tokens", &json!({"expiration": "24h"})).await.json();
        (who.with_key(made["token"].as_str().unwrap()), made["expires_at"].clone())
    };
    let rotated = async |grace: &str| {
        let reply = user.post(&format!("{path}/rotate"), &json!({"grace": grace})).await;
        user.with_key(reply.json()["key"].as_str().unwrap())
    };
    let (before, _) = token_of(&old).await;
    let new = rotated("10m").await;
    assert_eq!(old.post(&format!("{path}/rotate"), &json!({})).await.status, 403, "a thief would keep the key");
    let child = made_with(&old, json!({"name": "child", "expires_in": "300d"})).await;
    let shown = user.get(&format!("/v1/api-keys/{}", id_of(&user, "child").await)).await.json();
    let (token, ends) = token_of(&old).await;
    assert_eq!((&shown["expires_at"], &ends), (&json!("2023-11-14T22:23:20Z"), &json!("2023-11-14T22:23:20Z")));
    let (newer, _) = token_of(&new).await;
    for works in [&old, &before, &child, &token, &new, &newer] {
        assert_eq!(works.get("/v1/me").await.status, 200, "all work in the grace");
    }
    app.advance(Duration::from_secs(600));
    for ended in [&old, &before, &child, &token] {
        assert_eq!(ended.get("/v1/me").await.status, 401);
    }
    assert_eq!((new.get("/v1/me").await.status, newer.get("/v1/me").await.status), (200, 200));
    let newest = rotated("0s").await;
    assert_eq!((newer.get("/v1/me").await.status, newest.get("/v1/me").await.status), (401, 200), "at once");
}

#[tokio::test]
async fn narrowing_a_key_narrows_the_keys_it_made() {
    let app = TestApp::new().hidden_model("secret").start().await;
    app.admin().put("/admin/v1/models/secret", &json!({"tiers": "all"})).await;
    let user = app.user("ann", &["premium-users"]).await;
    let parent = made_with(&user, json!({"name": "parent"})).await;
    let child = made_with(&parent, json!({"name": "child"})).await;
    assert_eq!(child.chat_with("hi", json!({"model": "secret"})).await.status, 200);
    let path = format!("/v1/api-keys/{}", id_of(&user, "parent").await);
    assert_eq!(user.send_json("PATCH", &path, &json!({"models": [MODEL]})).await.status, 200);
    assert_eq!(child.chat_with("hi", json!({"model": "secret"})).await.status, 403);
    assert_eq!(child.chat("hi").await.status, 200);
}

#[tokio::test]
async fn what_an_administrator_set_on_a_key_its_owner_cannot_change() {
    let app = TestApp::new().start().await;
    let user = app.user("ann", &["premium-users"]).await;
    let made = app
        .admin()
        .post("/admin/v1/api-keys", &json!({"user": "ann", "name": "given", "limits": ["1 requests / 1h"]}))
        .await
        .json();
    assert_eq!(made["limits_set_by"], "administrator");
    let path = format!("/v1/api-keys/{}", made["id"].as_str().unwrap());
    for change in [json!({"limits": []}), json!({"limits": ["9 requests / 1h"]}), json!({"models": [MODEL]})] {
        assert_eq!(user.send_json("PATCH", &path, &change).await.status, 403, "{change}");
    }
    assert_eq!(user.send_json("PATCH", &path, &json!({"name": "renamed"})).await.json()["name"], "renamed");
    let admin_path = format!("/admin{path}");
    let freed = app.admin().send_json("PATCH", &admin_path, &json!({"limits": []})).await.json();
    assert_eq!((&freed["limits"], freed["limits_set_by"].as_str()), (&json!([]), Some("owner")));
    assert_eq!(user.send_json("PATCH", &path, &json!({"limits": ["5 requests / 1h"]})).await.status, 200);
    let again = app.admin().send_json("PATCH", &admin_path, &json!({"limits": ["2 requests / 1h"]})).await.json();
    assert_eq!(again["limits_set_by"], "administrator");
    assert_eq!(user.send_json("PATCH", &path, &json!({"limits": []})).await.status, 403);
}

#[tokio::test]
async fn nobody_becomes_an_administrator_by_group_names_and_no_administrator_locks_everybody_out() {
    let app = TestApp::new().start().await;
    for group in ["system:masters", "system:authenticated", "system:serviceaccounts:x", " a", "a\u{0}b", ""] {
        let made = app.admin().post("/admin/v1/users", &json!({"name": "eve", "groups": [group]})).await;
        assert_eq!(made.status, 400, "{group:?}: {}", made.body);
    }
    let eve = app.user("eve", &["MILLGATE-ADMINS", "millgate-admins-2", "x-millgate-admins"]).await;
    assert_eq!(eve.get("/admin/v1/users").await.status, 403);
    let raise = eve.send_json("PATCH", "/admin/v1/users/eve", &json!({"groups": ["millgate-admins"]})).await;
    assert_eq!(raise.status, 403);
    let patch = async |who: &Actor, body: Value| who.send_json("PATCH", "/admin/v1/users/admin", &body).await;
    for body in [json!({"active": false}), json!({"groups": []})] {
        let refused = patch(&app.admin(), body).await;
        assert_eq!(refused.status, 409, "{}", refused.body);
        assert!(refused.message().contains("another administrator"), "{}", refused.message());
    }
    assert_eq!(app.admin().delete("/admin/v1/users/admin").await.status, 409);
    assert_eq!(patch(&app.admin(), json!({"groups": ["millgate-admins", "premium-users"]})).await.status, 200);
    let second = app.user("zoe", &["millgate-admins"]).await;
    assert_eq!(patch(&second, json!({"groups": []})).await.status, 200, "another one may, as long as one stays");
    assert_eq!(app.admin().get("/admin/v1/users").await.status, 403);
    let operator = app.operator();
    let gone = app.governor.delete_user(&operator, "zoe").await.unwrap_err();
    assert!(gone.to_string().contains("last administrator"), "{gone}");
}

#[tokio::test]
async fn repeating_a_request_id_uses_and_pays_every_time() {
    let app = TestApp::new().tier("tight", |tier| tier.limit("3 requests / 1h")).start().await;
    let user = app.key("tight").await;
    let mut used = 0;
    for round in 0..4 {
        let request = user
            .request("POST", "/v1/chat/completions")
            .header("x-request-id", "the-same-one")
            .header("x-millgate-request-id", "018bcfe5-6800-7000-8000-000000000000")
            .header("idempotency-key", "the-same-one")
            .json(&chat_body("hi", json!({"request_id": "the-same-one"})));
        let reply = Reply::read(request.send().await.unwrap()).await;
        assert_eq!(reply.status, if round < 3 { 200 } else { 429 }, "{}", reply.body);
        assert_eq!(reply.header("x-request-id"), "the-same-one");
        assert_ne!(reply.header("x-millgate-request-id"), "018bcfe5-6800-7000-8000-000000000000");
        if round < 3 {
            used += reply.total_tokens();
        }
    }
    let rows = app.ledger().await;
    assert_eq!(rows.len(), 3);
    assert_eq!(rows.iter().map(|row| row.usage.total_tokens()).sum::<u64>(), used);
    assert!(rows.iter().all(|row| row.request.client_request_id.as_deref() == Some("the-same-one")));
}

/// Prompts that were given to the tokenizers so far.
async fn tokenized(app: &TestApp) -> u64 {
    let metrics = app.anonymous().get("/metrics").await.body;
    let line = metrics.lines().find(|line| line.starts_with("millgate_tokenizations_total ")).unwrap();
    line.rsplit(' ').next().unwrap().parse().unwrap()
}

#[tokio::test]
async fn nobody_makes_the_server_tokenize_before_it_knows_them_and_that_they_may() {
    let app = TestApp::new().hidden_model("secret").tier("tight", |tier| tier.limit("1 requests / 1h")).start().await;
    let user = app.key("tight").await;
    let long = "word ".repeat(300);
    for path in ["/v1/chat/completions", "/v1/completions", "/llm/fake/v1/chat/completions"] {
        let body = json!({"model": MODEL, "prompt": long, "messages": [{"role": "user", "content": long}]});
        assert_eq!(app.anonymous().post(path, &body).await.status, 401);
        assert_eq!(app.anonymous().with_key("sk-mg_made_up").post(path, &body).await.status, 401);
    }
    assert_eq!(user.chat_with(&long, json!({"model": "secret"})).await.status, 403);
    assert_eq!(user.chat_with(&long, json!({"model": "none"})).await.status, 404);
    assert_eq!(tokenized(&app).await, 0, "the tokenizers were not entered");
    assert_eq!(user.chat("hi").await.status, 200);
    assert_eq!(tokenized(&app).await, 1, "the gauge moves");
    assert_eq!(user.chat(&long).await.status, 429);
    assert_eq!(tokenized(&app).await, 1, "who has no request left costs nothing either");
}

#[tokio::test]
async fn guessing_keys_is_slow_for_the_guesser_behind_a_proxy_and_for_nobody_else() {
    let app = TestApp::new().api(|api| api.trusted_proxies = vec!["127.0.0.0/8".parse().unwrap()]).start().await;
    let user = app.user("ann", &[]).await;
    let guess = async |forwarded: &str| {
        let request =
            app.anonymous().with_key("sk-mg_guess").request("GET", "/v1/me").header("x-forwarded-for", forwarded);
        Reply::read(request.send().await.unwrap()).await
    };
    for round in 0..121 {
        // The left part is the guesser's own claim and differs each time; the /64 is the same.
        let reply = guess(&format!("203.0.113.{}, 2001:db8::{round:x}", round % 250)).await;
        assert_eq!(reply.status, if round < 120 { 401 } else { 429 }, "attempt {round}");
    }
    assert!(guess("2001:db8::ffff").await.retry_after().unwrap() <= Duration::from_millis(500));
    assert_eq!(guess("2001:db8:0:1::1").await.status, 401, "the neighbour's network is another source");
    let valid = user.request("GET", "/v1/me").header("x-forwarded-for", "2001:db8::1");
    assert_eq!(valid.send().await.unwrap().status(), 200, "a right credential passes from there, too");
    app.advance(Duration::from_millis(500));
    assert_eq!(guess("2001:db8::1").await.status, 401, "two a second are allowed again");
}

#[tokio::test]
async fn nobody_fills_the_audit_log_or_holds_up_administration_with_changes_to_their_own_keys() {
    let app = TestApp::new().start().await;
    let (eve, ann) = (app.user("eve", &[]).await, app.user("ann", &[]).await);
    let made = eve.post("/v1/api-keys", &json!({"name": "spare"})).await.json();
    let spare = format!("/v1/api-keys/{}", made["id"].as_str().unwrap());
    for round in 1..120 {
        let reply = match round % 3 {
            0 => eve.delete("/v1/tokens").await,
            1 => eve.send_json("PATCH", &spare, &json!({"name": format!("{round}")})).await,
            _ => eve.post(&format!("{spare}/rotate"), &json!({})).await,
        };
        assert!(reply.status < 300, "{round}: {}", reply.body);
    }
    let rows = async || app.admin().get("/admin/v1/audit?limit=1").await.json()["data"][0]["id"].clone();
    let before = rows().await;
    for refused in [
        eve.delete("/v1/tokens").await,
        eve.send_json("PATCH", &spare, &json!({"name": "x"})).await,
        eve.post(&format!("{spare}/rotate"), &json!({})).await,
        eve.post("/v1/api-keys", &json!({"name": "x"})).await,
    ] {
        assert_eq!((refused.status, refused.json()["error"]["type"].as_str()), (429, Some("rate_limit_error")));
        assert!(refused.retry_after().unwrap() <= Duration::from_millis(500));
    }
    assert_eq!(rows().await, before, "what is refused is not written");
    assert_eq!(eve.delete(&spare).await.status, 200, "nobody is kept from ending a key");
    assert_eq!(ann.post("/v1/api-keys", &json!({"name": "hers"})).await.status, 201, "others are not concerned");
    app.advance(Duration::from_millis(500));
    assert_eq!(eve.delete("/v1/tokens").await.status, 204, "two a second are allowed again");
}

#[tokio::test]
async fn raw_nonsense_in_headers_is_answered_and_never_a_500() {
    let app = TestApp::new().start().await;
    let key = app.user("ann", &[]).await.key.unwrap();
    for line in [
        "authorization: Bearer \u{0}",
        "authorization: Bearer x\r\nauthorization: Bearer y",
        "x-api-key:\r\nx-api-key: \t",
        "content-length: 5\r\ncontent-length: 6",
        "content-type: \u{fffd}",
        "x-request-id: \"><script>",
        "host: \r\nhost: a",
    ] {
        let request = format!("GET /v1/me HTTP/1.1\r\nhost: t\r\nconnection: close\r\n{line}\r\n\r\n");
        let answer = exchange(app.address, request.as_bytes()).await;
        let status: u16 = answer.get(9..12).and_then(|code| code.parse().ok()).unwrap_or(400);
        assert!((400..500).contains(&status), "{line:?}: {answer}");
    }
    let fine =
        format!("GET /v1/me HTTP/1.1\r\nhost: t\r\nconnection: close\r\nx-api-key: {key}\r\nx-odd: \u{e9}\r\n\r\n");
    assert!(exchange(app.address, fine.as_bytes()).await.starts_with("HTTP/1.1 200"));
}
