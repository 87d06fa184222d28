//! Policy replay: the tiers that were in force refuse nobody who was admitted, other tiers refuse exactly whom brute force says,
//! and what is told is the same through the server, from the data directory, and on the command line.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use millgate::governance::attribution::Attribution;
use millgate::governance::calendar;
use millgate::governance::limits::{Period, Zone};
use millgate::governance::ports::{Counters, Extent, JournalEntry, Records};
use millgate::governance::records::{LedgerRecord, RequestRecord};
use millgate::governance::replay::{Past, Question, Recorded, Report, Stage, simulate, tiers_after};
use millgate::governance::tier_files::Declaration;
use millgate::governance::{CompletionCap, Config, KeyId, NewPrice, Permit, Principal, Status, Usage, UserId, tiers};
use millgate::store::{LedgerReader, MemoryCounters};
use proptest::prelude::*;
use serde_json::{Value, json};
use tempfile::TempDir;
use uuid::Uuid;

use crate::cli::printed;
use crate::governance_house::{House, MINUTE_US, MODEL, NOON_US, open_store, parse, with_cap};
use crate::support::TestApp;

const HOUR_US: i64 = 60 * MINUTE_US;

fn stage() -> Stage {
    Stage::new(|clock| -> Arc<dyn Counters> { Arc::new(MemoryCounters::new(clock)) })
}

#[derive(Debug, Clone)]
enum Step {
    Wait(i64),
    Ask { who: usize, prompt: u64, most: Option<u64>, sequences: u64 },
    Extend { pick: usize, want: u64 },
    End { pick: usize, permille: u64, status: Status },
}

fn step() -> impl Strategy<Value = Step> {
    let status = prop_oneof![
        4 => Just(Status::Completed),
        1 => Just(Status::Aborted),
        1 => Just(Status::Failed),
        1 => Just(Status::LimitReached),
    ];
    prop_oneof![
        3 => prop_oneof![Just(0), Just(1), 0..20_000_000i64, Just(HOUR_US)].prop_map(Step::Wait),
        5 => (0..2usize, 1..60u64, prop::option::of(0..80u64), 1..3u64)
            .prop_map(|(who, prompt, most, sequences)| Step::Ask { who, prompt, most, sequences }),
        3 => (any::<usize>(), 1..200u64).prop_map(|(pick, want)| Step::Extend { pick, want }),
        4 => (any::<usize>(), 0..=1000u64, status).prop_map(|(pick, permille, status)| Step::End { pick, permille, status }),
    ]
}

const LIMITS: [&str; 11] = [
    "6 requests / 1m",
    "300 tokens / 1m",
    "220 completion_tokens / 90s",
    "900 tokens / 1h per tier",
    "3 concurrent",
    "2000 tokens / day Europe/Paris",
    "0.001 usd / 1h",
    "0.02 usd / month",
    "400 tokens / 7s per key",
    "500 tokens / 1m on demo",
    "150 prompt_tokens / 1m soft",
];

/// Plays a history against a real house and returns how many of its requests were admitted.
async fn live(house: &House, who: &[Principal], steps: Vec<Step>) -> usize {
    let mut open: Vec<(Permit, u64)> = Vec::new();
    let mut admitted = 0;
    for step in steps {
        match step {
            Step::Wait(us) => house.clock.advance_us(us),
            Step::Ask { who: index, prompt, most, sequences } => {
                let cap = most.map_or(CompletionCap::Open { most: 4000 }, CompletionCap::Explicit);
                if let Ok(permit) = house.governor.admit(&who[index], with_cap(prompt, sequences, cap)).await {
                    admitted += 1;
                    open.push((permit, prompt));
                }
            }
            Step::Extend { pick, want } if !open.is_empty() => {
                let index = pick % open.len();
                open[index].0.extend(want).await.ok();
            }
            Step::End { pick, permille, status } if !open.is_empty() => {
                let index = pick % open.len();
                let (permit, prompt_tokens) = open.swap_remove(index);
                let completion_tokens = permit.allowance() * permille / 1000;
                let usage = Usage { prompt_tokens, cached_tokens: prompt_tokens / 3, completion_tokens };
                permit.settle(usage, status).await.expect("settled");
            }
            Step::Extend { .. } | Step::End { .. } => {}
        }
    }
    for (permit, prompt_tokens) in open {
        let usage = Usage { prompt_tokens, cached_tokens: 0, completion_tokens: permit.allowance() };
        permit.settle(usage, Status::Completed).await.expect("settled");
    }
    admitted
}

async fn the_same_limits_again(picked: Vec<&str>, steps: Vec<Step>, from_permille: i64) {
    let house = House::new().await;
    let price = NewPrice {
        model: MODEL.into(),
        prompt_pico_usd: Some(1_000_000),
        cached_pico_usd: Some(250_001),
        completion_pico_usd: Some(2_000_003),
        effective_from_us: None,
    };
    house.governor.set_prices(&house.governor.operator(), &[price]).await.expect("a price");
    let ann = house.limited(&picked).await;
    let (bob, _) = house.user("bob", &["tight"]).await;
    let admitted = live(&house, &[ann, bob], steps).await;
    let tables = house.records.policy().await.expect("tables");
    let end_us = house.clock_us() + 1;
    for from_us in [0, NOON_US + (end_us - NOON_US) * from_permille / 1000] {
        let tiers = tables.tiers.clone();
        let question = Question {
            tables: tables.clone(),
            tiers,
            from_us,
            to_us: end_us,
            cases: 10,
            instance: Config::default().instance,
        };
        let report = simulate(&Recorded(house.records.as_ref()), stage(), question).await.expect("replayed");
        assert_eq!((report.total.refused, report.total.cut), (0, 0), "{:?}", report.cases);
        assert_eq!(report.total.saved, millgate::governance::replay::Amounts::default());
        let played = report.total.recorded.requests + report.failed;
        assert!(from_us > 0 || played == admitted as u64, "{played} of {admitted} were played");
        assert!(report.users.iter().all(|line| line.tier_after.as_ref() == Some(&line.tier_before)));
    }
    house.close().await;
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(16))]
    #[test]
    fn the_limits_that_were_in_force_refuse_nobody_who_was_admitted(
        picked in prop::sample::subsequence(LIMITS.to_vec(), 1..LIMITS.len()),
        steps in prop::collection::vec(step(), 40..160),
        from_permille in 0..1000i64,
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        runtime.block_on(the_same_limits_again(picked, steps, from_permille));
    }
}

/// A row of the brute-force check: who, when, how long it ran, and its tokens.
#[derive(Debug, Clone, Copy)]
struct Made {
    who: usize,
    at_us: i64,
    lasted_us: i64,
    tokens: u64,
}

const NAMES: [&str; 3] = ["ann", "bob", "cid"];

fn row(number: usize, made: Made) -> LedgerRecord {
    // Cid is in a group that the new tiers know; all three are in `free` on the record.
    let groups = if made.who == 2 { vec!["vip".to_owned()] } else { Vec::new() };
    let usage = Usage { prompt_tokens: made.tokens, cached_tokens: 0, completion_tokens: 1 };
    LedgerRecord {
        request: Arc::new(RequestRecord {
            id: Uuid::from_u128(1 + number as u128),
            client_request_id: None,
            user: UserId(Uuid::from_u128(100 + made.who as u128)),
            user_name: NAMES[made.who].into(),
            key: Some(KeyId::from("k")),
            tier: "free".into(),
            model: "m".into(),
            endpoint: "/v1/completions".into(),
            admitted_at_us: made.at_us,
            price_version: None,
            attribution: Arc::new(Attribution::new(groups, [].into())),
        }),
        usage,
        cost_nano_usd: made.tokens * 7,
        status: Status::Completed,
        settled_at_us: made.at_us + made.lasted_us,
        charged: vec![Extent {
            at_us: made.at_us,
            requests: 1,
            prompt_tokens: made.tokens,
            completion_tokens: 1,
            cost_nano_usd: made.tokens * 7,
        }],
    }
}

const NEW_TIERS: &str = "
tiers:
  - name: free
    level: 0
    groups: ['system:authenticated']
    limits: ['100 tokens / 1m', '7 requests / day Europe/Paris', '400 tokens / 2h per tier', '1 concurrent']
  - {name: gold, level: 9, groups: [vip], limits: ['150 tokens / 1m']}
";

/// Who is refused, worked out from the rows alone.
fn by_brute_force(rows: &[Made], from_us: i64) -> BTreeSet<u128> {
    let zone: Zone = "Europe/Paris".parse().expect("a zone");
    let in_window = |length_us: i64, then_us: i64, now_us: i64| {
        let grain_us = (length_us + 59) / 60;
        let keep = (length_us + grain_us - 1) / grain_us;
        then_us.div_euclid(grain_us) >= now_us.div_euclid(grain_us) - keep
    };
    let mut counted: Vec<Made> = Vec::new();
    let mut refused = BTreeSet::new();
    for (number, made) in rows.iter().enumerate() {
        if made.at_us >= from_us {
            let need = made.tokens + 1;
            let sum = |is_counted: &dyn Fn(&Made) -> bool| -> u64 {
                counted.iter().filter(|other| is_counted(other)).map(|other| other.tokens + 1).sum()
            };
            let of_minute = sum(&|other| other.who == made.who && in_window(MINUTE_US, other.at_us, made.at_us));
            let fits = if made.who == 2 {
                of_minute + need <= 150
            } else {
                let day = calendar::bounds(Period::Day, &zone, made.at_us);
                let of_day =
                    counted.iter().filter(|other| other.who == made.who && other.at_us >= day.start_us).count();
                let of_pool = sum(&|other| other.who != 2 && in_window(2 * HOUR_US, other.at_us, made.at_us));
                let running = |other: &&Made| {
                    other.who == made.who && other.at_us >= from_us && other.at_us + other.lasted_us > made.at_us
                };
                of_minute + need <= 100
                    && of_day < 7
                    && of_pool + need <= 400
                    && counted.iter().filter(running).count() == 0
            };
            if !fits {
                refused.insert(1 + number as u128);
                continue;
            }
        }
        counted.push(*made);
    }
    refused
}

async fn written(rows: &[Made]) -> (TempDir, impl Records) {
    let dir = TempDir::new().expect("a directory");
    let records = open_store(dir.path()).await;
    let closes = rows.iter().enumerate().map(|(number, made)| records.submit(JournalEntry::Close(row(number, *made))));
    for commit in closes.collect::<Vec<_>>() {
        commit.await.expect("written");
    }
    (dir, records)
}

async fn replayed(past: &dyn Past, from_us: i64) -> Report {
    let tables = millgate::governance::ports::PolicyTables { tiers: tiers::defaults(), ..Default::default() };
    let declared = Declaration::from_yaml(NEW_TIERS).expect("tiers");
    let tiers = tiers_after(&tables.tiers, declared.plan(&tables.tiers, &[]).expect("a plan"));
    let question =
        Question { tables, tiers, from_us, to_us: i64::MAX, cases: 10_000, instance: Config::default().instance };
    simulate(past, stage(), question).await.expect("replayed")
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(16))]
    #[test]
    fn other_limits_refuse_exactly_whom_brute_force_says(
        made in prop::collection::vec((0..3usize, prop_oneof![0..90_000_000i64, Just(0), Just(7 * HOUR_US)], 0..40_000_000i64, 1..90u64), 1..120),
        from_index in any::<prop::sample::Index>(),
    ) {
        let mut at_us = NOON_US;
        let rows: Vec<Made> = made
            .iter()
            .map(|(who, pause_us, lasted_us, tokens)| {
                at_us += pause_us;
                Made { who: *who, at_us, lasted_us: *lasted_us, tokens: *tokens }
            })
            .collect();
        let from_us = rows[from_index.index(rows.len())].at_us;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        runtime.block_on(async {
            let (dir, records) = written(&rows).await;
            let report = replayed(&Recorded(&records), from_us).await;
            let refused: BTreeSet<u128> = report.cases.iter().map(|case| case.request.as_u128()).collect();
            assert_eq!(refused, by_brute_force(&rows, from_us));
            let saved = |number: &u128| rows[usize::try_from(number - 1).expect("an index")].tokens + 1;
            assert_eq!(report.total.saved.tokens, refused.iter().map(saved).sum::<u64>());
            assert_eq!(report.total.refused, refused.len() as u64);
            assert_eq!(report.limits.values().map(|line| line.refused).sum::<u64>(), report.total.refused);
            let moved = report.users.iter().all(|line| (line.name == "cid") == (line.tier_after.as_deref() == Some("gold")));
            assert!(moved, "cid alone moves: {:?}", report.users);
            // Beside the open store, as beside a running server.
            let offline = LedgerReader::open(dir.path()).await.expect("the data directory");
            assert_eq!(replayed(&offline, from_us).await, report);
            records.close().await;
        });
    }
}

#[tokio::test]
async fn an_answer_without_a_maximum_is_cut_where_the_new_limit_ends_and_a_later_price_changes_nothing() {
    let house = House::new().await;
    let price = NewPrice {
        model: MODEL.into(),
        prompt_pico_usd: Some(1_000_000),
        cached_pico_usd: None,
        completion_pico_usd: Some(2_000_000),
        effective_from_us: None,
    };
    house.governor.set_prices(&house.governor.operator(), std::slice::from_ref(&price)).await.expect("a price");
    let who = house.limited(&[]).await;
    let mut permit =
        house.governor.admit(&who, with_cap(10, 1, CompletionCap::Open { most: 4000 })).await.expect("admitted");
    house.clock.advance(Duration::from_secs(1));
    assert_eq!(permit.extend(256).await.expect("granted"), 256);
    let usage = Usage { prompt_tokens: 10, cached_tokens: 0, completion_tokens: 400 };
    permit.settle(usage, Status::Completed).await.expect("settled");
    let dearer = NewPrice { completion_pico_usd: Some(9_000_000), ..price };
    house.governor.set_prices(&house.governor.operator(), &[dearer]).await.expect("a price");
    let tables = house.records.policy().await.expect("tables");
    let mut tiers = tables.tiers.clone();
    let tight = tiers.iter_mut().find(|tier| tier.name == "tight").expect("the tier");
    tight.limits = parse(&["300 tokens / 1h"]);
    let question =
        Question { tables, tiers, from_us: 0, to_us: i64::MAX, cases: 10, instance: Config::default().instance };
    let report = simulate(&Recorded(house.records.as_ref()), stage(), question).await.expect("replayed");
    let case = &report.cases[0];
    assert_eq!(
        (report.total.refused, report.total.cut, case.is_cut, &*case.limit),
        (0, 1, true, "tight: 300 tokens / 1h")
    );
    assert_eq!(
        (case.saved_tokens, report.total.saved.cost_nano_usd),
        (110, 220_000),
        "300 of 410 tokens, at the old price"
    );
    house.close().await;
}

#[tokio::test]
async fn the_server_the_data_directory_and_the_command_line_tell_the_same() {
    let app = TestApp::new().start().await;
    let ann = app.user("ann", &["lab"]).await;
    for _ in 0..3 {
        assert_eq!(ann.chat("hello").await.status, 200);
        app.advance(Duration::from_secs(1));
    }
    let file = tempfile::NamedTempFile::with_suffix(".yaml").expect("a file");
    let content = "tiers:\n  - {name: lab, level: 50, groups: [lab], limits: ['2 requests / 1h']}\n";
    std::fs::write(file.path(), content).expect("written");
    let body = json!({"content": content, "start": "2023-11-14T00:00:00Z", "end": "2023-11-15T00:00:00Z"});
    let reply = app.admin().post("/admin/v1/tier-simulations", &body).await;
    assert_eq!(reply.status, 200, "{}", reply.body);
    let told = reply.json();
    assert_eq!((&told["total"]["refused"], &told["total"]["requests"]), (&json!(1), &json!(3)));
    assert_eq!(told["users"][0]["tier_after"], "lab");
    assert_eq!(told["users"][0]["tier_before"], "free");
    assert_eq!(
        (&told["cases"][0]["limit"], &told["cases"][0]["retry_after_ms"]),
        (&json!("lab: 2 requests / 1h"), &json!(3_638_000))
    );
    assert_eq!(
        app.admin().get("/admin/v1/tiers").await.json()["data"].as_array().map(Vec::len),
        Some(3),
        "nothing changed"
    );
    let args = |more: &[&str]| -> Vec<String> {
        let path = file.path().to_str().expect("a plain path");
        let start = ["tier", "simulate", "-f", path, "--from", "2023-11-14T00:00:00Z", "--to", "2023-11-15T00:00:00Z"];
        start.iter().chain(more).map(|word| (*word).to_owned()).collect()
    };
    let data_dir = app.data_dir().to_str().expect("a plain path").to_owned();
    let run = async |args: Vec<String>| {
        let run = move || printed(&args.iter().map(String::as_str).collect::<Vec<_>>());
        tokio::task::spawn_blocking(run).await.expect("no panic").expect("it succeeds")
    };
    let offline: Value = serde_json::from_str(&run(args(&["--json", "--data-dir", &data_dir])).await).expect("JSON");
    assert_eq!(offline, told);
    let (url, key) = (format!("http://{}", app.address), app.admin().key.expect("a key"));
    let online: Value =
        serde_json::from_str(&run(args(&["--json", "--url", &url, "--key", &key])).await).expect("JSON");
    assert_eq!(online, told);
    let text = run(args(&["--data-dir", &data_dir])).await;
    for part in ["3 requests from", "1 would have been refused", "free -> lab", "lab: 2 requests / 1h"] {
        assert!(text.contains(part), "{part} in {text}");
    }
    for (wrong, param) in [
        (json!({"content": content}), "start"),
        (json!({"content": "tiers: [", "start": 0}), "content"),
        (json!({"content": content, "start": 5, "end": 5}), "start"),
        (json!({"content": content, "start": 0, "format": "xml"}), "format"),
        (json!({"content": content, "start": 0, "colour": 1}), "colour"),
    ] {
        let reply = app.admin().post("/admin/v1/tier-simulations", &wrong).await;
        assert_eq!((reply.status, reply.param()), (400, json!(param)), "{}", reply.body);
    }
}
