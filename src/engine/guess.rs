//! Guesses what a sequence says next from its own text: what followed the last time that it said the same.

/// Last tokens that must have come up before: with fewer, chance repeats them.
const MIN_MATCH: usize = 3;
/// A longer agreement counts as one of this length.
const MAX_MATCH: usize = 32;
/// Earlier places looked at for the longest agreement.
const MAX_PLACES: usize = 8;
/// Tokens entered in one go, so that a long prompt holds up no step.
const MAX_ENTERED: usize = 2048;
/// Share of the past that each new token replaces in how far guesses are trusted.
const FRESHNESS: f64 = 0.1;

/// Where each run of [`MIN_MATCH`] tokens of a text ended last. A few operations for each token and question, whatever
/// the length of the text.
#[derive(Debug, Clone, Default)]
struct Index {
    /// By hash of a run: where one ended last, as the number of tokens up to there; 0 for nowhere.
    last: Vec<u32>,
    /// By the same number: where a run with the same hash ended before.
    before: Vec<u32>,
}

/// A place where the text said what it says at its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Place {
    /// Tokens up to there.
    end: usize,
    /// Last tokens that agree.
    agreement: usize,
}

impl Index {
    /// Where the end of `text` came up before with the longest agreement; the latest of several.
    fn find(&mut self, text: &[u32]) -> Option<Place> {
        self.enter(text);
        if text.len() < MIN_MATCH {
            return None;
        }
        let mut end = self.last[self.bucket(text, text.len())];
        let mut best: Option<Place> = None;
        for _ in 0..MAX_PLACES {
            if end == 0 {
                break;
            }
            let (now, then) = (text.iter().rev(), text[..end as usize].iter().rev());
            let agreement = now.zip(then).take(MAX_MATCH).take_while(|(now, then)| now == then).count();
            if agreement >= MIN_MATCH && best.is_none_or(|best| agreement > best.agreement) {
                best = Some(Place { end: end as usize, agreement });
            }
            end = self.before[end as usize];
        }
        best
    }

    /// Takes in the runs that end inside `text`, not the one at its end: nothing has followed that.
    fn enter(&mut self, text: &[u32]) {
        if text.len() > self.last.len() {
            // The buckets double, so all tokens together are entered twice at most.
            self.last = vec![0; (2 * text.len()).next_power_of_two()];
            self.before.clear();
        }
        let until = text.len().min(self.before.len() + MAX_ENTERED);
        for end in self.before.len()..until {
            if end < MIN_MATCH {
                self.before.push(0);
                continue;
            }
            let bucket = self.bucket(text, end);
            let end = u32::try_from(end).expect("positions fit the context window");
            self.before.push(std::mem::replace(&mut self.last[bucket], end));
        }
    }

    fn bucket(&self, text: &[u32], end: usize) -> usize {
        let run = &text[end - MIN_MATCH..end];
        let hash = run
            .iter()
            .fold(0_u64, |hash, &token| (hash ^ u64::from(token)).wrapping_mul(0x9E37_79B9_7F4A_7C15).rotate_left(29));
        (hash as usize) & (self.last.len() - 1)
    }
}

/// How often guesses came true, by the length of the agreement that they rest on.
#[derive(Debug, Clone)]
struct Trust([f64; 4]);

impl Trust {
    fn class(agreement: usize) -> usize {
        match agreement {
            ..=3 => 0,
            4..=7 => 1,
            8..=15 => 2,
            _ => 3,
        }
    }

    fn of(&self, agreement: usize) -> f64 {
        self.0[Self::class(agreement)]
    }

    fn learn(&mut self, agreement: usize, came_true: bool) {
        let trust = &mut self.0[Self::class(agreement)];
        *trust += FRESHNESS * (f64::from(u8::from(came_true)) - *trust);
    }
}

impl Default for Trust {
    /// What text in general does, until this one has shown what it does.
    fn default() -> Self {
        Self([0.3, 0.5, 0.7, 0.9])
    }
}

/// The guesses about one sequence.
///
/// They are made at every step and held against what was said, also where none is worth computing: so it is known what
/// they are worth before anything is spent on them.
#[derive(Debug, Clone, Default)]
pub(crate) struct Guesser {
    index: Index,
    trust: Trust,
    tokens: Vec<u32>,
    /// Tokens of the sequence when they were guessed, and the agreement that the first rests on.
    made_at: usize,
    agreement: usize,
}

impl Guesser {
    /// Learns from what became of the last guesses and makes at most `most` about what follows `text`.
    pub(crate) fn guess(&mut self, text: &[u32], most: usize) {
        self.learn(text);
        self.tokens.clear();
        self.made_at = text.len();
        let Some(place) = self.index.find(text) else { return };
        self.agreement = place.agreement;
        for at in place.end..place.end + most {
            // A text that repeats itself at once goes on with its own continuation.
            let token = text.get(at).copied().unwrap_or_else(|| self.tokens[at - text.len()]);
            self.tokens.push(token);
        }
    }

    /// The last guesses, the nearest first.
    pub(crate) fn tokens(&self) -> &[u32] {
        &self.tokens
    }

    /// How likely the first `count` of them come true together.
    pub(crate) fn odds(&self, count: usize) -> f64 {
        (0..count).map(|at| self.trust.of(self.agreement + at)).product()
    }

    fn learn(&mut self, text: &[u32]) {
        for (at, (guess, said)) in self.tokens.iter().zip(text.iter().skip(self.made_at)).enumerate() {
            self.trust.learn(self.agreement + at, guess == said);
            if guess != said {
                break;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// By definition: the longest agreement with one of the latest ends in the same bucket.
    fn longest(index: &Index, text: &[u32]) -> Option<usize> {
        let bucket = index.bucket(text, text.len());
        let ends = (MIN_MATCH..text.len()).rev().filter(|&end| index.bucket(text, end) == bucket);
        let agreement = |end: usize| {
            text.iter()
                .rev()
                .zip(text[..end].iter().rev())
                .take(MAX_MATCH)
                .take_while(|(now, then)| now == then)
                .count()
        };
        ends.take(MAX_PLACES).map(agreement).filter(|&longest| longest >= MIN_MATCH).max()
    }

    #[test]
    fn what_followed_the_longest_agreement_is_guessed_and_of_equals_the_latest() {
        let mut guesser = Guesser::default();
        guesser.guess(&[1, 2, 3, 4, 5, 9, 2, 3, 4, 7, 8, 1, 2, 3, 4], 3);
        assert_eq!(guesser.tokens(), [5, 9, 2]);
        guesser.guess(&[1, 2, 3, 4, 5, 9, 2, 3, 4, 7, 8, 1, 2, 3, 4, 6, 2, 3, 4], 2);
        assert_eq!(guesser.tokens(), [6, 2]);
        guesser.guess(&[1, 2, 3, 4, 5, 9, 2, 3, 4, 7, 8, 1, 2, 3, 4, 6, 2, 3, 4, 5], 2);
        assert_eq!(guesser.tokens(), [9, 2]);
    }

    #[test]
    fn a_text_that_repeats_itself_is_continued_beyond_its_end() {
        let mut guesser = Guesser::default();
        guesser.guess(&[7, 7, 7, 7], 5);
        assert_eq!(guesser.tokens(), [7; 5]);
        let mut guesser = Guesser::default();
        guesser.guess(&[1, 2, 1, 2, 1], 5);
        assert_eq!(guesser.tokens(), [2, 1, 2, 1, 2]);
    }

    #[test]
    fn guesses_that_fail_lose_trust_although_none_was_computed_and_win_it_back() {
        let mut guesser = Guesser::default();
        // Every three tokens come up again, and something else follows each time.
        let mut text: Vec<u32> = Vec::new();
        for round in 0..40 {
            text.extend([1, 2, 3]);
            guesser.guess(&text, 4);
            text.push(100 + round);
            guesser.guess(&text, 4);
        }
        text.extend([1, 2, 3]);
        guesser.guess(&text, 4);
        assert!(guesser.odds(1) < 0.05, "{}", guesser.odds(1));
        for _ in 0..40 {
            text.extend([1, 2, 3, 4]);
            guesser.guess(&text, 4);
        }
        assert!(guesser.odds(4) > 0.8, "{}", guesser.odds(4));
        assert!(guesser.odds(1) >= guesser.odds(2) && guesser.odds(0) == 1.0);
    }

    #[test]
    fn a_long_prompt_is_entered_piece_by_piece() {
        let text: Vec<u32> = (0..3 * MAX_ENTERED as u32).chain([5, 6, 7]).collect();
        let mut guesser = Guesser::default();
        guesser.guess(&text, 1);
        assert!(guesser.index.before.len() <= MAX_ENTERED);
        assert_eq!(guesser.tokens(), [8], "the beginning is known at once");
        for _ in 0..3 {
            guesser.guess(&text, 1);
        }
        assert_eq!(guesser.index.before.len(), text.len());
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn however_a_text_grows_the_place_with_the_longest_agreement_is_found(
            text in prop::collection::vec(0_u32..4, MIN_MATCH..300),
            stride in 1_usize..9,
        ) {
            let mut index = Index::default();
            for len in (MIN_MATCH..=text.len()).step_by(stride) {
                let text = &text[..len];
                let place = index.find(text);
                prop_assert_eq!(place.map(|place| place.agreement), longest(&index, text));
                if let Some(place) = place {
                    prop_assert!(place.end < len);
                    prop_assert_eq!(&text[place.end - place.agreement..place.end], &text[len - place.agreement..]);
                }
            }
        }
    }
}
