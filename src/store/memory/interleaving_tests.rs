//! Interleavings of the counters, tried by shuttle: no update is lost, all or nothing, settled once.

use std::sync::Arc;

use futures::FutureExt;
use shuttle::thread;
use uuid::Uuid;

use super::MemoryCounters;
use crate::governance::ManualClock;
use crate::governance::limits::Limit;
use crate::governance::ports::{Charge, Count, CounterKey, Counters, Need, Reserved};
use crate::governance::records::{KeyId, Usage, UserId};

/// Schedules tried for each test, drawn at random and with few, well-placed changes of thread.
const SCHEDULES: usize = 600;

fn on_every_schedule(test: impl Fn() + Send + Sync + 'static) {
    let test = Arc::new(test);
    let again = test.clone();
    shuttle::check_random(move || test(), SCHEDULES);
    shuttle::check_pct(move || again(), SCHEDULES, 3);
}

fn counters() -> Arc<MemoryCounters> {
    Arc::new(MemoryCounters::new(Arc::new(ManualClock::at(1_795_435_200_000_000))))
}

fn charge(text: &str, user: u128) -> Charge {
    let limit: Limit = text.parse().expect("a limit");
    let key = CounterKey::for_subject(&limit, UserId(Uuid::from_u128(user)), Some(&KeyId::from("key")), "tier");
    Charge { key: key.expect("a counter"), hard: Some(limit.amount), bounds: None }
}

fn charges(texts: &[&str], user: u128) -> Arc<[Charge]> {
    texts.iter().map(|text| charge(text, user)).collect()
}

fn tokens(prompt_tokens: u64) -> Need {
    Need { requests: 1, prompt_tokens, sequences: 1, ..Need::default() }
}

fn used(prompt_tokens: u64, completion_tokens: u64) -> Usage {
    Usage { prompt_tokens, cached_tokens: 0, completion_tokens }
}

fn done<T>(future: impl Future<Output = T>) -> T {
    future.now_or_never().expect("counters in memory never wait")
}

fn reserve(counters: &MemoryCounters, id: u128, charges: &Arc<[Charge]>, need: Need) -> Reserved {
    done(counters.reserve(Uuid::from_u128(id), charges, need)).expect("an answer")
}

fn is_granted(answer: &Reserved) -> bool {
    matches!(answer, Reserved::Granted { .. })
}

/// Used and held of each charge, at one moment.
fn standing(counters: &MemoryCounters, charges: &[Charge]) -> Vec<(u64, u64)> {
    let (Reserved::Granted { counts, .. } | Reserved::Refused { counts, .. }) =
        done(counters.probe(charges, Need::default())).expect("an answer");
    counts.iter().map(|Count { used, held, .. }| (*used, *held)).collect()
}

fn join(threads: Vec<thread::JoinHandle<()>>) {
    for thread in threads {
        thread.join().expect("no thread panics");
    }
}

#[test]
fn no_charge_and_no_refund_is_lost() {
    on_every_schedule(|| {
        let counters = counters();
        let list = charges(&["1000 tokens / 1m", "1000 tokens / 1m per tier", "100 requests / 1h per key"], 1);
        let spend = |thread: u128| {
            let (counters, list) = (counters.clone(), list.clone());
            thread::spawn(move || {
                for round in 0..2 {
                    let id = thread * 10 + round;
                    assert!(is_granted(&reserve(&counters, id, &list, tokens(7))));
                    done(counters.settle(Uuid::from_u128(id), used(5, 0).into())).expect("settled");
                }
            })
        };
        join((1..4).map(spend).collect());
        assert_eq!(standing(&counters, &list), [(30, 0), (30, 0), (6, 0)]);
        assert_eq!(counters.open_holds(), 0);
    });
}

#[test]
fn a_decision_over_several_counters_is_seen_whole_or_not_at_all() {
    on_every_schedule(|| {
        let counters = counters();
        let pool = "10 tokens / 1m per tier";
        let spend = |user: u128| {
            let (counters, list) = (counters.clone(), charges(&[pool, "100 tokens / 1m"], user));
            thread::spawn(move || {
                if is_granted(&reserve(&counters, user, &list, tokens(6))) {
                    done(counters.settle(Uuid::from_u128(user), used(4, 0).into())).expect("settled");
                }
            })
        };
        let watched: Arc<[Charge]> =
            Arc::from([charge(pool, 1), charge("100 tokens / 1m", 1), charge("100 tokens / 1m", 2)]);
        let (watching, all) = (counters.clone(), watched.clone());
        let watcher = thread::spawn(move || {
            for _ in 0..3 {
                let [pool, one, two] = standing(&watching, &all)[..] else { panic!("three counts") };
                assert_eq!(pool, (one.0 + two.0, one.1 + two.1), "the pool is what its members have");
                assert!(pool.0 + pool.1 <= 10);
            }
        });
        join(vec![spend(1), spend(2), watcher]);
        let [pool, one, two] = standing(&counters, &watched)[..] else { panic!("three counts") };
        assert_eq!(pool, (one.0 + two.0, 0));
        assert!(pool.0 == 4 || pool.0 == 8, "one or, one after the other, both: {pool:?}");
    });
}

#[test]
fn of_many_at_once_exactly_as_many_pass_as_fit() {
    on_every_schedule(|| {
        let counters = counters();
        let list = charges(&["20 tokens / 1m", "20 tokens / 1h per tier"], 1);
        let ask = |id: u128| {
            let (counters, list) = (counters.clone(), list.clone());
            thread::spawn(move || is_granted(&reserve(&counters, id, &list, tokens(5))))
        };
        let asking: Vec<_> = (1..=6).map(ask).collect();
        let passed = asking.into_iter().map(|thread| thread.join().expect("no panic"));
        assert_eq!(passed.filter(|passed| *passed).count(), 4);
        assert_eq!(standing(&counters, &list), [(0, 20), (0, 20)]);
    });
}

#[test]
fn repeated_and_racing_calls_about_one_reservation_count_once() {
    on_every_schedule(|| {
        let counters = counters();
        let list = charges(&["100 tokens / 1m", "100 tokens / 1m per tier"], 1);
        let (id, more) = (9, Need { completion_least: 5, completion_most: 5, ..Need::default() });
        let call = |settled: u64| {
            let (counters, list) = (counters.clone(), list.clone());
            thread::spawn(move || {
                let id_of = Uuid::from_u128(id);
                // Each of these may come after the other thread has settled, and is an error then.
                if done(counters.reserve(id_of, &list, tokens(10))).is_ok() {
                    let _ = done(counters.extend(id_of, 1, more));
                }
                done(counters.settle(id_of, used(10, settled).into())).expect("settled");
            })
        };
        join(vec![call(2), call(4)]);
        let [user, pool] = standing(&counters, &list)[..] else { panic!("two counts") };
        assert_eq!((user, counters.open_holds()), (pool, 0));
        // 10: the first settled before anybody had extended; else what either of the two said.
        assert!([(10, 0), (12, 0), (14, 0)].contains(&user), "{user:?}");
    });
}

#[test]
fn clearing_idle_subjects_away_never_forgets_a_charge() {
    on_every_schedule(|| {
        let counters = counters();
        let list = charges(&["100 tokens / 1m"], 1);
        let strangers = counters.clone();
        let crowd = thread::spawn(move || {
            for user in 2..40 {
                // Looked at and never charged: idle at once.
                done(strangers.probe(&charges(&["100 tokens / 1m"], user), tokens(1))).expect("an answer");
            }
        });
        let (spending, own) = (counters.clone(), list.clone());
        let spender = thread::spawn(move || {
            assert!(is_granted(&reserve(&spending, 1, &own, tokens(7))));
            done(spending.settle(Uuid::from_u128(1), used(7, 0).into())).expect("settled");
        });
        join(vec![crowd, spender]);
        assert!(counters.known() < 39, "idle subjects were cleared away");
        assert_eq!(standing(&counters, &list), [(7, 0)]);
    });
}
