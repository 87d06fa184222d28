//! Sends threshold notices to a webhook: signed, again and again until it is taken, and never in the way of a request.
//!
//! The store is the queue: bounded, and there after a crash. A notice may arrive twice, always with the same id.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result};
use hmac::{Hmac, KeyInit, Mac};
use reqwest::redirect;
use sha2::Sha256;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::governance::notices::{Notice, NoticeOutcome, NoticeState};
use crate::governance::ports::{JournalEntry, Records};
use crate::governance::{Clock, Secret};

/// How often the store is asked for notices that are due.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// Notices taken in one go.
const BATCH: u32 = 16;
/// How long a receiver may take, name look-up and connection included.
const TIMEOUT: Duration = Duration::from_secs(10);
/// Attempts until a notice is given up: about a day and a half.
const ATTEMPTS_MAX: u32 = 48;
/// The wait after the first attempt; it doubles.
const FIRST_WAIT_US: i64 = 1_000_000;
/// The longest wait between two attempts.
const LONGEST_WAIT_US: i64 = 3_600_000_000;

/// A receiver of notices and the queue they come from.
pub struct Webhook {
    url: String,
    secret: Secret,
    http: reqwest::Client,
    records: Arc<dyn Records>,
    clock: Arc<dyn Clock>,
}

impl Webhook {
    /// A receiver at `url`; nothing is sent yet.
    ///
    /// # Errors
    /// No HTTP client can be made.
    pub fn new(url: String, secret: Secret, records: Arc<dyn Records>, clock: Arc<dyn Clock>) -> Result<Self> {
        // Fails only when a provider is installed already, which is as good.
        let _ = rustls::crypto::ring::default_provider().install_default();
        // A redirect could lead to any address that this machine reaches: none is followed.
        let http = reqwest::Client::builder().redirect(redirect::Policy::none()).timeout(TIMEOUT).build();
        Ok(Self { url, secret, http: http.context("cannot prepare an HTTP client")?, records, clock })
    }

    /// Sends what is due, again and again, until `stop`.
    pub async fn follow(self, stop: CancellationToken) {
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(LOOK_EVERY) => {}
            }
            tokio::select! {
                () = stop.cancelled() => return,
                () = self.send_due() => {}
            }
        }
    }

    /// Sends each notice that is due once.
    pub async fn send_due(&self) {
        let due = match self.records.due_notices(self.clock.now_us(), BATCH).await {
            Ok(due) => due,
            Err(error) => return warn!(%error, "cannot look for notices to send"),
        };
        for notice in due {
            let outcome = self.attempt(&notice).await;
            if let Err(error) = self.records.submit(JournalEntry::Told(outcome)).await {
                warn!(%error, "cannot note that a notice was sent; it will be sent again");
            }
        }
    }

    async fn attempt(&self, notice: &Notice) -> NoticeOutcome {
        let attempts = notice.attempts + 1;
        let sent = self.post(notice).await;
        let now_us = self.clock.now_us();
        let (state, error) = match sent {
            Ok(()) => {
                info!(notice.id = %notice.id, attempts, "a quota notice was delivered");
                (NoticeState::Delivered, None)
            }
            Err(error) if attempts >= ATTEMPTS_MAX => {
                warn!(notice.id = %notice.id, attempts, %error, "a quota notice is given up");
                (NoticeState::Failed, Some(error))
            }
            Err(error) => {
                warn!(notice.id = %notice.id, attempts, %error, "a quota notice was not taken; it is sent again later");
                (NoticeState::Pending, Some(error))
            }
        };
        let next_attempt_us = now_us.saturating_add(wait_us(attempts, chance()));
        NoticeOutcome { id: notice.id, state, attempts, next_attempt_us, error }
    }

    /// One attempt.
    ///
    /// # Errors
    /// In words that name no part of the address: the receiver cannot be reached in time, or answers anything but 2xx.
    async fn post(&self, notice: &Notice) -> Result<(), String> {
        let mut body = notice.body.clone();
        body["id"] = notice.id.to_string().into();
        body["at"] =
            jiff::Timestamp::from_microsecond(notice.at_us).map(|at| at.to_string()).unwrap_or_default().into();
        let text = body.to_string();
        let seconds = self.clock.now_us().div_euclid(1_000_000);
        let request = self
            .http
            .post(&self.url)
            .header("content-type", "application/json")
            .header("user-agent", concat!("millgate/", env!("CARGO_PKG_VERSION")))
            .header("x-millgate-notice-id", notice.id.to_string())
            .header("x-millgate-signature", signature(self.secret.reveal(), seconds, &text))
            .body(text);
        match request.send().await {
            Ok(answer) if answer.status().is_success() => Ok(()),
            Ok(answer) => Err(format!("the receiver answered {}", answer.status().as_u16())),
            Err(error) if error.is_timeout() => Err(format!("the receiver did not answer in {} s", TIMEOUT.as_secs())),
            Err(error) if error.is_connect() => Err("the receiver cannot be reached".into()),
            Err(_) => Err("the receiver broke the connection".into()),
        }
    }
}

/// `t=SECONDS,v1=HEX`: HMAC-SHA256 over the seconds, a full stop and the body.
fn signature(secret: &str, seconds: i64, body: &str) -> String {
    let mut mac = Hmac::<Sha256>::new_from_slice(secret.as_bytes()).expect("HMAC takes keys of any length");
    mac.update(format!("{seconds}.{body}").as_bytes());
    let hex: String = mac.finalize().into_bytes().iter().map(|byte| format!("{byte:02x}")).collect();
    format!("t={seconds},v1={hex}")
}

/// The wait after so many attempts: doubled each time, and between half of it and all of it, so that receivers that come back
/// are not met by everything at once.
fn wait_us(attempts: u32, chance: u8) -> i64 {
    let full = FIRST_WAIT_US.saturating_mul(1 << attempts.saturating_sub(1).min(20)).min(LONGEST_WAIT_US);
    full / 2 + full / 2 * i64::from(chance) / 255
}

fn chance() -> u8 {
    let mut byte = [0];
    // Without randomness the wait is the shortest; nothing depends on it.
    let _ = getrandom::fill(&mut byte);
    byte[0]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_to_an_hour_and_differ_by_half() {
        assert_eq!((wait_us(1, 255), wait_us(1, 0)), (1_000_000, 500_000));
        assert_eq!(wait_us(4, 255), 8_000_000);
        assert_eq!((wait_us(13, 255), wait_us(4000, 255)), (LONGEST_WAIT_US, LONGEST_WAIT_US));
    }

    #[test]
    fn the_signature_is_hmac_sha256_over_time_and_body() {
        // From another program: `printf '1.{}' | openssl dgst -sha256 -hmac secret`.
        let signed = signature("secret", 1, "{}");
        assert_eq!(signed, "t=1,v1=1122767b193110cfec322b6f199b599edbf608ed087f2d27afb0b97d99523908");
        assert_ne!(signed, signature("secret", 2, "{}"));
        assert_ne!(signed, signature("other", 1, "{}"));
        assert_ne!(signed, signature("secret", 1, "{ }"));
    }
}
