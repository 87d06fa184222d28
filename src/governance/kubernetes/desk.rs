//! Where tokens wait for their review: one task asks the API server, about one token once, however many requests bring it.
//!
//! What it was told is kept: a yes for a minute, so that a deleted service account or token is out soon, a no for seconds, so
//! that a client that goes on and on costs the API server next to nothing.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use futures::stream::{FuturesUnordered, StreamExt as _};
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::config::KubernetesCluster;
use super::review;
use super::reviews::{ReviewError, TokenReviews};
use crate::governance::clock::{Clock, micros};
use crate::governance::config::Secret;
use crate::governance::login::Verdict;
use crate::governance::ports::StoreError;
use crate::governance::tokens::{Jws, Seen};

/// The longest a request waits, until its turn and for the answer together. API servers answer within milliseconds or hang.
const WAIT_MAX: Duration = Duration::from_secs(2);
/// How long a yes counts, if the token lives as long.
const YES_LASTS: Duration = Duration::from_secs(60);
/// How long a no counts.
const NO_LASTS: Duration = Duration::from_secs(5);
/// Reviews under way at once: made-up tokens are a trickle to the API server, whatever arrives here.
const REVIEWS_MAX: usize = 16;
/// Requests that may wait for their turn; more are told to come back.
const WAITING_MAX: usize = 256;

type Digest = [u8; 32];
/// What becomes of a token, or why nobody can tell.
type Word = Result<Arc<Verdict>, Arc<str>>;

/// A cluster whose tokens are believed.
pub(in crate::governance) struct Cluster {
    /// What the operator says about it.
    pub(in crate::governance) rules: Arc<KubernetesCluster>,
    ask: mpsc::Sender<Ask>,
}

/// One request with a token.
struct Ask {
    digest: Digest,
    token: Secret,
    /// When the token says it ends.
    ends_us: i64,
    done: oneshot::Sender<Word>,
}

/// A review that is over.
struct Reviewed {
    digest: Digest,
    ends_us: i64,
    answer: Result<Vec<u8>, ReviewError>,
}

/// The part that asks the API server; run it once.
pub(in crate::governance) struct ReviewTask {
    rules: Arc<KubernetesCluster>,
    clock: Arc<dyn Clock>,
    reviews: Arc<dyn TokenReviews>,
    asked: mpsc::Receiver<Ask>,
    told: Seen<Verdict>,
    waiting: HashMap<Digest, Vec<oneshot::Sender<Word>>>,
    under_way: FuturesUnordered<BoxFuture<'static, Reviewed>>,
}

impl Cluster {
    /// A cluster nobody has asked anything yet.
    pub(in crate::governance) fn new(
        rules: KubernetesCluster,
        clock: Arc<dyn Clock>,
        reviews: Arc<dyn TokenReviews>,
    ) -> (Self, ReviewTask) {
        let (ask, asked) = mpsc::channel(WAITING_MAX);
        let rules = Arc::new(rules);
        let task = ReviewTask {
            rules: rules.clone(),
            clock,
            reviews,
            asked,
            told: Seen::default(),
            waiting: HashMap::new(),
            under_way: FuturesUnordered::new(),
        };
        (Self { rules, ask }, task)
    }

    /// What the API server says about a token.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`] when it says nothing in time.
    pub(in crate::governance) async fn check(
        &self,
        token: &Secret,
        digest: Digest,
        jws: &Jws<'_>,
    ) -> Result<Arc<Verdict>, StoreError> {
        let (done, wait) = oneshot::channel();
        // Unproven, and only ever shortens: whoever writes a later end gets the usual minute.
        let ends_us = jws.moment("exp").ok().flatten().unwrap_or(i64::MAX);
        let ask = Ask { digest, token: token.clone(), ends_us, done };
        let word = match self.ask.try_send(ask) {
            Ok(()) => timeout(WAIT_MAX, wait).await,
            Err(_) => return Err(unavailable("too many tokens wait for it".into())),
        };
        match word {
            Ok(Ok(word)) => word.map_err(unavailable),
            Ok(Err(_)) => Err(unavailable("this server is stopping".into())),
            Err(_) => Err(unavailable(format!("no answer within {} s", WAIT_MAX.as_secs()).into())),
        }
    }
}

fn unavailable(message: Arc<str>) -> StoreError {
    StoreError::Unavailable { operation: "have a token reviewed by the Kubernetes API server", message }
}

impl ReviewTask {
    /// Asks when there is something to ask, until `stop`.
    pub(in crate::governance) async fn run(mut self, stop: CancellationToken) {
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                Some(reviewed) = self.under_way.next() => self.finish(reviewed),
                asked = self.asked.recv(), if self.under_way.len() < REVIEWS_MAX => match asked {
                    Some(ask) => self.begin(ask),
                    None => return,
                },
            }
        }
    }

    /// Answers from memory, waits with others for the same review, or begins one.
    fn begin(&mut self, ask: Ask) {
        if ask.done.is_closed() {
            return;
        }
        if let Some(verdict) = self.told.get(&ask.digest, self.clock.now_us()) {
            let _ = ask.done.send(Ok(verdict));
            return;
        }
        match self.waiting.entry(ask.digest) {
            Entry::Occupied(mut others) => others.get_mut().push(ask.done),
            Entry::Vacant(first) => {
                first.insert(vec![ask.done]);
                let request = review::request(&ask.token, &self.rules.audiences);
                let reviews = self.reviews.clone();
                self.under_way.push(Box::pin(async move {
                    let answer = timeout(WAIT_MAX, reviews.review(&request)).await;
                    let late = || ReviewError { problem: format!("no answer within {} s", WAIT_MAX.as_secs()) };
                    let answer = answer.unwrap_or_else(|_| Err(late()));
                    Reviewed { digest: ask.digest, ends_us: ask.ends_us, answer }
                }));
            }
        }
    }

    /// Keeps what the API server said and tells everybody who waits for it.
    fn finish(&mut self, reviewed: Reviewed) {
        let Reviewed { digest, ends_us, answer } = reviewed;
        let now_us = self.clock.now_us();
        let yes_until_us = now_us.saturating_add(micros(YES_LASTS)).min(ends_us);
        let verdict = answer
            .map_err(|error| error.to_string())
            .and_then(|answer| review::read(&answer, &self.rules, now_us, yes_until_us));
        let word = match verdict {
            Ok(verdict) => {
                let verdict = Arc::new(verdict);
                let until_us = match &*verdict {
                    Verdict::Proven(_) => yes_until_us,
                    Verdict::Refused(_) => now_us.saturating_add(micros(NO_LASTS)),
                };
                self.told.put(digest, until_us, verdict.clone(), now_us);
                Ok(verdict)
            }
            // Not kept: the next request may find the API server well again.
            Err(problem) => Err(Arc::from(problem)),
        };
        for done in self.waiting.remove(&digest).into_iter().flatten() {
            // Whoever waited may have gone.
            let _ = done.send(word.clone());
        }
    }
}
