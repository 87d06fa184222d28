//! Stop strings found across token borders, with no more text held back than must be.

/// What one pushed piece of text lets out.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Emit {
    /// Text that certainly comes before any stop string.
    pub text: String,
    /// Which stop string was completed; nothing comes after it.
    pub stopped: Option<usize>,
}

/// Watches one choice's text for its stop strings.
///
/// The stop string that is completed first wins; of several completed by the same character the longest.
/// An empty stop string never matches.
#[derive(Debug, Clone)]
pub struct StopMatcher {
    stops: Vec<Stop>,
    /// Text that is the beginning of a stop string so far.
    held: String,
    stopped: Option<usize>,
}

#[derive(Debug, Clone)]
struct Stop {
    index: usize,
    bytes: Vec<u8>,
    /// For each length matched: the longest shorter prefix that is also a suffix (Knuth, Morris, Pratt).
    fallback: Vec<usize>,
    /// How many bytes of it the text now ends with.
    matched: usize,
}

impl StopMatcher {
    /// Watches for `stops`; positions in this list are what [`Emit::stopped`] reports.
    pub fn new(stops: &[String]) -> Self {
        let stops = stops.iter().enumerate().filter(|(_, stop)| !stop.is_empty());
        let stops = stops.map(|(index, stop)| Stop::new(index, stop.as_bytes())).collect();
        Self { stops, held: String::new(), stopped: None }
    }

    /// Takes the next piece of text. After a stop nothing more comes out.
    pub fn push(&mut self, text: &str) -> Emit {
        if self.stopped.is_some() {
            return Emit { text: String::new(), stopped: self.stopped };
        }
        if self.stops.is_empty() {
            return Emit { text: text.to_owned(), stopped: None };
        }
        let before = self.held.len();
        self.held.push_str(text);
        for (offset, &byte) in text.as_bytes().iter().enumerate() {
            if let Some((index, length)) = self.step(byte) {
                self.stopped = Some(index);
                let start = before + offset + 1 - length;
                self.held.truncate(start);
                return Emit { text: std::mem::take(&mut self.held), stopped: self.stopped };
            }
        }
        // INVARIANT: the held-back tail starts with a stop string's first byte, so the cut is between characters.
        let hold = self.stops.iter().map(|stop| stop.matched).max().unwrap_or(0);
        let tail = self.held.split_off(self.held.len() - hold);
        Emit { text: std::mem::replace(&mut self.held, tail), stopped: None }
    }

    /// Ends the text and returns what was held back: no stop string came of it.
    pub fn finish(&mut self) -> String {
        for stop in &mut self.stops {
            stop.matched = 0;
        }
        std::mem::take(&mut self.held)
    }

    /// Which stop string has been completed, if any.
    pub fn stopped(&self) -> Option<usize> {
        self.stopped
    }

    /// Advances every stop string by one byte; index and length of the longest one completed by it.
    fn step(&mut self, byte: u8) -> Option<(usize, usize)> {
        let mut found: Option<(usize, usize)> = None;
        for stop in &mut self.stops {
            if stop.step(byte) && found.is_none_or(|(_, length)| stop.bytes.len() > length) {
                found = Some((stop.index, stop.bytes.len()));
            }
        }
        found
    }
}

impl Stop {
    fn new(index: usize, bytes: &[u8]) -> Self {
        let mut fallback = vec![0; bytes.len() + 1];
        let mut length = 0;
        for position in 1..bytes.len() {
            while length > 0 && bytes[position] != bytes[length] {
                length = fallback[length];
            }
            if bytes[position] == bytes[length] {
                length += 1;
            }
            fallback[position + 1] = length;
        }
        Self { index, bytes: bytes.to_vec(), fallback, matched: 0 }
    }

    /// Takes one byte; `true` when it completes the string.
    fn step(&mut self, byte: u8) -> bool {
        while self.matched > 0 && self.bytes[self.matched] != byte {
            self.matched = self.fallback[self.matched];
        }
        if self.bytes[self.matched] == byte {
            self.matched += 1;
        }
        self.matched == self.bytes.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn strings(stops: &[&str]) -> Vec<String> {
        stops.iter().map(|&stop| stop.to_owned()).collect()
    }

    #[test]
    fn a_stop_string_cut_by_token_borders_is_found_and_left_out() {
        let mut matcher = StopMatcher::new(&strings(&["\n\nUser:", "END"]));
        assert_eq!(matcher.push("Hello\n"), Emit { text: "Hello".into(), stopped: None });
        assert_eq!(matcher.push("\nUs"), Emit { text: String::new(), stopped: None });
        assert_eq!(matcher.push("er: more"), Emit { text: String::new(), stopped: Some(0) });
        assert_eq!(matcher.push("more"), Emit { text: String::new(), stopped: Some(0) });
        assert_eq!(matcher.finish(), "");
    }

    #[test]
    fn a_false_start_comes_out_as_soon_as_it_is_one() {
        let mut matcher = StopMatcher::new(&strings(&["aab"]));
        assert_eq!(matcher.push("aaa").text, "a");
        assert_eq!(matcher.push("c").text, "aac");
        assert_eq!(matcher.push("xaa").text, "x");
        assert_eq!(matcher.finish(), "aa");
    }

    #[test]
    fn of_two_completed_together_the_longer_wins_and_an_empty_one_never_matches() {
        let mut matcher = StopMatcher::new(&strings(&["", "c", "bc"]));
        assert_eq!(matcher.push("abc"), Emit { text: "a".into(), stopped: Some(2) });
    }

    /// Searches the whole text: the smallest end, then the smallest start, then the first in the list.
    fn naive(text: &str, stops: &[String]) -> (String, Option<usize>) {
        let mut best: Option<(usize, usize, usize)> = None;
        for (index, stop) in stops.iter().enumerate().filter(|(_, stop)| !stop.is_empty()) {
            for start in 0..text.len() {
                if text.as_bytes()[start..].starts_with(stop.as_bytes()) {
                    let candidate = (start + stop.len(), start, index);
                    best = Some(best.map_or(candidate, |best| best.min(candidate)));
                }
            }
        }
        best.map_or_else(|| (text.to_owned(), None), |(_, start, index)| (text[..start].to_owned(), Some(index)))
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn any_split_gives_what_a_search_of_the_whole_text_gives(
            pieces in prop::collection::vec("[abé漢]{0,4}", 0..12),
            stops in prop::collection::vec("[abé漢]{0,4}", 0..4),
        ) {
            let whole = pieces.concat();
            let mut matcher = StopMatcher::new(&stops);
            let mut out = String::new();
            let mut stopped = None;
            for piece in &pieces {
                let emit = matcher.push(piece);
                out.push_str(&emit.text);
                stopped = emit.stopped;
                // Minimal: what is held back could still become a stop string.
                prop_assert!(matcher.held.is_empty() || stops.iter().any(|stop| stop.starts_with(&matcher.held)));
            }
            out.push_str(&matcher.finish());
            prop_assert_eq!((out, stopped), naive(&whole, &stops));
        }
    }
}
