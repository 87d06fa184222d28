//! Quantities as people write them in a file: `30s`, `250ms`, `4GiB`, `75%`.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A length of time with its unit: `250ms`, `30s`, `5m`, `2h`, `7d`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Span(pub Duration);

/// An amount of memory with its unit: `512MiB`, `4GiB`, `1GB`; a bare number is bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct ByteSize(pub u64);

/// A bound on memory: a fixed amount, or a share of what the machine (or its control group) allows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MemoryBound {
    /// So many bytes.
    Bytes(ByteSize),
    /// So many hundredths of the memory this process may use.
    Percent(u8),
}

/// Why a quantity could not be read.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum UnitError {
    /// Not a length of time.
    #[error("`{0}` is not a duration; write a whole number and a unit: 250ms, 30s, 5m, 2h, 7d")]
    Span(String),
    /// Not an amount of memory.
    #[error("`{0}` is not an amount of memory; write a number and a unit: 512MiB, 4GiB, 1GB")]
    Bytes(String),
    /// A percentage outside 1 to 100.
    #[error("`{0}` is not a share; write 1% to 100%")]
    Percent(String),
}

impl FromStr for Span {
    type Err = UnitError;

    fn from_str(text: &str) -> Result<Self, UnitError> {
        let wrong = || UnitError::Span(text.to_owned());
        let (number, unit) = split_unit(text.trim());
        let number: u64 = number.parse().map_err(|_| wrong())?;
        let ms_each = match unit {
            "ms" => 1,
            "s" => 1000,
            "m" => 60_000,
            "h" => 3_600_000,
            "d" => 86_400_000,
            _ => return Err(wrong()),
        };
        number.checked_mul(ms_each).map(|ms| Self(Duration::from_millis(ms))).ok_or_else(wrong)
    }
}

impl FromStr for ByteSize {
    type Err = UnitError;

    fn from_str(text: &str) -> Result<Self, UnitError> {
        let wrong = || UnitError::Bytes(text.to_owned());
        let text = text.trim();
        let end = text.find(|c: char| !(c.is_ascii_digit() || c == '.')).unwrap_or(text.len());
        let (number, unit) = (&text[..end], text[end..].trim());
        let bytes_each = match unit.to_ascii_lowercase().as_str() {
            "" | "b" => 1,
            "kb" => 1_000,
            "mb" => 1_000_000,
            "gb" => 1_000_000_000,
            "kib" | "k" => 1 << 10,
            "mib" | "m" => 1 << 20,
            "gib" | "g" => 1 << 30,
            "tib" | "t" => 1_u64 << 40,
            _ => return Err(wrong()),
        };
        let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
        let whole: u64 = whole.parse().map_err(|_| wrong())?;
        let mut bytes = whole.checked_mul(bytes_each).ok_or_else(wrong)?;
        if !fraction.is_empty() {
            let scale = 10_u64.checked_pow(u32::try_from(fraction.len()).map_err(|_| wrong())?).ok_or_else(wrong)?;
            let part: u64 = fraction.parse().map_err(|_| wrong())?;
            let part = u128::from(part) * u128::from(bytes_each) / u128::from(scale);
            bytes = bytes.checked_add(u64::try_from(part).map_err(|_| wrong())?).ok_or_else(wrong)?;
        }
        Ok(Self(bytes))
    }
}

impl FromStr for MemoryBound {
    type Err = UnitError;

    fn from_str(text: &str) -> Result<Self, UnitError> {
        let Some(number) = text.trim().strip_suffix('%') else {
            return text.parse().map(Self::Bytes);
        };
        match number.trim().parse::<u8>() {
            Ok(percent @ 1..=100) => Ok(Self::Percent(percent)),
            _ => Err(UnitError::Percent(text.to_owned())),
        }
    }
}

fn split_unit(text: &str) -> (&str, &str) {
    let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    (&text[..end], text[end..].trim())
}

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ms = self.0.as_millis();
        let units = [(86_400_000, "d"), (3_600_000, "h"), (60_000, "m"), (1000, "s")];
        match units.iter().find(|(each, _)| ms > 0 && ms.is_multiple_of(*each)) {
            Some((each, unit)) => write!(f, "{}{unit}", ms / each),
            None => write!(f, "{ms}ms"),
        }
    }
}

impl fmt::Display for ByteSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (shift, unit) in [(40, "TiB"), (30, "GiB"), (20, "MiB"), (10, "KiB")] {
            let each = 1_u64 << shift;
            if self.0 >= each {
                let (whole, rest) = (self.0 / each, self.0 % each);
                // One decimal, rounded down: what is shown is never more than what there is.
                let tenth = u128::from(rest) * 10 / u128::from(each);
                return if rest == 0 { write!(f, "{whole}{unit}") } else { write!(f, "{whole}.{tenth}{unit}") };
            }
        }
        write!(f, "{}B", self.0)
    }
}

impl fmt::Display for MemoryBound {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Bytes(bytes) => bytes.fmt(f),
            Self::Percent(percent) => write!(f, "{percent}%"),
        }
    }
}

/// What a file may hold where a quantity is wanted: text with a unit, or a bare number.
#[derive(Deserialize)]
#[serde(untagged)]
enum TextOrNumber {
    Text(String),
    Number(i64),
}

impl TextOrNumber {
    fn into_text(self) -> String {
        match self {
            Self::Text(text) => text,
            Self::Number(number) => number.to_string(),
        }
    }
}

macro_rules! read_and_write_as_text {
    ($($name:ident),*) => {$(
        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                TextOrNumber::deserialize(deserializer)?.into_text().parse().map_err(D::Error::custom)
            }
        }
        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }
    )*};
}
read_and_write_as_text!(Span, ByteSize, MemoryBound);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_need_a_unit_and_print_as_they_are_read() {
        for text in ["250ms", "30s", "5m", "2h", "7d"] {
            assert_eq!(text.parse::<Span>().unwrap().to_string(), text);
        }
        for wrong in ["", "30", "s", "1.5s", "-1s", "30 sec", "99999999999999999999d"] {
            assert!(wrong.parse::<Span>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn memory_is_binary_or_decimal_as_written() {
        let bytes = |text: &str| text.parse::<ByteSize>().unwrap().0;
        assert_eq!(bytes("4GiB"), 4 << 30);
        assert_eq!(bytes("1.5GiB"), 3 << 29);
        assert_eq!(bytes("1 GB"), 1_000_000_000);
        assert_eq!(bytes("123"), 123);
        assert_eq!(ByteSize(1_610_612_736).to_string(), "1.5GiB");
        for wrong in ["", "GiB", "-1GiB", "1.2.3GiB", "1 parsec", "99999999999TiB"] {
            assert!(wrong.parse::<ByteSize>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_memory_bound_is_an_amount_or_a_share() {
        assert_eq!("75%".parse(), Ok(MemoryBound::Percent(75)));
        assert_eq!("2GiB".parse(), Ok(MemoryBound::Bytes(ByteSize(2 << 30))));
        assert!("0%".parse::<MemoryBound>().is_err());
        assert!("101%".parse::<MemoryBound>().is_err());
    }
}
