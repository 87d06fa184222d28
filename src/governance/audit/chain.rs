//! The rows of the audit log, each sealed to the one before: a row that is changed, removed or put in between shows.
//!
//! The chain proves that nobody changed a part of it. Who can write the whole file could make a whole new chain, or cut its
//! end off: against that, keep the head (number and hash) that verification prints at another place and give it next time.

use std::str::FromStr;

use serde_json::Value;
use sha2::{Digest, Sha256};

use super::author::Author;
use super::entry::Entry;
use crate::governance::records::KeyId;
use crate::telemetry::redact;

/// What the first row follows.
pub const GENESIS: &str = "0000000000000000000000000000000000000000000000000000000000000000";

/// Separates these hashes from all others.
const DOMAIN: &str = "millgate audit 1";

/// One row as it is stored. Texts, so that what was tampered with can still be read and reported.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AuditRow {
    /// 1, 2, 3, without gaps.
    pub sequence: i64,
    /// Microseconds since the Unix epoch.
    pub at_us: i64,
    /// The author's user id; `None`: the server or the operator of its data directory.
    pub actor_id: Option<String>,
    /// The author's name at that time.
    pub actor: String,
    /// The key they came with.
    pub key: Option<String>,
    /// The address they came from.
    pub source: Option<String>,
    /// Thing and verb: `tier.update`.
    pub action: String,
    /// Kind and name: `tier/free`.
    pub target: String,
    /// JSON; `None`: it did not exist.
    pub before: Option<String>,
    /// JSON; `None`: it is gone.
    pub after: Option<String>,
    /// The hash of the row before.
    pub previous: String,
    /// Over all of the above.
    pub hash: String,
}

impl AuditRow {
    /// The row that follows `head`.
    pub fn seal(head: &Head, at_us: i64, author: &Author, entry: &Entry) -> Self {
        // What people wrote into names and descriptions may be a credential; here it would stay forever.
        let text = |value: &Option<Value>| value.as_ref().map(|value| redact(&value.to_string()).into_owned());
        let mut row = Self {
            sequence: head.sequence + 1,
            at_us,
            actor_id: author.user.map(|user| user.to_string()),
            actor: author.name.clone(),
            key: author.key.as_ref().map(KeyId::to_string),
            source: author.address.map(|address| address.to_string()),
            action: entry.action.into(),
            target: redact(&entry.target).into_owned(),
            before: text(&entry.before),
            after: text(&entry.after),
            previous: head.hash.clone(),
            hash: String::new(),
        };
        row.hash = row.digest();
        row
    }

    /// The hash that the row should have: SHA-256 over a JSON array of its fields, which is written in one way only.
    pub fn digest(&self) -> String {
        let fields = serde_json::json!([
            DOMAIN,
            self.previous,
            self.sequence,
            self.at_us,
            self.actor_id,
            self.actor,
            self.key,
            self.source,
            self.action,
            self.target,
            self.before,
            self.after,
        ]);
        Sha256::digest(fields.to_string()).iter().map(|byte| format!("{byte:02x}")).collect()
    }
}

/// The newest row, as far as a chain was followed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Head {
    /// Its number; 0: there is no row yet.
    pub sequence: i64,
    /// Its hash.
    pub hash: String,
}

impl Default for Head {
    fn default() -> Self {
        Self { sequence: 0, hash: GENESIS.into() }
    }
}

impl std::fmt::Display for Head {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}:{}", self.sequence, self.hash)
    }
}

impl FromStr for Head {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        const SHAPE: &str =
            "a head is the number of a row, a colon and its 64 hexadecimal digits, as verification prints it";
        let (sequence, hash) = text.split_once(':').ok_or(SHAPE)?;
        let sequence = sequence.parse().map_err(|_| SHAPE)?;
        let is_hash = hash.len() == 64 && hash.bytes().all(|byte| byte.is_ascii_hexdigit());
        if !is_hash || sequence < 0 {
            return Err(SHAPE);
        }
        Ok(Self { sequence, hash: hash.to_ascii_lowercase() })
    }
}

/// The first row that does not hold.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("row {sequence}: {what}")]
pub struct Broken {
    /// Its number.
    pub sequence: i64,
    /// What is wrong with it.
    pub what: &'static str,
}

/// Follows a chain from its beginning, row by row.
#[derive(Debug, Default)]
pub struct Verification {
    head: Head,
    noted: Option<Head>,
}

impl Verification {
    /// A verification that also checks that `noted`, the head of an earlier one, is still part of the chain.
    pub fn against(noted: Option<Head>) -> Self {
        Self { head: Head::default(), noted }
    }

    /// How far the chain was followed.
    pub fn head(&self) -> &Head {
        &self.head
    }

    /// Takes the next row.
    ///
    /// # Errors
    /// [`Broken`]: nothing after it can be trusted.
    pub fn take(&mut self, row: &AuditRow) -> Result<(), Broken> {
        let sequence = self.head.sequence + 1;
        let broken = |what| Err(Broken { sequence, what });
        if row.sequence != sequence {
            return broken("is missing");
        }
        if row.previous != self.head.hash {
            return broken("does not follow the row before it");
        }
        if row.hash != row.digest() {
            return broken("was changed: its hash is another one");
        }
        self.head = Head { sequence, hash: row.hash.clone() };
        match &self.noted {
            Some(noted) if noted.sequence == sequence && noted.hash != row.hash => {
                broken("is not the one that was noted: the log was written anew")
            }
            _ => Ok(()),
        }
    }

    /// The head of the whole chain.
    ///
    /// # Errors
    /// [`Broken`] when the log ends before the noted head.
    pub fn finish(self) -> Result<Head, Broken> {
        match self.noted {
            Some(noted) if noted.sequence > self.head.sequence => {
                Err(Broken { sequence: self.head.sequence + 1, what: "is missing: the end of the log was cut off" })
            }
            _ => Ok(self.head),
        }
    }
}

/// Which rows to list; newest first.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct AuditFilter {
    /// Only by this author: a name, a user id or a key id.
    pub actor: Option<String>,
    /// Only this action, or all of a thing: `tier.update`, `tier`.
    pub action: Option<String>,
    /// Only about this, or all of a kind: `tier/free`, `tier`.
    pub target: Option<String>,
    /// Microseconds since the Unix epoch, inclusive.
    pub start_us: Option<i64>,
    /// The first instant that is not included.
    pub end_us: Option<i64>,
    /// Only rows before this one (the cursor of the previous page).
    pub below: Option<i64>,
    /// At most this many.
    pub limit: u32,
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn chain(length: i64) -> Vec<AuditRow> {
        let mut head = Head::default();
        let row = |at_us| {
            let entry = Entry {
                action: "tier.create",
                target: format!("tier/{at_us}"),
                before: None,
                after: Some(json!(at_us)),
            };
            let row = AuditRow::seal(&head, at_us, &Author::server(), &entry);
            head = Head { sequence: row.sequence, hash: row.hash.clone() };
            row
        };
        (0..length).map(row).collect()
    }

    fn verify(rows: &[AuditRow], noted: Option<Head>) -> Result<Head, Broken> {
        let mut verification = Verification::against(noted);
        rows.iter().try_for_each(|row| verification.take(row))?;
        verification.finish()
    }

    #[test]
    fn every_kind_of_tampering_is_found_at_its_row() {
        let rows = chain(5);
        let head = verify(&rows, None).expect("whole");
        assert_eq!(head.sequence, 5);
        let tampered = |change: fn(&mut Vec<AuditRow>)| {
            let mut rows = rows.clone();
            change(&mut rows);
            verify(&rows, None).expect_err("found").sequence
        };
        assert_eq!(tampered(|rows| rows[2].after = Some("9".into())), 3);
        assert_eq!(tampered(|rows| rows[2].actor = "nobody".into()), 3);
        assert_eq!(tampered(|rows| rows[2].at_us += 1), 3);
        assert_eq!(tampered(|rows| drop(rows.remove(1))), 2);
        assert_eq!(tampered(|rows| rows.swap(3, 4)), 4);
        assert_eq!(
            tampered(|rows| {
                rows[2].after = Some("9".into());
                rows[2].hash = rows[2].digest();
            }),
            4,
            "a row sealed anew breaks with its successor"
        );
    }

    #[test]
    fn a_noted_head_shows_what_the_chain_alone_cannot() {
        let rows = chain(5);
        let head = verify(&rows, None).expect("whole");
        assert_eq!(verify(&rows[..4], Some(head.clone())).expect_err("cut").sequence, 5);
        assert!(
            verify(&rows, Some(verify(&rows[..2], None).expect("whole"))).is_ok(),
            "an older head stays part of it"
        );
        let other = Head { sequence: 2, hash: GENESIS.into() };
        assert_eq!(verify(&rows, Some(other)).expect_err("written anew").sequence, 2);
        assert_eq!(head.to_string().parse(), Ok(head));
        assert!("5".parse::<Head>().is_err() && "x:y".parse::<Head>().is_err());
    }

    #[test]
    fn the_hash_of_a_row_is_fixed_so_that_others_can_check_it() {
        // SHA-256 of the JSON array of all fields, as docs/operations.md describes it.
        let row = chain(1).remove(0);
        let text =
            format!(r#"["millgate audit 1","{GENESIS}",1,0,null,"server",null,null,"tier.create","tier/0",null,"0"]"#);
        let digest: String = Sha256::digest(text).iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(row.hash, digest);
    }
}
