//! `kill -9` in the middle of everything: what was told as settled is on the ledger, nothing is doubled, the books agree.

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Write};
use std::process::{Command, Stdio};
use std::sync::Arc;

use millgate::governance::{Config, ManualClock, Status};
use tempfile::TempDir;
use uuid::Uuid;

use crate::governance_house::{House, NOON_US, ask, used};

/// Serves requests until it is killed, and tells each one that is settled. Reads the data directory from its input.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "it is the process that the test below starts and kills"]
async fn serve_until_killed() {
    let mut dir = String::new();
    std::io::stdin().read_line(&mut dir).expect("the data directory");
    let dir = TempDir::new_in(dir.trim()).expect("a place in it").keep();
    let house = Arc::new(House::on(dir, Arc::new(ManualClock::at(NOON_US)), Config::default()).await);
    let (who, _) = house.user("ann", &["enterprise-users"]).await;
    let mut tasks = tokio::task::JoinSet::new();
    for worker in 0..16u64 {
        let (house, who) = (house.clone(), who.clone());
        tasks.spawn(async move {
            for round in 0.. {
                let ask = ask(10, 200);
                let id = ask.request_id;
                let Ok(permit) = house.governor.admit(&who, ask).await else { continue };
                permit.durable().await.expect("durable");
                let tokens = (worker * 31 + round * 7) % 200;
                for so_far in 0..tokens {
                    permit.progress(used(10, so_far));
                    if so_far % 40 == 39 {
                        tokio::task::yield_now().await;
                    }
                }
                if round % 5 == 4 {
                    drop(permit);
                    continue;
                }
                permit.settle(used(10, tokens), Status::Completed).await.expect("settled");
                writeln!(std::io::stdout().lock(), "settled {id} {tokens}").expect("told");
            }
        });
    }
    tasks.join_all().await;
}

/// Runs the server above until it has told `settled` requests, kills it, and gives what it told.
fn run_and_kill(dir: &TempDir, settled: usize) -> HashMap<Uuid, u64> {
    let mut child = Command::new(std::env::current_exe().expect("this test binary"))
        .args(["--exact", "governance_crash::serve_until_killed", "--ignored", "--nocapture", "--test-threads=1"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .expect("a child");
    let mut input = child.stdin.take().expect("its input");
    writeln!(input, "{}", dir.path().display()).expect("the data directory");
    let mut lines = BufReader::new(child.stdout.take().expect("its output")).lines();
    let mut told = HashMap::new();
    let mut note = |line: String| {
        let mut words = line.split_whitespace().skip_while(|word| *word != "settled").skip(1);
        if let (Some(Ok(id)), Some(Ok(tokens))) = (words.next().map(str::parse), words.next().map(str::parse)) {
            assert!(told.insert(id, tokens).is_none(), "told twice");
        }
        told.len()
    };
    while let Some(Ok(line)) = lines.next() {
        if note(line) >= settled {
            break;
        }
    }
    child.kill().expect("killed");
    child.wait().expect("gone");
    for line in lines.map_while(Result::ok) {
        note(line);
    }
    told
}

#[tokio::test]
async fn after_kill_nine_every_settled_request_is_on_the_ledger_once_and_the_books_agree() {
    for settled in [1, 50, 400] {
        let dir = TempDir::new().expect("a directory");
        let told = run_and_kill(&dir, settled);
        assert!(told.len() >= settled, "the child told {} of {settled}", told.len());
        let inner = std::fs::read_dir(dir.path()).expect("entries").next().expect("one").expect("an entry").path();
        let house = House::on(inner, Arc::new(ManualClock::at(NOON_US)), Config::default()).await;
        let rows = house.records.ledger_since(0).await.expect("rows");
        let by_id: HashMap<Uuid, _> = rows.iter().map(|row| (row.request.id, row)).collect();
        assert_eq!(by_id.len(), rows.len(), "nothing is doubled");
        for (id, tokens) in &told {
            let row = by_id.get(id).unwrap_or_else(|| panic!("{id} was told and is not on the ledger"));
            assert_eq!((row.status, row.usage), (Status::Completed, used(10, *tokens)));
        }
        assert!(house.records.open_reservations().await.expect("journal").is_empty());
        let recovered = rows.iter().filter(|row| row.status == Status::Recovered).count();
        assert!(recovered <= 16, "{recovered} of 16 workers");
        let operator = house.governor.operator();
        let key = house
            .governor
            .create_key_for(&operator, "ann", millgate::governance::NewKey { name: "n".into(), ..Default::default() })
            .await
            .expect("a key");
        let ann = house.authenticate(&key.secret).await.expect("ann");
        let total = house.ledger().await.1.total_tokens();
        let standing = house.standing(&ann).await;
        assert_eq!(standing[..2], [(u64::try_from(rows.len()).expect("few"), 0), (total, 0)]);
    }
}
