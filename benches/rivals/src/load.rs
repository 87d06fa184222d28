//! The load: many clients at once, answers that take a while, and a limit that is never enough for all.

use std::sync::Mutex;
use std::time::{Duration, Instant};

use crate::subjects::{LIMIT_TOKENS, Subject, WINDOW, context};

const CLIENTS: u64 = 64;
/// How long an answer takes.
const ANSWER: Duration = Duration::from_millis(5);
/// How long the load lasts.
const LENGTH: Duration = Duration::from_secs(7);

/// What became of the load.
pub struct Load {
    /// Requests let in.
    pub answered: usize,
    /// The most tokens in any interval of the window's length beyond the limit, by the time of admission.
    pub overshot: u64,
}

/// Lets 64 clients ask again and again, whether let in or not.
pub fn run(subject: &Subject) -> Load {
    let log: Mutex<Vec<(Duration, u64)>> = Mutex::default();
    let start = Instant::now();
    std::thread::scope(|scope| {
        for client in 0..CLIENTS {
            let log = &log;
            scope.spawn(move || {
                let context = context();
                for round in 0u64.. {
                    let at = start.elapsed();
                    if at > LENGTH {
                        break;
                    }
                    let ticket = subject.admit(&context);
                    std::thread::sleep(ANSWER);
                    if let Some(ticket) = ticket {
                        let completion = (client * 37 + round * 61) % 201;
                        subject.settle(&context, ticket, completion);
                        log.lock().expect("no client panics").push((at, 100 + completion));
                    }
                }
            });
        }
    });
    let mut log = log.into_inner().expect("no client panics");
    log.sort_unstable();
    Load { answered: log.len(), overshot: most_in_a_window(&log).saturating_sub(LIMIT_TOKENS.into()) }
}

fn most_in_a_window(log: &[(Duration, u64)]) -> u64 {
    let (mut first, mut sum, mut most) = (0, 0, 0);
    for (at, tokens) in log {
        sum += tokens;
        while log[first].0 + WINDOW <= *at {
            sum -= log[first].1;
            first += 1;
        }
        most = most.max(sum);
    }
    most
}
