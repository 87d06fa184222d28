//! X14, fairness under saturation: bounds in steps of the engine, which a test lets through one by one.

use std::sync::Arc;
use std::time::Duration;

use millgate::engine::fake::Gate;
use serde_json::{Value, json};
use tokio::task::JoinSet;

use crate::support::{Actor, Reply, TestApp};

/// A server whose engine computes only the steps that are let through.
struct Gated {
    app: TestApp,
    gate: Arc<Gate>,
    allowed: u64,
}

impl Gated {
    async fn start(tiers: &[(&str, &[&str])], rows: usize) -> Self {
        let gate = Arc::new(Gate::default());
        let mut builder = TestApp::new().fake(|fake| {
            fake.gate = Some(gate.clone());
            fake.end_logit = f32::NEG_INFINITY;
            fake.max_output_rows = rows;
        });
        for (name, limits) in tiers {
            builder = builder.tier(name, |tier| limits.iter().fold(tier, |tier, limit| tier.limit(limit)));
        }
        Self { app: builder.start().await, gate, allowed: 0 }
    }

    /// Waits until as many requests have reached the engine.
    async fn open(&self, count: usize) {
        self.app
            .eventually("the requests are in the engine", async |app| app.engine.status().open_requests == count)
            .await;
    }

    /// Lets steps through and waits until they are computed.
    async fn steps(&mut self, count: u64) {
        self.allowed += count;
        self.gate.allow(count);
        let allowed = self.allowed;
        self.app.eventually("the steps are computed", async |app| app.engine.status().totals.steps == allowed).await;
    }
}

impl Drop for Gated {
    fn drop(&mut self) {
        // The engine's thread must not wait for ever.
        self.gate.allow(u64::MAX / 2);
    }
}

/// A request for exactly that many tokens after a prompt of so many, sent by a task of its own.
fn ask(tasks: &mut JoinSet<Reply>, who: &Actor, prompt: usize, tokens: u64) {
    let (who, prompt) = (who.clone(), vec![Value::from(97); prompt]);
    tasks.spawn(async move { who.complete(prompt.into(), json!({"max_tokens": tokens})).await });
}

#[tokio::test]
async fn x14_a_premium_request_takes_one_step_more_than_on_an_idle_server_while_a_free_user_floods() {
    let mut server = Gated::start(&[("free", &[]), ("premium", &[])], 8).await;
    let (free, premium) = (server.app.key("free").await, server.app.key("premium").await);
    let (mut flood, mut answers) = (JoinSet::new(), JoinSet::new());
    (0..64).for_each(|_| ask(&mut flood, &free, 300, 900));
    server.open(64).await;
    server.steps(150).await;
    let before = server.app.engine.status().totals;
    assert!(before.running == 8 && before.waiting == 56, "the server is full: {before:?}");
    for _ in 0..20 {
        ask(&mut answers, &premium, 200, 20);
        server.open(65).await;
        // Twenty tokens, of which the first comes with the prompt, and the step that runs when the request arrives.
        server.steps(20 + 1).await;
        let answer = tokio::time::timeout(Duration::from_secs(60), answers.join_next()).await;
        let answer = answer.expect("the answer is complete after these steps").unwrap().unwrap();
        assert_eq!((answer.status, &answer.json()["usage"]["completion_tokens"]), (200, &json!(20)));
    }
    let after = server.app.engine.status().totals;
    let free_tokens = after.completion_tokens - before.completion_tokens - 20 * 20;
    assert!(free_tokens >= 20 * 21 * 6, "and the flood goes on in the other rows: {free_tokens} tokens");
    assert!(flood.try_join_next().is_none(), "the flood outlasts them");
}

#[tokio::test]
async fn a_user_over_a_soft_limit_is_still_served_with_an_eighth_of_the_weight() {
    let mut server = Gated::start(&[("team", &["1000 tokens / 1m soft"])], 9).await;
    let (over, under) = (server.app.key("team").await, server.app.key("team").await);
    let (mut slow, mut fast) = (JoinSet::new(), JoinSet::new());
    ask(&mut slow, &over, 1, 1000);
    server.open(1).await;
    server.steps(1000).await;
    let first = slow.join_next().await.unwrap().unwrap();
    assert_eq!((first.status, first.header("x-millgate-soft-limit")), (200, "\"team: 1000 tokens / 1m soft\""));
    // Both want sixteen answers of sixty tokens; of nine rows one belongs to the eighth, eight to the whole weight.
    (0..16).for_each(|_| ask(&mut slow, &over, 1, 60));
    server.open(16).await;
    (0..16).for_each(|_| ask(&mut fast, &under, 1, 60));
    server.open(32).await;
    server.steps(2 * 60 + 10).await;
    let done = async |tasks: &mut JoinSet<Reply>, patience: u64| {
        let mut done = 0;
        while done < 16
            && let Ok(Some(answer)) = tokio::time::timeout(Duration::from_secs(patience), tasks.join_next()).await
        {
            assert_eq!(answer.unwrap().status, 200);
            done += 1;
        }
        done
    };
    assert_eq!(done(&mut fast, 60).await, 16, "two waves of eight");
    let slow = done(&mut slow, 1).await;
    assert!((1..=3).contains(&slow), "meanwhile the other had about one row: {slow} answers");
}
