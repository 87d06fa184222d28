//! Prompts of a wanted length that differ from the first word on, the same for the same seed.

const WORDS: &[&str] = &[
    "river", "stone", "seven", "paper", "under", "light", "green", "table", "north", "music", "early", "bread",
    "small", "train", "water", "glass", "quiet", "horse", "story", "cloud", "round", "field", "wheel", "sugar",
    "night", "brown", "seed", "gate", "mill", "road", "hand", "milk", "wood", "fire", "wind", "salt", "boat", "lamp",
    "corn", "ring",
];

/// Makes prompts; two with different numbers share no beginning unless `same_prefix` asks for it.
#[derive(Debug, Clone)]
pub(super) struct Prompts {
    pub(super) seed: u64,
    /// Words at the beginning that all prompts share.
    pub(super) same_prefix: usize,
    /// Words that make a prompt of the wanted length, as measured on the server.
    pub(super) words: usize,
}

impl Prompts {
    /// The prompt with this number.
    pub(super) fn prompt(&self, number: u64) -> String {
        let shared = self.same_prefix.min(self.words.saturating_sub(1));
        let mut common = Draws(self.seed);
        let mut own = Draws(self.seed ^ number.wrapping_add(1).wrapping_mul(0xA076_1D64_78BD_642F));
        let mut words: Vec<&str> = (0..shared).map(|_| common.word()).collect();
        // Sixteen random words at the start make an accidental common block impossible in practice.
        words.extend((shared..self.words.max(1)).map(|_| own.word()));
        words.join(" ")
    }
}

/// How many words make `wanted` tokens, given that `few` and `many` words made so many tokens.
pub(super) fn words_for(wanted: u32, few: (usize, u64), many: (usize, u64)) -> usize {
    let tokens_a_word = (many.1.saturating_sub(few.1)) as f64 / (many.0 - few.0) as f64;
    let overhead = few.1 as f64 - tokens_a_word * few.0 as f64;
    let words = (f64::from(wanted) - overhead) / tokens_a_word.max(0.1);
    words.round().max(1.0) as usize
}

/// Splitmix64: enough for varied text, and the same everywhere.
struct Draws(u64);

impl Draws {
    fn word(&mut self) -> &'static str {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^= mixed >> 31;
        WORDS[(mixed % WORDS.len() as u64) as usize]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prompts_differ_from_the_start_and_repeat_with_the_seed() {
        let prompts = Prompts { seed: 1, same_prefix: 0, words: 64 };
        let start = |text: &str| text.split(' ').take(8).collect::<Vec<_>>().join(" ");
        let starts: std::collections::HashSet<String> = (0..500).map(|n| start(&prompts.prompt(n))).collect();
        assert_eq!(starts.len(), 500);
        assert_eq!(prompts.prompt(7), prompts.prompt(7));
        let shared = Prompts { same_prefix: 32, ..prompts };
        assert_eq!(start(&shared.prompt(1)), start(&shared.prompt(2)));
        assert_ne!(shared.prompt(1), shared.prompt(2));
    }

    #[test]
    fn length_is_found_from_two_measurements() {
        // 12 tokens of template and 1.5 tokens a word.
        assert_eq!(words_for(162, (32, 60), (96, 156)), 100);
        assert_eq!(words_for(1, (32, 60), (96, 156)), 1);
    }
}
