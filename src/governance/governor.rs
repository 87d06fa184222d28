//! The governor: who are you, may you, how much is left; and the background tasks that keep those answers true.

use std::net::IpAddr;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use tokio::sync::Semaphore;
use tokio::sync::mpsc::UnboundedReceiver;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::believed::Believed;
use super::bootstrap::{self, FirstStart};
use super::clock::{Clock, micros};
use super::config::Config;
use super::edge::{FailureGuard, Guard};
use super::error::{AuthFailure, Denied, LimitStanding, Refusal, StandingError, StartError};
use super::identity::Identities;
use super::keys::{Credential, Presented};
use super::kubernetes::{NoReviews, TokenReviews};
use super::notices::Notices;
use super::oidc::{Documents, NoDocuments};
use super::permit::{Ask, Permit};
use super::policy::{Largest, Principal};
use super::ports::{Counters, Need, Records, Reserved};
use super::rebuild;
use super::reconcile::{Meter, Sums};
use super::records::UserId;
use super::refusals::Refusals;
use super::settler::{self, Settler, Unsettled};
use super::tier_files::Watched;
use super::tokens::{self, Tokens};

/// Decides about every request; cheap to clone.
#[derive(Clone)]
pub struct Governor(pub(super) Arc<Core>);

/// What all clones of a governor and all its permits share.
pub(super) struct Core {
    pub(super) records: Arc<dyn Records>,
    pub(super) counters: Arc<dyn Counters>,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) config: Config,
    pub(super) identities: Identities,
    pub(super) tokens: Tokens,
    pub(super) believed: Believed,
    pub(super) settler: Settler,
    pub(super) watched: Watched,
    pub(super) refusals: Refusals,
    pub(super) meter: Meter,
    pub(super) notices: Notices,
    /// What the roll-ups had when this process started.
    totals_at_start: OnceLock<Sums>,
    /// Replays read much; one runs at a time.
    pub(super) replays: Semaphore,
    edge: FailureGuard,
    /// Changes that users make to their own keys and tokens.
    pub(super) own_changes: Guard<UserId>,
    pub(super) tasks: TaskTracker,
    stop: CancellationToken,
    pub(super) stop_settler: CancellationToken,
}

impl Governor {
    /// Opens governance: recovers what the last process left open, rebuilds the counters, makes the first administrator.
    ///
    /// Nothing may be admitted before it returns.
    ///
    /// # Errors
    /// [`StartError`] when the store cannot be read or written, or the configured admin key cannot be used.
    pub async fn start(
        records: Arc<dyn Records>,
        counters: Arc<dyn Counters>,
        clock: Arc<dyn Clock>,
        config: Config,
    ) -> Result<(Self, FirstStart), StartError> {
        Self::start_with(records, counters, clock, config, Arc::new(NoDocuments), Arc::new(NoReviews)).await
    }

    /// As [`Governor::start`], with a way to fetch the documents of identity providers and one to have tokens reviewed.
    ///
    /// # Errors
    /// As there.
    pub async fn start_with(
        records: Arc<dyn Records>,
        counters: Arc<dyn Counters>,
        clock: Arc<dyn Clock>,
        config: Config,
        documents: Arc<dyn Documents>,
        reviews: Arc<dyn TokenReviews>,
    ) -> Result<(Self, FirstStart), StartError> {
        let first = bootstrap::run(records.as_ref(), &config, clock.now_us()).await?;
        let tables = records.policy().await?;
        rebuild::recover(records.as_ref(), &tables.prices, clock.as_ref()).await?;
        rebuild::restore(records.as_ref(), counters.as_ref(), &tables, clock.as_ref()).await?;
        let mut salt_secret = [0; 32];
        getrandom::fill(&mut salt_secret).map_err(|error| StartError::Random(error.to_string()))?;
        let (believed, asking) = Believed::new(&config, &clock, &documents, reviews);
        let identities = Identities::new(tables, clock.steady_us(), salt_secret, &config);
        let (core, queue) = Core::assemble(records, counters, clock, config, identities, believed);
        // After recovery and before anything is admitted: from here on the meter counts.
        let _ = core.totals_at_start.set(core.records.totals().await?);
        core.tasks.spawn(settler::run(queue, core.clone()));
        core.tasks.spawn(watch(core.clone()));
        asking.spawn(&core.tasks, &core.stop);
        Ok((Self(core), first))
    }

    /// Finds out who holds a credential.
    ///
    /// # Errors
    /// [`AuthFailure`]; only a failing request is ever throttled.
    pub async fn authenticate(&self, credential: &Credential, source: IpAddr) -> Result<Principal, AuthFailure> {
        let core = &self.0;
        let now_us = core.clock.now_us();
        if !core.is_policy_fresh().await {
            return Err(AuthFailure::Unavailable);
        }
        let verified = match &credential.0 {
            Presented::Token { text, digest } => tokens::verify(core, text, *digest, source, now_us).await,
            _ => core.identities.verify(core.records.as_ref(), credential, now_us).await,
        };
        match verified {
            Ok(Some(principal)) => Ok(Principal { address: Some(source), ..principal }),
            Ok(None) => Err(match core.edge.failed(source) {
                Ok(()) => AuthFailure::Invalid,
                Err(retry_after) => AuthFailure::Throttled { retry_after },
            }),
            Err(error) => {
                tracing::error!(%error, "cannot check a credential");
                Err(AuthFailure::Unavailable)
            }
        }
    }

    /// Refuses at once who has no request left; consumes nothing.
    ///
    /// It speaks only when its wait is the last word: when a token limit might ask a request of up to `largest` tokens to
    /// wait longer, it leaves the answer to admission, which knows the request.
    ///
    /// # Errors
    /// [`Denied`] as an admission would say. When the counters cannot be reached it says nothing: admission will.
    pub async fn peek(&self, who: &Principal, model: Option<&str>, largest: u64) -> Result<(), Box<Denied>> {
        let core = &self.0;
        let now_us = core.clock.now_us();
        let model = model.filter(|model| who.policy.allows(model));
        if !who.policy.is_planned_by(model) {
            return Ok(());
        }
        let plan = who.policy.plan(model, now_us);
        let least = Need { requests: 1, sequences: 1, ..Need::default() };
        match core.counters.probe(&plan.charges, least).await {
            Ok(Reserved::Refused { refusing, counts })
                if plan.is_last_word(&refusing, &counts, core.largest(who, model, largest)) =>
            {
                let denied = plan.denied(&refusing, &counts, now_us);
                core.refusals.note(who, model, &denied, now_us);
                Err(Box::new(denied))
            }
            Ok(_) | Err(_) => Ok(()),
        }
    }

    /// Charges a request on every limit that applies, or on none.
    ///
    /// # Errors
    /// [`Refusal`].
    ///
    /// # Cancel
    /// Dropping the future gives back what was charged, except the request unit.
    pub async fn admit(&self, who: &Principal, ask: Ask) -> Result<Permit, Refusal> {
        Permit::admit(&self.0, who, ask).await
    }

    /// Where every limit of the caller stands that applies to `model`, or to all models.
    ///
    /// # Errors
    /// The counters cannot be reached.
    pub async fn standing(&self, who: &Principal, model: Option<&str>) -> Result<Vec<LimitStanding>, StandingError> {
        let now_us = self.0.clock.now_us();
        let model = model.filter(|model| who.policy.allows(model));
        let plan = who.policy.plan(model, now_us);
        let counts = self.0.counters.peek(&plan.charges).await?;
        Ok(plan.standing(&counts, now_us))
    }

    /// Returns when every permit dropped so far is settled and on the disk.
    pub async fn drain(&self) {
        self.0.settler.flush().await;
    }

    /// Settles what is still open in the background, writes what is due, and ends the tasks. Call it when no request runs.
    pub async fn shutdown(&self) {
        let core = &self.0;
        core.settler.flush().await;
        core.refusals.flush(core.records.as_ref()).await;
        core.stop_settler.cancel();
        core.stop.cancel();
        core.tasks.close();
        core.tasks.wait().await;
    }
}

impl Core {
    /// What was on the disk when this process started.
    pub(super) fn totals_at_start(&self) -> Sums {
        self.totals_at_start.get().copied().unwrap_or_default()
    }

    /// Everything in its place and no task running; the settler's queue comes with it.
    pub(super) fn assemble(
        records: Arc<dyn Records>,
        counters: Arc<dyn Counters>,
        clock: Arc<dyn Clock>,
        config: Config,
        identities: Identities,
        believed: Believed,
    ) -> (Arc<Self>, UnboundedReceiver<Unsettled>) {
        let (settler, queue) = Settler::new();
        let core = Arc::new(Self {
            edge: FailureGuard::new(config.failed_credentials_per_minute, clock.clone()),
            own_changes: Guard::new(OWN_CHANGES_PER_MINUTE, clock.clone()),
            identities,
            tokens: Tokens::default(),
            believed,
            records,
            counters,
            clock,
            config,
            settler,
            watched: Watched::default(),
            refusals: Refusals::default(),
            meter: Meter::default(),
            notices: Notices::default(),
            totals_at_start: OnceLock::new(),
            replays: Semaphore::new(1),
            tasks: TaskTracker::new(),
            stop: CancellationToken::new(),
            stop_settler: CancellationToken::new(),
        });
        (core, queue)
    }

    /// The most that a request of `tokens` may cost; a model that is not known yet may have any price.
    fn largest(&self, who: &Principal, model: Option<&str>, tokens: u64) -> Largest {
        let now_us = self.clock.now_us();
        let cost_nano_usd = match model {
            Some(model) => who.policy.price(model, now_us).map_or(0, |record| record.price.dearest_nano_usd(tokens)),
            None => u64::MAX,
        };
        Largest { tokens, cost_nano_usd }
    }

    /// True when the policy version was read from the store recently enough; reads it if it was not.
    async fn is_policy_fresh(&self) -> bool {
        let unconfirmed_us = self.identities.unconfirmed_us(self.clock.steady_us());
        unconfirmed_us <= micros(self.config.stale_max) || self.follow_version().await
    }

    /// Reads the policy version; false when the store cannot be read.
    async fn follow_version(&self) -> bool {
        let asked_us = self.clock.steady_us();
        match self.records.policy_version().await {
            Ok(version) => {
                self.identities.saw_version(version);
                self.identities.confirm(asked_us);
                true
            }
            Err(error) => {
                tracing::warn!(%error, "cannot read the policy version");
                false
            }
        }
    }
}

/// Changes to their own keys and tokens that a user may make in a minute: far more than anybody needs, too few to fill the
/// audit log or to keep administrators from changing anything.
const OWN_CHANGES_PER_MINUTE: u32 = 120;
/// How long an ephemeral key that is over stays in lists.
const EPHEMERAL_KEPT: Duration = Duration::from_secs(30 * 60);
/// How long one stays that counts on limits of keys: longer than any calendar period, so that after a restart what it used
/// still counts on them.
const LIMITED_KEPT: Duration = Duration::from_secs(63 * 86_400);

/// Follows the policy version of the store and tells running requests about it, writes "last used" now and then, forgets
/// quiet sources and ephemeral keys that are over.
async fn watch(core: Arc<Core>) {
    let mut next_chores_us = core.clock.steady_us() + micros(core.config.last_used_every);
    let mut poll = tokio::time::interval(core.config.policy_poll.max(Duration::from_millis(1)));
    poll.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = core.stop.cancelled() => break,
            () = core.identities.version_grown() => {}
            _ = poll.tick() => {
                core.follow_version().await;
            }
        }
        if let Err(error) = core.identities.publish(core.records.as_ref()).await {
            tracing::warn!(%error, "cannot read the policy that running requests must follow");
        }
        if !core.refusals.is_empty() {
            core.refusals.flush(core.records.as_ref()).await;
        }
        let now_us = core.clock.steady_us();
        if now_us >= next_chores_us {
            next_chores_us = now_us + micros(core.config.last_used_every);
            write_last_used(&core).await;
            Governor(core.clone()).tend_signing_keys().await;
            forget_ephemeral_keys(&core).await;
            core.edge.forget_quiet();
            core.own_changes.forget_quiet();
        }
    }
    write_last_used(&core).await;
}

async fn forget_ephemeral_keys(core: &Core) {
    let now_us = core.clock.now_us();
    let (plain_us, limited_us) = (now_us - micros(EPHEMERAL_KEPT), now_us - micros(LIMITED_KEPT));
    match core.records.forget_ephemeral_keys(plain_us, limited_us).await {
        Ok(0) => {}
        Ok(keys) => tracing::info!(keys, "forgot ephemeral keys that are over"),
        Err(error) => tracing::warn!(%error, "cannot forget ephemeral keys that are over"),
    }
}

async fn write_last_used(core: &Core) {
    let used = core.identities.take_used();
    if used.is_empty() {
        return;
    }
    if let Err(error) = core.records.touch_keys(used).await {
        tracing::warn!(%error, "cannot note when keys were last used");
    }
}
