//! Whole numbers in files of tiers, read so that what is wrong is said in words of the trade: a bound is told by the rule
//! it breaks, anything else as "a whole number".

use std::fmt;

use serde::de::{Deserialize, Deserializer, Error, Visitor};

/// A whole number of any size that a file can hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Whole(i64);

impl Whole {
    /// The number if it is one of `0..=most`.
    ///
    /// # Errors
    /// The number, as it is written.
    pub(super) fn up_to(self, most: u32) -> Result<u32, i64> {
        u32::try_from(self.0).ok().filter(|number| *number <= most).ok_or(self.0)
    }
}

impl<'de> Deserialize<'de> for Whole {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Reader)
    }
}

struct Reader;

impl Visitor<'_> for Reader {
    type Value = Whole;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a whole number")
    }

    fn visit_i64<E: Error>(self, number: i64) -> Result<Whole, E> {
        Ok(Whole(number))
    }

    fn visit_u64<E: Error>(self, number: u64) -> Result<Whole, E> {
        Ok(Whole(i64::try_from(number).unwrap_or(i64::MAX)))
    }
}
