//! X21: a share of a quota that is used up is visible in a header, in the usage API and through the webhook, and blocks nothing.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Redirect, Response};
use axum::routing::post;
use hmac::{Hmac, KeyInit, Mac};
use millgate::app::Webhook;
use millgate::governance::notices::{Notice, NoticeState};
use millgate::governance::ports::JournalEntry;
use millgate::governance::{Config, Principal, Secret, Status};
use serde_json::{Value, json};
use sha2::Sha256;
use tokio_util::task::TaskTracker;

use crate::governance_house::{House, ask, used};
use crate::support::{Actor, TestApp};

const SECRET: &str = "a-secret-for-the-webhook-of-tests";
const DAY: Duration = Duration::from_secs(24 * 3600);

/// Thirty tokens, whatever the model says; the notice of the answer.
async fn thirty(user: &Actor) -> String {
    let reply = user.complete(json!([65, 65, 65, 65, 65, 65, 65, 65, 65, 65]), json!({"max_tokens": 20})).await;
    assert_eq!(reply.status, 200, "{}", reply.body);
    reply.header("x-millgate-quota-notice").to_owned()
}

#[tokio::test]
async fn x21_a_soft_threshold_is_visible_in_header_and_usage_api_without_blocking() {
    let tier = |tier: crate::support::TierSpec| tier.limit("100 tokens / day soft").limit("1000 requests / 1m");
    let app = TestApp::new().tier("metered", tier).fake(|fake| fake.end_logit = f32::NEG_INFINITY).start().await;
    let user = app.key("metered").await;
    let mut told = Vec::new();
    for _ in 0..5 {
        told.push(thirty(&user).await);
    }
    let name = "\"metered: 100 tokens / day soft\"";
    let expected = ["", "", ";threshold=50;used=60", ";threshold=80;used=90", ";threshold=95;used=120"];
    let expected = expected.map(|rest| if rest.is_empty() { String::new() } else { format!("{name}{rest}") });
    assert_eq!(told, expected);
    let limits = user.get("/v1/me").await.json()["limits"].clone();
    assert_eq!((&limits[0]["notice"], &limits[1]["notice"]), (&json!(95), &Value::Null), "rates have no thresholds");
    let noticed = async |app: &TestApp| -> Vec<Value> {
        app.admin().get("/admin/v1/notices").await.json()["data"].as_array().unwrap().clone()
    };
    app.eventually("three thresholds are noticed", async |app| noticed(app).await.len() == 3).await;
    let mut thresholds: Vec<u64> = noticed(&app).await.iter().map(|one| one["threshold"].as_u64().unwrap()).collect();
    thresholds.sort_unstable();
    assert_eq!(thresholds, [50, 80, 95], "each once");
    let newest = noticed(&app).await.into_iter().find(|one| one["threshold"] == 95).unwrap();
    assert_eq!(
        (&newest["used"], &newest["amount"], &newest["delivery"]["state"]),
        (&json!(120), &json!(100), &json!("unsent"))
    );
    app.advance(DAY);
    assert_eq!(thirty(&user).await, "", "a new day");
    assert_eq!(thirty(&user).await, "");
    app.eventually("the new day has its own", async |app| noticed(app).await.len() == 4).await;
    let page = app.admin().get("/admin/v1/notices?limit=3").await.json();
    assert_eq!((page["has_more"].as_bool(), page["data"].as_array().map(Vec::len)), (Some(true), Some(3)));
    let rest =
        app.admin().get(&format!("/admin/v1/notices?cursor={}", page["next_cursor"].as_str().unwrap())).await.json();
    assert_eq!(rest["data"].as_array().map(Vec::len), Some(1));
}

/// What a receiver got, and what it answers next; nothing left: 200.
#[derive(Clone, Default)]
struct Receiver {
    got: Arc<Mutex<Vec<(HeaderMap, String)>>>,
    answers: Arc<Mutex<VecDeque<StatusCode>>>,
}

impl Receiver {
    /// Listens on this machine; `/elsewhere` must never be asked.
    async fn start(answers: &[StatusCode]) -> (Self, String) {
        let receiver = Self { answers: Arc::new(Mutex::new(answers.iter().copied().collect())), ..Self::default() };
        let router = Router::new().route("/hook", post(take)).route("/elsewhere", post(take).get(take));
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let router = router.with_state(receiver.clone());
        TaskTracker::new().spawn(async move { axum::serve(listener, router).await });
        (receiver, format!("http://{address}/hook"))
    }

    fn got(&self) -> Vec<(HeaderMap, String)> {
        self.got.lock().expect("no panic").clone()
    }
}

async fn take(State(receiver): State<Receiver>, headers: HeaderMap, body: String) -> Response {
    receiver.got.lock().expect("no panic").push((headers, body));
    match receiver.answers.lock().expect("no panic").pop_front() {
        None => StatusCode::OK.into_response(),
        Some(StatusCode::TEMPORARY_REDIRECT) => Redirect::temporary("/elsewhere").into_response(),
        Some(status) => status.into_response(),
    }
}

/// True when the header signs the body with the secret.
fn is_signed((headers, body): &(HeaderMap, String)) -> bool {
    let signature = headers["x-millgate-signature"].to_str().expect("text");
    let (seconds, hex) = signature.strip_prefix("t=").and_then(|rest| rest.split_once(",v1=")).expect("both parts");
    let mut mac = Hmac::<Sha256>::new_from_slice(SECRET.as_bytes()).expect("any key");
    mac.update(format!("{seconds}.{body}").as_bytes());
    let expected: String = mac.finalize().into_bytes().iter().map(|byte| format!("{byte:02x}")).collect();
    hex == expected
}

async fn told_house() -> (House, Principal, Secret) {
    let house = House::with(Config { has_notice_receiver: true, ..Config::default() }).await;
    let (who, key) = house.limited_with_key(&["100 tokens / day", "0.5 usd / month"]).await;
    (house, who, key)
}

async fn spend(house: &House, who: &Principal, tokens: u64) {
    let permit = house.governor.admit(who, ask(10, tokens - 10)).await.expect("admitted");
    permit.settle(used(10, tokens - 10), Status::Completed).await.expect("settled");
}

/// All notices, once everything submitted so far is on the disk.
async fn noticed(house: &House) -> Vec<Notice> {
    house.records.submit(JournalEntry::Refused(Vec::new())).await.expect("written");
    house.records.notices(None, 100).await.expect("notices")
}

fn webhook(house: &House, url: &str) -> Webhook {
    Webhook::new(url.into(), Secret::new(SECRET), house.records.clone(), house.clock.clone()).expect("a client")
}

#[tokio::test]
async fn x21_the_webhook_is_signed_tried_again_until_it_is_taken_and_told_once_over_restarts() {
    let (receiver, url) =
        Receiver::start(&[StatusCode::INTERNAL_SERVER_ERROR, StatusCode::TEMPORARY_REDIRECT, StatusCode::OK]).await;
    let (house, who, key) = told_house().await;
    spend(&house, &who, 60).await;
    let first = noticed(&house).await;
    assert_eq!((first.len(), first[0].state, first[0].body["threshold"].as_u64()), (1, NoticeState::Pending, Some(50)));
    for attempts in 1..=3 {
        webhook(&house, &url).send_due().await;
        webhook(&house, &url).send_due().await;
        assert_eq!(receiver.got().len(), attempts, "the wait is kept and no redirect is followed");
        house.clock.advance(Duration::from_secs(4));
    }
    let after = noticed(&house).await;
    assert_eq!((after[0].state, after[0].attempts, after[0].last_error.clone()), (NoticeState::Delivered, 3, None));
    let got = receiver.got();
    assert!(got.iter().all(is_signed), "{got:?}");
    let body: Value = serde_json::from_str(&got[2].1).expect("JSON");
    assert_eq!((&body["id"], &body["type"]), (&json!(first[0].id.to_string()), &json!("quota.threshold")));
    assert_eq!(
        (&body["user"], &body["used"], &body["amount"], &body["threshold"]),
        (&json!("ann"), &json!(60), &json!(100), &json!(50))
    );
    assert!(got.iter().all(|(headers, _)| headers["x-millgate-notice-id"] == first[0].id.to_string().as_str()));
    let house = house.restart_with(Config { has_notice_receiver: true, ..Config::default() }).await;
    let who = house.authenticate(&key).await.expect("keys survive");
    spend(&house, &who, 11).await;
    assert_eq!(noticed(&house).await.len(), 1, "told once, also by the next process");
    spend(&house, &who, 12).await;
    let both = noticed(&house).await;
    assert_eq!(both.len(), 2, "{both:?}");
    webhook(&house, &url).send_due().await;
    assert_eq!(receiver.got().len(), 4);
}

#[tokio::test]
async fn x21_a_dead_receiver_slows_nobody_and_what_waits_is_bounded() {
    let (house, who, _) = told_house().await;
    spend(&house, &who, 96).await;
    assert_eq!(noticed(&house).await.len(), 3, "one request may reach several thresholds");
    // Nobody listens on the discard port.
    let dead = webhook(&house, "http://127.0.0.1:9/");
    dead.send_due().await;
    let notices = noticed(&house).await;
    assert!(notices.iter().all(|one| one.state == NoticeState::Pending && one.attempts == 1), "{notices:?}");
    assert_eq!(notices[0].last_error.as_deref(), Some("the receiver cannot be reached"));
    let copies = (0..10_005u128).map(|number| {
        house.records.submit(JournalEntry::Notice(Notice { id: uuid::Uuid::from_u128(number), ..notices[0].clone() }))
    });
    for commit in copies.collect::<Vec<_>>() {
        commit.await.expect("written");
    }
    let waiting = house.records.due_notices(i64::MAX, 20_000).await.expect("notices").len();
    assert_eq!(waiting, 10_000, "the rest is kept as dropped");
}
