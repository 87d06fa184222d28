//! From a change and the state it found to what the audit log says about it. No secret and no digest is ever part of it.

use jiff::Timestamp;
use serde_json::{Value, json};

use crate::governance::ports::Change;
use crate::governance::pricing::PriceRecord;
use crate::governance::records::{KeyId, KeyRecord, ModelRecord, SigningKeyRecord, TierRecord, UserRecord};

/// What the store held about the thing a change is about, read in the transaction that changes it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Found {
    /// Nothing of that name.
    #[default]
    Nothing,
    /// The user.
    User(UserRecord),
    /// The key.
    Key(KeyRecord),
    /// The user's keys that are not revoked, and the user where they still exist.
    KeysOf(Option<UserRecord>, Vec<KeyId>),
    /// The tier.
    Tier(TierRecord),
    /// The model.
    Model(ModelRecord),
    /// The group is known.
    Group,
    /// The price that is in force when the new one takes effect.
    Price(PriceRecord),
    /// The key that signs tokens.
    SigningKey(SigningKeyRecord),
    /// The configuration that the last start noted.
    Config(Value),
}

/// What one change did to one thing.
#[derive(Debug, Clone, PartialEq)]
pub struct Entry {
    /// Thing and verb: `tier.update`.
    pub action: &'static str,
    /// Kind and name: `tier/free`.
    pub target: String,
    /// As it was; `None`: it did not exist.
    pub before: Option<Value>,
    /// As it is; `None`: it is gone.
    pub after: Option<Value>,
}

/// What the audit log says about a change; `None` for one that changes nothing.
pub fn entry(change: &Change, found: &Found) -> Option<Entry> {
    let entry = match (change, found) {
        (Change::PutUser(user), Found::User(old)) => {
            Entry::update(user_verb(old, user), user_target(user), user_view(old), user_view(user))
        }
        (Change::PutUser(user), _) => Entry::create("user.create", user_target(user), user_view(user)),
        (Change::DeleteUser(_), Found::User(old)) => Entry::delete("user.delete", user_target(old), user_view(old)),
        (Change::PutKey(key), Found::Key(old)) => key_entry(old, key),
        (Change::PutKey(key), _) => Entry::create("key.create", format!("key/{}", key.id), key_view(key)),
        (Change::RevokeKeysOf { user, .. }, Found::KeysOf(owner, keys)) => {
            let live: Vec<&str> = keys.iter().map(KeyId::as_str).collect();
            let target = owner.as_ref().map_or_else(|| format!("user/{user}"), user_target);
            Entry::update("user.revoke_keys", target, json!({"live_keys": live}), json!({"live_keys": []}))
        }
        (Change::PutTier(tier), Found::Tier(old)) => {
            Entry::update("tier.update", tier_target(tier), tier_view(old), tier_view(tier))
        }
        (Change::PutTier(tier), _) => Entry::create("tier.create", tier_target(tier), tier_view(tier)),
        (Change::DeleteTier(_), Found::Tier(old)) => Entry::delete("tier.delete", tier_target(old), tier_view(old)),
        (Change::PutModel(model), Found::Model(old)) => {
            Entry::update("model.update", model_target(model), model_view(old), model_view(model))
        }
        (Change::PutModel(model), _) => Entry::create("model.create", model_target(model), model_view(model)),
        (Change::DeleteModel(_), Found::Model(old)) => {
            Entry::delete("model.delete", model_target(old), model_view(old))
        }
        (Change::PutGroup(name), Found::Nothing) => {
            Entry::create("group.create", format!("group/{name}"), json!({"name": name}))
        }
        (Change::AddPrice(price), Found::Price(old)) => {
            Entry::update("price.update", price_target(price), price_view(old), price_view(price))
        }
        (Change::AddPrice(price), _) => Entry::create("price.create", price_target(price), price_view(price)),
        (Change::PutSigningKey(key), Found::SigningKey(old)) => {
            Entry::update("signing_key.retire", signing_key_target(key), signing_key_view(old), signing_key_view(key))
        }
        (Change::PutSigningKey(key), _) => {
            Entry::create("signing_key.create", signing_key_target(key), signing_key_view(key))
        }
        (Change::DeleteSigningKey(_), Found::SigningKey(old)) => {
            Entry::delete("signing_key.delete", signing_key_target(old), signing_key_view(old))
        }
        (Change::NoteConfig(config), Found::Config(old)) => {
            Entry::update("config.update", CONFIG.into(), old.clone(), config.clone())
        }
        (Change::NoteConfig(config), _) => Entry::create("config.create", CONFIG.into(), config.clone()),
        (
            Change::DeleteUser(_)
            | Change::RevokeKeysOf { .. }
            | Change::DeleteTier(_)
            | Change::DeleteModel(_)
            | Change::PutGroup(_)
            | Change::DeleteSigningKey(_),
            _,
        ) => return None,
    };
    Some(entry).filter(|entry| entry.before != entry.after)
}

/// The one configuration there is.
pub const CONFIG: &str = "config/server";

impl Entry {
    fn create(action: &'static str, target: String, after: Value) -> Self {
        Self { action, target, before: None, after: Some(after) }
    }

    fn update(action: &'static str, target: String, before: Value, after: Value) -> Self {
        Self { action, target, before: Some(before), after: Some(after) }
    }

    fn delete(action: &'static str, target: String, before: Value) -> Self {
        Self { action, target, before: Some(before), after: None }
    }
}

fn user_verb(old: &UserRecord, new: &UserRecord) -> &'static str {
    match (old.active, new.active) {
        (true, false) => "user.deactivate",
        (false, true) => "user.activate",
        _ if old.token_epoch != new.token_epoch => "user.end_tokens",
        _ => "user.update",
    }
}

fn key_entry(old: &KeyRecord, new: &KeyRecord) -> Entry {
    let (before, mut after) = (key_view(old), key_view(new));
    let is_replaced = old.digest != new.digest;
    if is_replaced {
        // That it changed, never what it is: not even its digest.
        after["secret"] = "replaced".into();
    }
    let verb = match (old.revoked_at_us, new.revoked_at_us) {
        (None, Some(_)) => "key.revoke",
        _ if is_replaced && new.is_bootstrap => "key.replace",
        _ if is_replaced => "key.rotate",
        _ => "key.update",
    };
    Entry::update(verb, format!("key/{}", new.id), before, after)
}

fn user_target(user: &UserRecord) -> String {
    format!("user/{}", user.name)
}

fn tier_target(tier: &TierRecord) -> String {
    format!("tier/{}", tier.name)
}

fn model_target(model: &ModelRecord) -> String {
    format!("model/{}", model.name)
}

fn price_target(price: &PriceRecord) -> String {
    format!("price/{}", price.model)
}

fn moment(us: i64) -> Value {
    Timestamp::from_microsecond(us).map_or(Value::Null, |time| time.to_string().into())
}

fn user_view(user: &UserRecord) -> Value {
    let groups: Vec<Value> =
        user.groups.iter().map(|one| json!({"group": one.group, "source": one.source.as_str()})).collect();
    json!({
        "id": user.id.to_string(), "name": user.name, "issuer": user.issuer, "subject": user.subject,
        "active": user.active, "groups": groups, "token_epoch": user.token_epoch,
    })
}

/// Everything but the digest, and but the last use, which is no change.
fn key_view(key: &KeyRecord) -> Value {
    json!({
        "id": key.id.as_str(), "user": key.user.to_string(), "name": key.name, "description": key.description,
        "labels": key.labels, "models": key.models, "limits": key.limits,
        "limits_set_by": key.terms_by.as_str(), "parent": key.parent.as_ref().map(KeyId::as_str),
        "bootstrap": key.is_bootstrap, "ephemeral": key.is_ephemeral,
        "previous_secret_until": key.previous.map(|previous| moment(previous.until_us)),
        "created_at": moment(key.created_at_us), "expires_at": key.expires_at_us.map(moment),
        "revoked_at": key.revoked_at_us.map(moment),
    })
}

fn signing_key_target(key: &SigningKeyRecord) -> String {
    format!("signing_key/{}", key.id)
}

/// The public half is in the id; the seed is told to nobody.
fn signing_key_view(key: &SigningKeyRecord) -> Value {
    json!({
        "id": key.id, "created_at": moment(key.created_at_us), "retired_at": key.retired_at_us.map(moment),
    })
}

fn tier_view(tier: &TierRecord) -> Value {
    json!({
        "name": tier.name, "display_name": tier.display_name, "description": tier.description, "level": tier.level,
        "groups": tier.groups, "limits": tier.limits, "weight": tier.weight, "origin": tier.origin.as_str(),
        "position": tier.position,
    })
}

fn price_view(record: &PriceRecord) -> Value {
    let price = &record.price;
    json!({
        "version": record.version, "model": record.model, "unit": "pico_usd_per_token",
        "prompt": price.prompt_pico_usd.to_string(), "cached": price.cached_pico_usd.to_string(),
        "completion": price.completion_pico_usd.to_string(), "effective_from": moment(record.effective_from_us),
    })
}

fn model_view(model: &ModelRecord) -> Value {
    json!({
        "name": model.name, "display_name": model.display_name, "source": model.source, "published": model.published,
        "settings": serde_json::from_str::<Value>(&model.settings).unwrap_or_default(),
    })
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;
    use crate::governance::keys;
    use crate::governance::records::{SetBy, UserId};
    use crate::governance::tiers;

    fn key() -> KeyRecord {
        let fresh = keys::mint().expect("randomness");
        KeyRecord {
            id: fresh.id,
            digest: fresh.digest,
            previous: None,
            user: UserId(Uuid::nil()),
            name: "k".into(),
            description: None,
            labels: Default::default(),
            models: None,
            limits: Vec::new(),
            terms_by: SetBy::Owner,
            parent: None,
            is_ephemeral: false,
            is_bootstrap: false,
            created_at_us: 0,
            expires_at_us: None,
            revoked_at_us: None,
            last_used_at_us: None,
        }
    }

    #[test]
    fn a_change_that_changes_nothing_is_no_entry() {
        let tier = tiers::defaults().remove(0);
        assert_eq!(entry(&Change::PutTier(tier.clone()), &Found::Tier(tier)), None);
        let used = KeyRecord { last_used_at_us: Some(5), ..key() };
        let seen = KeyRecord { last_used_at_us: None, ..used.clone() };
        assert_eq!(entry(&Change::PutKey(seen), &Found::Key(used)), None, "being used is no change");
        assert_eq!(entry(&Change::PutGroup("g".into()), &Found::Group), None);
        assert_eq!(entry(&Change::DeleteTier("t".into()), &Found::Nothing), None);
    }

    #[test]
    fn a_tier_is_told_as_it_was_and_as_it_is() {
        let old = tiers::defaults().remove(0);
        let new = TierRecord { limits: Vec::new(), ..old.clone() };
        let told = entry(&Change::PutTier(new), &Found::Tier(old)).expect("told");
        assert_eq!((told.action, &*told.target), ("tier.update", "tier/free"));
        assert_eq!(told.before.expect("before")["limits"][0]["resource"], "requests");
        assert_eq!(told.after.expect("after")["limits"], json!([]));
    }

    #[test]
    fn a_replaced_secret_is_told_without_a_trace_of_either() {
        let old = key();
        let new = KeyRecord { digest: [7; 32], ..old.clone() };
        let told = entry(&Change::PutKey(new.clone()), &Found::Key(old.clone())).expect("told");
        assert_eq!(told.action, "key.rotate");
        assert_eq!(told.after.as_ref().expect("after")["secret"], "replaced");
        let text = format!("{told:?}");
        let hex = |digest: [u8; 32]| digest.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
        for hidden in [hex(old.digest), hex(new.digest)] {
            assert!(!text.contains(&hidden), "{text}");
        }
        let revoked = KeyRecord { revoked_at_us: Some(1), ..old.clone() };
        assert_eq!(entry(&Change::PutKey(revoked), &Found::Key(old)).expect("told").action, "key.revoke");
    }
}
