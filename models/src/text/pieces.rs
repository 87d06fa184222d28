//! The table of what every token id stands for: its bytes, and whether it is special.

use super::TextError;

/// One past the largest token id that is accepted; the largest vocabularies known have 0.3 million.
pub(super) const MAX_TOKEN_IDS: usize = 4 << 20;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Unassigned,
    Text,
    Special,
}

/// The bytes of all tokens in one block of memory.
#[derive(Debug)]
pub(super) struct Pieces {
    bytes: Vec<u8>,
    /// Where in `bytes` each id's piece ends; it starts where the one before ends.
    ends: Vec<u32>,
    kinds: Vec<Kind>,
}

/// Collects pieces in the order of their ids.
pub(super) struct PiecesBuilder(Pieces);

impl Pieces {
    /// An empty table that is filled id by id.
    pub(super) fn builder() -> PiecesBuilder {
        PiecesBuilder(Self { bytes: Vec::new(), ends: Vec::new(), kinds: Vec::new() })
    }

    /// One past the largest id.
    pub(super) fn len(&self) -> usize {
        self.ends.len()
    }

    /// The bytes that `id` stands for; `None` for an id without a token.
    pub(super) fn bytes(&self, id: u32) -> Option<&[u8]> {
        let index = usize::try_from(id).ok()?;
        if *self.kinds.get(index)? == Kind::Unassigned {
            return None;
        }
        let start = if index == 0 { 0 } else { self.ends[index - 1] };
        self.bytes.get(start as usize..self.ends[index] as usize)
    }

    /// Whether `id` is a control token that ordinary text never shows.
    pub(super) fn is_special(&self, id: u32) -> bool {
        usize::try_from(id).ok().and_then(|index| self.kinds.get(index)) == Some(&Kind::Special)
    }

    /// The length in bytes of the longest token.
    pub(super) fn longest(&self) -> usize {
        let starts = std::iter::once(0).chain(self.ends.iter().copied());
        starts.zip(&self.ends).map(|(start, &end)| (end - start) as usize).max().unwrap_or(0)
    }
}

impl PiecesBuilder {
    /// Adds the token of the next id; `append` writes its bytes.
    ///
    /// # Errors
    /// [`TextError::Encode`] when the vocabulary is larger than any real one.
    pub(super) fn push(&mut self, special: bool, append: impl FnOnce(&mut Vec<u8>)) -> Result<(), TextError> {
        append(&mut self.0.bytes);
        self.end(if special { Kind::Special } else { Kind::Text })
    }

    /// Leaves the next id without a token.
    ///
    /// # Errors
    /// As [`Self::push`].
    pub(super) fn skip(&mut self) -> Result<(), TextError> {
        self.end(Kind::Unassigned)
    }

    fn end(&mut self, kind: Kind) -> Result<(), TextError> {
        let problem = || TextError::Encode { problem: "the vocabulary is larger than 4 GiB".to_owned() };
        self.0.ends.push(u32::try_from(self.0.bytes.len()).map_err(|_| problem())?);
        self.0.kinds.push(kind);
        Ok(())
    }

    /// The finished table.
    pub(super) fn build(self) -> Pieces {
        self.0
    }
}
