//! Which keys to list, in which order, and where the next page begins.

use std::str::FromStr;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

use super::records::{KeyId, KeyRecord, KeyStatus, UserId};

/// What a list of keys is ordered by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum KeySort {
    /// When they were made.
    #[default]
    CreatedAt,
    /// When they end; keys that never do come last.
    ExpiresAt,
    /// When they were last used; keys that never were come first.
    LastUsedAt,
    /// Their names, byte by byte.
    Name,
}

impl KeySort {
    const ALL: [Self; 4] = [Self::CreatedAt, Self::ExpiresAt, Self::LastUsedAt, Self::Name];

    /// The word used in addresses.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::CreatedAt => "created_at",
            Self::ExpiresAt => "expires_at",
            Self::LastUsedAt => "last_used_at",
            Self::Name => "name",
        }
    }
}

impl FromStr for KeySort {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        Self::ALL.into_iter().find(|sort| sort.as_str() == text).ok_or(())
    }
}

/// What the last key of a page is ordered by.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CursorValue {
    /// A moment, in microseconds since the Unix epoch.
    Time(i64),
    /// A name.
    Text(String),
}

/// The last key of a page: where it stands in the order, so that it may be gone when the next page is asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyCursor {
    /// What it is ordered by.
    pub value: CursorValue,
    /// Tells keys with the same value apart.
    pub id: KeyId,
}

impl KeyCursor {
    /// The place of `key` in a list ordered by `sort`.
    pub fn at(key: &KeyRecord, sort: KeySort) -> Self {
        let value = match sort {
            KeySort::CreatedAt => CursorValue::Time(key.created_at_us),
            KeySort::ExpiresAt => CursorValue::Time(key.expires_at_us.unwrap_or(i64::MAX)),
            KeySort::LastUsedAt => CursorValue::Time(key.last_used_at_us.unwrap_or(0)),
            KeySort::Name => CursorValue::Text(key.name.clone()),
        };
        Self { value, id: key.id.clone() }
    }

    /// Text for an address; nobody should look inside.
    pub fn to_text(&self) -> String {
        let (kind, value) = match &self.value {
            CursorValue::Time(us) => ('t', us.to_string()),
            CursorValue::Text(text) => ('s', text.clone()),
        };
        URL_SAFE_NO_PAD.encode(format!("{kind}{}\n{value}", self.id))
    }

    /// Reads back what [`KeyCursor::to_text`] wrote for a list ordered by `sort`.
    pub fn parse(text: &str, sort: KeySort) -> Option<Self> {
        let text = String::from_utf8(URL_SAFE_NO_PAD.decode(text).ok()?).ok()?;
        let (id, value) = text.get(1..)?.split_once('\n')?;
        let value = match (text.as_bytes()[0], sort) {
            (b's', KeySort::Name) => CursorValue::Text(value.to_owned()),
            (b't', KeySort::CreatedAt | KeySort::ExpiresAt | KeySort::LastUsedAt) => {
                CursorValue::Time(value.parse().ok()?)
            }
            _ => return None,
        };
        Some(Self { value, id: KeyId::from(id) })
    }
}

/// Which keys to list; what is empty or absent lets everything pass.
#[derive(Debug, Clone, Default)]
pub struct KeyFilter {
    /// Only of this user.
    pub user: Option<UserId>,
    /// Only with one of these statuses at `now_us`.
    pub statuses: Vec<KeyStatus>,
    /// Only with this in the name, capital or small.
    pub name_contains: Option<String>,
    /// Only with each of these labels, of that value if one is named.
    pub labels: Vec<(String, Option<String>)>,
    /// Only made at or after this moment.
    pub created_from_us: Option<i64>,
    /// Only made before this moment.
    pub created_before_us: Option<i64>,
    /// Ephemeral ones, too.
    pub with_ephemeral: bool,
    /// In which order; newest first unless said otherwise.
    pub sort: KeySort,
    /// Smallest first.
    pub is_ascending: bool,
    /// Only what comes after this place.
    pub after: Option<KeyCursor>,
    /// The moment by which statuses are told.
    pub now_us: i64,
    /// At most this many.
    pub limit: u32,
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_cursor_is_read_back_for_its_order_and_refused_for_another(name in "\\PC{0,20}", us in any::<i64>()) {
            let by_name = KeyCursor { value: CursorValue::Text(name), id: KeyId::from("abc") };
            prop_assert_eq!(KeyCursor::parse(&by_name.to_text(), KeySort::Name), Some(by_name.clone()));
            prop_assert_eq!(KeyCursor::parse(&by_name.to_text(), KeySort::CreatedAt), None);
            let by_time = KeyCursor { value: CursorValue::Time(us), id: KeyId::from("abc") };
            prop_assert_eq!(KeyCursor::parse(&by_time.to_text(), KeySort::ExpiresAt), Some(by_time.clone()));
            prop_assert_eq!(KeyCursor::parse(&by_time.to_text(), KeySort::Name), None);
        }

        #[test]
        fn no_cursor_makes_the_reader_panic(text in "\\PC{0,30}") {
            let _ = KeyCursor::parse(&text, KeySort::Name);
            let _ = KeyCursor::parse(&URL_SAFE_NO_PAD.encode(&text), KeySort::CreatedAt);
        }
    }
}
