//! Puts load on a server: clients in a closed loop, or requests at a fixed rate, all streaming.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::{Value, json};
use tokio::task::JoinSet;

use crate::config::Environment;

use super::super::args::BenchArgs;
use super::super::chat::pick_model;
use super::super::client::Client;
use super::super::fail::Hinted;
use super::super::output;
use super::prompts::{Prompts, words_for};
use super::report::{Report, Sample, Spread};

/// Runs the benchmark and prints its report.
///
/// # Errors
/// No server or model, or every request failed.
pub(in crate::cli) async fn run(args: &BenchArgs, environment: &Environment) -> Result<()> {
    let client = Client::unpooled(&args.remote, environment)?;
    let model = pick_model(&client, args.model.as_deref()).await?;
    let prompts = Prompts { seed: args.seed, same_prefix: args.same_prefix as usize, words: 1 };
    let mut asker = Asker { client, model, output_tokens: args.output_tokens, prompts };
    asker.prompts.words = asker.calibrate(args.prompt_tokens).await.context("the warm-up request failed")?;
    let bar = progress_bar(args);
    let started = Instant::now();
    let results = match args.rate {
        Some(rate) if rate.is_finite() && rate > 0.0 => open_loop(&asker, args.requests, rate, &bar).await,
        Some(rate) => {
            return Err(Hinted::error(format!("--rate {rate} is not usable"), "give requests a second above 0"));
        }
        None => closed_loop(&asker, args.clients.min(args.requests), args.requests, &bar).await,
    };
    let wall = started.elapsed();
    bar.finish_and_clear();
    let report = summarise(args, &asker, results, wall);
    if args.json {
        output::json(&report)?
    } else {
        output::text(&report.text())?
    }
    match report.first_failure {
        Some(failure) if report.requests == 0 => Err(anyhow::anyhow!(failure).context("every request failed")),
        _ => Ok(()),
    }
}

fn progress_bar(args: &BenchArgs) -> ProgressBar {
    let style = ProgressStyle::with_template("{bar:40} {pos}/{len} requests, {elapsed} elapsed, {eta} left")
        .expect("the template is a constant that the tests draw");
    ProgressBar::new(args.requests.into()).with_style(style)
}

/// Asks one question after another with the same settings.
#[derive(Clone)]
struct Asker {
    client: Client,
    model: String,
    output_tokens: u32,
    prompts: Prompts,
}

impl Asker {
    /// How many words make a prompt of so many tokens with this model; asks twice, which warms the server up too.
    async fn calibrate(&self, prompt_tokens: u32) -> Result<usize> {
        const FEW: usize = 8;
        const MANY: usize = 40;
        let mut measured = [0; 2];
        for (tokens, (words, number)) in measured.iter_mut().zip([(FEW, u64::MAX - 2), (MANY, u64::MAX - 1)]) {
            let prompts = Prompts { words, same_prefix: 0, ..self.prompts.clone() };
            *tokens = Self { prompts, output_tokens: 2, ..self.clone() }.ask(number).await?.prompt_tokens;
        }
        Ok(words_for(prompt_tokens, (FEW, measured[0]), (MANY, measured[1])))
    }

    async fn ask(&self, number: u64) -> Result<Sample> {
        let body = json!({
            "model": self.model,
            "messages": [{"role": "user", "content": self.prompts.prompt(number)}],
            "stream": true, "stream_options": {"include_usage": true},
            "max_tokens": self.output_tokens, "ignore_eos": true, "temperature": 0.0,
        });
        let mut sample = Sample::default();
        let started = Instant::now();
        let mut last: Option<Instant> = None;
        self.client
            .stream("/v1/chat/completions", &body, |event| {
                note(&event, started, &mut last, &mut sample);
                Ok(true)
            })
            .await?;
        sample.total = started.elapsed();
        anyhow::ensure!(sample.completion_tokens > 0, "the server sent no usage");
        if sample.ttft.is_zero() {
            sample.ttft = sample.total;
        }
        Ok(sample)
    }
}

/// Takes an event's time and figures into the sample.
fn note(event: &Value, started: Instant, last: &mut Option<Instant>, sample: &mut Sample) {
    if event["choices"][0]["delta"]["content"].as_str().is_some_and(|text| !text.is_empty()) {
        let now = Instant::now();
        match last.replace(now) {
            Some(before) => sample.gaps.push(now - before),
            None => sample.ttft = now - started,
        }
    }
    if let Some(usage) = event.get("usage").filter(|usage| usage.is_object()) {
        let tokens = |value: &Value| value.as_u64().unwrap_or(0);
        sample.prompt_tokens = tokens(&usage["prompt_tokens"]);
        sample.completion_tokens = tokens(&usage["completion_tokens"]);
        sample.cached_tokens = tokens(&usage["prompt_tokens_details"]["cached_tokens"]);
    }
}

async fn closed_loop(asker: &Asker, clients: u32, requests: u32, bar: &ProgressBar) -> Vec<Result<Sample>> {
    let next = Arc::new(AtomicU64::new(0));
    let mut tasks = JoinSet::new();
    for _ in 0..clients {
        let (asker, next, bar) = (asker.clone(), Arc::clone(&next), bar.clone());
        tasks.spawn(async move {
            let mut results = Vec::new();
            loop {
                let number = next.fetch_add(1, Ordering::Relaxed);
                if number >= u64::from(requests) {
                    return results;
                }
                results.push(asker.ask(number).await);
                bar.inc(1);
            }
        });
    }
    tasks.join_all().await.into_iter().flatten().collect()
}

async fn open_loop(asker: &Asker, requests: u32, rate: f64, bar: &ProgressBar) -> Vec<Result<Sample>> {
    let mut ticks = tokio::time::interval(Duration::from_secs_f64(1.0 / rate));
    let mut tasks = JoinSet::new();
    for number in 0..u64::from(requests) {
        ticks.tick().await;
        let (asker, bar) = (asker.clone(), bar.clone());
        tasks.spawn(async move {
            let result = asker.ask(number).await;
            bar.inc(1);
            result
        });
    }
    tasks.join_all().await
}

fn summarise(args: &BenchArgs, asker: &Asker, results: Vec<Result<Sample>>, wall: Duration) -> Report {
    let mut samples = Vec::new();
    let mut failures = Vec::new();
    for result in results {
        match result {
            Ok(sample) => samples.push(sample),
            Err(error) => failures.push(format!("{error:#}")),
        }
    }
    let report = Report {
        url: asker.client.base().to_owned(),
        model: asker.model.clone(),
        arrival: args.rate.map_or_else(|| "closed loop".into(), |rate| format!("open loop at {rate} requests/s")),
        clients: args.clients,
        requests: 0,
        failed: failures.len(),
        first_failure: failures.into_iter().next(),
        wall_s: 0.0,
        prompt_tokens: 0,
        cached_tokens: 0,
        completion_tokens: 0,
        requests_per_s: 0.0,
        output_tokens_per_s: 0.0,
        total_tokens_per_s: 0.0,
        ttft_ms: Spread::default(),
        itl_ms: Spread::default(),
        latency_ms: Spread::default(),
    };
    report.fill(&samples, wall)
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;
    use crate::cli::Cli;
    use crate::cli::args::Command;

    #[test]
    fn events_become_first_token_gaps_and_usage() {
        let started = Instant::now();
        let (mut last, mut sample) = (None, Sample::default());
        let text = json!({"choices": [{"delta": {"content": "a"}}]});
        for event in
            [json!({"choices": [{"delta": {"role": "assistant", "content": ""}}]}), text.clone(), text.clone(), text]
        {
            note(&event, started, &mut last, &mut sample);
        }
        let usage = json!({"choices": [], "usage": {"prompt_tokens": 5, "completion_tokens": 3, "prompt_tokens_details": {"cached_tokens": 2}}});
        note(&usage, started, &mut last, &mut sample);
        assert_eq!(sample.gaps.len(), 2);
        assert_eq!((sample.prompt_tokens, sample.completion_tokens, sample.cached_tokens), (5, 3, 2));
    }

    #[test]
    fn the_progress_bar_can_be_drawn() {
        let cli = Cli::try_parse_from(["millgate", "bench", "--requests", "9"]).unwrap();
        let Command::Bench(args) = cli.command else { panic!("bench is bench") };
        assert_eq!(progress_bar(&args).length(), Some(9));
    }
}
