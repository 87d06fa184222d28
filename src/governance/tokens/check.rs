//! From a signed token to a principal: proven once, then asked on every use whether key and user still stand.

use std::net::IpAddr;
use std::sync::Arc;

use arc_swap::ArcSwap;

use super::claims::{Claims, ISSUER};
use super::jws::{Jws, Refused};
use super::keyring::Keyring;
use super::seen::Seen;
use crate::governance::clock::micros;
use crate::governance::config::Secret;
use crate::governance::governor::Core;
use crate::governance::identity::{Holder, Identities};
use crate::governance::kubernetes::VOUCHER;
use crate::governance::login::{Login, Verdict, Voucher, log_in};
use crate::governance::policy::{Means, Principal};
use crate::governance::ports::{Records, StoreError};
use crate::governance::records::UserId;

/// The signing keys as they are now, and the tokens that were verified before.
#[derive(Default)]
pub(in crate::governance) struct Tokens {
    keyring: ArcSwap<Keyring>,
    seen: Seen<Proven>,
}

/// A token whose signature and claims were checked.
enum Proven {
    /// One of ours, and the key that signed it.
    Ours { claims: Claims, signed_with: Arc<str> },
    /// One that somebody else vouches for, for a user of ours.
    Provider { user: UserId, may_infer: bool },
}

impl Tokens {
    /// The signing keys, at least as new as the newest policy version known.
    pub(in crate::governance) async fn keyring(
        &self,
        records: &dyn Records,
        identities: &Identities,
    ) -> Result<Arc<Keyring>, StoreError> {
        // Read before the keys: a change that comes between makes the ring stale, never wrongly fresh.
        let version = identities.version();
        let keyring = self.keyring.load_full();
        if keyring.version >= version {
            return Ok(keyring);
        }
        let fresh = Arc::new(Keyring::new(version, records.signing_keys().await?));
        self.keyring.rcu(|old| if old.version < fresh.version { fresh.clone() } else { old.clone() });
        Ok(fresh)
    }
}

/// The holder of a token; `None` when it opens nothing.
pub(in crate::governance) async fn verify(
    core: &Core,
    text: &Secret,
    digest: [u8; 32],
    source: IpAddr,
    now_us: i64,
) -> Result<Option<Principal>, StoreError> {
    let proven = match core.tokens.seen.get(&digest, now_us) {
        Some(proven) => proven,
        None => {
            let (proven, until_us) = match prove(core, text, digest, source, now_us).await? {
                Ok(proven) => proven,
                Err(reason) => {
                    tracing::debug!(%reason, "a token is not accepted");
                    return Ok(None);
                }
            };
            let proven = Arc::new(proven);
            core.tokens.seen.put(digest, until_us, proven.clone(), now_us);
            proven
        }
    };
    match &*proven {
        Proven::Ours { claims, signed_with } => holder(core, claims, signed_with, now_us).await,
        Proven::Provider { user, may_infer } => {
            let identity = core.identities.identity(core.records.as_ref(), &Holder::User(*user), now_us).await?;
            let principal = identity.and_then(|identity| identity.principal_at(now_us));
            Ok(principal.map(|who| Principal { means: Means::Provider { may_infer: *may_infer }, ..who }))
        }
    }
}

/// The holder of one of our tokens, as key, user and signing key stand now.
async fn holder(
    core: &Core,
    claims: &Claims,
    signed_with: &Arc<str>,
    now_us: i64,
) -> Result<Option<Principal>, StoreError> {
    let records = core.records.as_ref();
    // The signing key may have been withdrawn since the token was proven.
    if !core.tokens.keyring(records, &core.identities).await?.knows(signed_with, now_us) {
        return Ok(None);
    }
    let made_with = claims.key.as_ref();
    let holder = made_with.map_or(Holder::User(claims.user), |made_with| Holder::Key(made_with.key.clone()));
    let Some(identity) = core.identities.identity(records, &holder, now_us).await? else {
        return Ok(None);
    };
    if identity.user != claims.user || identity.epoch != claims.epoch {
        return Ok(None);
    }
    let secret = match made_with {
        None => None,
        Some(made_with) => match identity.secret_of(made_with.mark, now_us) {
            None => return Ok(None),
            secret => secret,
        },
    };
    let principal = identity.principal_at(now_us);
    if let (Some(_), Some(made_with)) = (&principal, made_with) {
        core.identities.note_use(&identity, made_with.key.as_str(), now_us);
    }
    Ok(principal.map(|who| Principal { means: Means::Token, signed_with: Some(signed_with.clone()), secret, ..who }))
}

/// Checks a token that was not seen before; what is proven, and until when.
async fn prove(
    core: &Core,
    text: &Secret,
    digest: [u8; 32],
    source: IpAddr,
    now_us: i64,
) -> Result<Result<(Proven, i64), Refused>, StoreError> {
    let jws = match Jws::parse(text.reveal()) {
        Ok(jws) => jws,
        Err(refused) => return Ok(Err(refused)),
    };
    let issuer = match jws.text("iss") {
        Ok(issuer) => issuer,
        Err(refused) => return Ok(Err(refused)),
    };
    if issuer == ISSUER {
        let keyring = core.tokens.keyring(core.records.as_ref(), &core.identities).await?;
        let checked = Claims::check(&jws, &keyring, now_us);
        return Ok(checked.map(|(claims, signed_with)| {
            let until_us = claims.expires_at_us;
            (Proven::Ours { claims, signed_with }, until_us)
        }));
    }
    if let Some(provider) = core.believed.providers.iter().find(|provider| provider.issuer.issuer == issuer) {
        let login = match provider.check(&jws, now_us).await? {
            Verdict::Refused(refused) => return Ok(Err(refused)),
            Verdict::Proven(login) => login,
        };
        let proven =
            logged_in(core, provider.issuer.voucher(), &login, source, provider.issuer.allow_inference).await?;
        // Checked again now and then: the provider may have withdrawn the key.
        let until_us = login.until_us.min(now_us.saturating_add(micros(provider.issuer.keys_refresh)));
        return Ok(Ok((proven, until_us)));
    }
    let Some(cluster) = &core.believed.cluster else {
        return Ok(Err(Refused::claim("iss", "is no issuer that is believed here")));
    };
    // Last, so that no token of ours and none of a provider is ever sent there.
    match &*cluster.check(text, digest, &jws).await? {
        Verdict::Refused(refused) => Ok(Err(refused.clone())),
        Verdict::Proven(login) => {
            let proven = logged_in(core, VOUCHER, login, source, cluster.rules.allow_inference).await?;
            Ok(Ok((proven, login.until_us)))
        }
    }
}

async fn logged_in(
    core: &Core,
    voucher: Voucher<'_>,
    login: &Login,
    source: IpAddr,
    may_infer: bool,
) -> Result<Proven, StoreError> {
    Ok(Proven::Provider { user: log_in(core, voucher, login, source).await?, may_infer })
}
