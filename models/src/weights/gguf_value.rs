//! GGUF metadata values, read from a bounded cursor: no length is believed before it is checked against the file.

use crate::weights::WeightsError;

/// Elements over all arrays of one file. The largest vocabularies in use need a tenth of this.
const MAX_ARRAY_ELEMENTS: u64 = 1 << 24;
/// Longest single string: chat templates are a thousand times smaller.
const MAX_STRING_BYTES: u64 = 1 << 24;
/// Deepest array of arrays.
const MAX_DEPTH: u32 = 4;

/// One metadata value.
#[derive(Debug, Clone, PartialEq)]
pub enum GgufValue {
    /// Any of the unsigned integer types.
    Unsigned(u64),
    /// Any of the signed integer types.
    Signed(i64),
    /// Either float type.
    Float(f64),
    /// A truth value.
    Bool(bool),
    /// UTF-8 text.
    String(String),
    /// Elements of one type.
    Array(GgufArray),
}

/// A metadata array, stored compactly by kind.
#[derive(Debug, Clone, PartialEq)]
pub enum GgufArray {
    /// Unsigned integers.
    Unsigned(Vec<u64>),
    /// Signed integers.
    Signed(Vec<i64>),
    /// Floats.
    Float(Vec<f64>),
    /// Truth values.
    Bool(Vec<bool>),
    /// Texts.
    String(Vec<String>),
    /// Arrays.
    Array(Vec<GgufArray>),
}

impl GgufValue {
    /// The value as a non-negative integer, whatever integer type the writer chose.
    pub fn as_u64(&self) -> Option<u64> {
        match self {
            Self::Unsigned(value) => Some(*value),
            Self::Signed(value) => u64::try_from(*value).ok(),
            _ => None,
        }
    }

    /// The value as a float; integers count.
    pub fn as_f64(&self) -> Option<f64> {
        match self {
            Self::Float(value) => Some(*value),
            Self::Unsigned(value) => Some(*value as f64),
            Self::Signed(value) => Some(*value as f64),
            _ => None,
        }
    }

    /// The value as text.
    pub fn as_str(&self) -> Option<&str> {
        match self {
            Self::String(text) => Some(text),
            _ => None,
        }
    }

    /// The value as a truth value.
    pub fn as_bool(&self) -> Option<bool> {
        match self {
            Self::Bool(value) => Some(*value),
            _ => None,
        }
    }

    /// The texts of an array of texts.
    pub fn as_strings(&self) -> Option<&[String]> {
        match self {
            Self::Array(GgufArray::String(texts)) => Some(texts),
            _ => None,
        }
    }
}

/// Reads little-endian values from the front of a file.
pub(crate) struct Cursor<'a> {
    file: &'a str,
    bytes: &'a [u8],
    at: usize,
    elements_left: u64,
}

impl<'a> Cursor<'a> {
    pub(crate) fn new(file: &'a str, bytes: &'a [u8]) -> Self {
        Self { file, bytes, at: 0, elements_left: MAX_ARRAY_ELEMENTS }
    }

    pub(crate) fn position(&self) -> usize {
        self.at
    }

    pub(crate) fn remaining(&self) -> u64 {
        (self.bytes.len() - self.at) as u64
    }

    pub(crate) fn error(&self, reason: impl Into<String>) -> WeightsError {
        WeightsError::damaged(self.file, format!("{} (at byte {})", reason.into(), self.at))
    }

    pub(crate) fn take(&mut self, count: usize) -> Result<&'a [u8], WeightsError> {
        let end = self.at.checked_add(count).filter(|&end| end <= self.bytes.len());
        let Some(end) = end else {
            return Err(self.error(format!("it ends inside its header, {count} more bytes are announced")));
        };
        let taken = &self.bytes[self.at..end];
        self.at = end;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], WeightsError> {
        Ok(self.take(N)?.try_into().expect("take returns as many bytes as asked for"))
    }

    pub(crate) fn u32(&mut self) -> Result<u32, WeightsError> {
        Ok(u32::from_le_bytes(self.array()?))
    }

    pub(crate) fn u64(&mut self) -> Result<u64, WeightsError> {
        Ok(u64::from_le_bytes(self.array()?))
    }

    pub(crate) fn string(&mut self) -> Result<String, WeightsError> {
        let length = self.u64()?;
        if length > MAX_STRING_BYTES {
            return Err(self.error(format!("a string of {length} bytes is announced")));
        }
        let bytes = self.take(length as usize)?;
        match std::str::from_utf8(bytes) {
            Ok(text) => Ok(text.to_owned()),
            // Tokens of byte-fallback vocabularies are sometimes written as raw bytes; losing one is not fatal.
            Err(_) => Ok(String::from_utf8_lossy(bytes).into_owned()),
        }
    }

    /// Reads a value whose type number comes first.
    pub(crate) fn value(&mut self) -> Result<GgufValue, WeightsError> {
        let kind = self.u32()?;
        Ok(match kind {
            0 | 2 | 4 | 10 => GgufValue::Unsigned(self.unsigned(kind)?),
            1 | 3 | 5 | 11 => GgufValue::Signed(self.signed(kind)?),
            6 | 12 => GgufValue::Float(self.float(kind)?),
            7 => GgufValue::Bool(self.bool()?),
            8 => GgufValue::String(self.string()?),
            9 => GgufValue::Array(self.array_value(MAX_DEPTH)?),
            _ => return Err(self.error(format!("metadata type {kind} is unknown"))),
        })
    }

    fn unsigned(&mut self, kind: u32) -> Result<u64, WeightsError> {
        Ok(match kind {
            0 => u64::from(u8::from_le_bytes(self.array()?)),
            2 => u64::from(u16::from_le_bytes(self.array()?)),
            4 => u64::from(self.u32()?),
            _ => self.u64()?,
        })
    }

    fn signed(&mut self, kind: u32) -> Result<i64, WeightsError> {
        Ok(match kind {
            1 => i64::from(i8::from_le_bytes(self.array()?)),
            3 => i64::from(i16::from_le_bytes(self.array()?)),
            5 => i64::from(i32::from_le_bytes(self.array()?)),
            _ => i64::from_le_bytes(self.array()?),
        })
    }

    fn float(&mut self, kind: u32) -> Result<f64, WeightsError> {
        Ok(match kind {
            6 => f64::from(f32::from_le_bytes(self.array()?)),
            _ => f64::from_le_bytes(self.array()?),
        })
    }

    fn bool(&mut self) -> Result<bool, WeightsError> {
        match self.take(1)?[0] {
            0 => Ok(false),
            1 => Ok(true),
            other => Err(self.error(format!("a truth value is {other}"))),
        }
    }

    fn array_value(&mut self, depth: u32) -> Result<GgufArray, WeightsError> {
        let kind = self.u32()?;
        let count = self.u64()?;
        let smallest = match kind {
            0 | 1 | 7 => 1,
            2 | 3 => 2,
            4..=6 => 4,
            9 => 12,
            8 | 10..=12 => 8,
            _ => return Err(self.error(format!("array element type {kind} is unknown"))),
        };
        let fits = count.checked_mul(smallest).is_some_and(|bytes| bytes <= self.remaining());
        if !fits || count > self.elements_left {
            return Err(self.error(format!("an array of {count} elements is announced")));
        }
        self.elements_left -= count;
        let count = count as usize;
        Ok(match kind {
            0 | 2 | 4 | 10 => GgufArray::Unsigned(self.repeat(count, |cursor| cursor.unsigned(kind))?),
            1 | 3 | 5 | 11 => GgufArray::Signed(self.repeat(count, |cursor| cursor.signed(kind))?),
            6 | 12 => GgufArray::Float(self.repeat(count, |cursor| cursor.float(kind))?),
            7 => GgufArray::Bool(self.repeat(count, Self::bool)?),
            8 => GgufArray::String(self.repeat(count, Self::string)?),
            _ if depth == 0 => return Err(self.error("arrays are nested too deeply")),
            _ => GgufArray::Array(self.repeat(count, |cursor| cursor.array_value(depth - 1))?),
        })
    }

    fn repeat<T>(
        &mut self,
        count: usize,
        read: impl Fn(&mut Self) -> Result<T, WeightsError>,
    ) -> Result<Vec<T>, WeightsError> {
        // `count` has been checked against the bytes that are left.
        let mut values = Vec::with_capacity(count);
        for _ in 0..count {
            values.push(read(self)?);
        }
        Ok(values)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_array_longer_than_the_file_is_refused_before_anything_is_allocated() {
        for (kind, count) in [(8_u32, u64::MAX), (4, u64::MAX / 4 + 2), (0, 1 << 40), (9, 1 << 60), (0, 1 << 24)] {
            let bytes = [9_u32.to_le_bytes().as_slice(), &kind.to_le_bytes(), &count.to_le_bytes(), &[0; 64]].concat();
            let message = Cursor::new("x.gguf", &bytes).value().unwrap_err().to_string();
            assert!(message.contains("`x.gguf`") && message.contains("announced"), "{message}");
        }
    }

    #[test]
    fn arrays_inside_arrays_end_somewhere() {
        let mut bytes = 9_u32.to_le_bytes().to_vec();
        for _ in 0..20 {
            bytes.extend(9_u32.to_le_bytes());
            bytes.extend(1_u64.to_le_bytes());
        }
        bytes.extend([0; 100]);
        let message = Cursor::new("x.gguf", &bytes).value().unwrap_err().to_string();
        assert!(message.contains("nested too deeply"), "{message}");
    }
}
