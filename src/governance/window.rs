//! The strict sliding window: never more than the amount in ANY interval of its length, refunds exact, integers only.
//!
//! The length is cut into sixty sub-windows ("grains"). Counted are the current one and those that began within one length
//! before it, so a charge is forgotten at most one grain late and never early. `DESIGN §6` gives the argument; the property
//! test below is the brute-force check.

use std::collections::VecDeque;

/// Sub-windows a length is cut into.
pub const PARTS: i64 = 60;

/// Where a charge was counted; handed back to refund it.
pub type Ticket = i64;

/// Why a charge was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wait {
    /// It passes after exactly this many microseconds if nothing else is charged meanwhile.
    After(i64),
    /// It is larger than the whole amount.
    Never,
}

#[derive(Debug, Clone, Copy)]
struct Grain {
    index: i64,
    charged: u64,
    held: u64,
}

/// Usage of one counter over the last `length`; the amount is an argument, so editing a limit needs no conversion.
#[derive(Debug, Clone)]
pub struct SlidingWindow {
    grain_us: i64,
    keep: i64,
    grains: VecDeque<Grain>,
    charged: u64,
    held: u64,
}

impl SlidingWindow {
    /// An empty window.
    ///
    /// # Units
    /// `length_us`: microseconds, at least 1 (smaller values count as 1).
    pub fn new(length_us: i64) -> Self {
        let length_us = length_us.max(1);
        let grain_us = ceil_div(length_us, PARTS);
        Self { grain_us, keep: ceil_div(length_us, grain_us), grains: VecDeque::new(), charged: 0, held: 0 }
    }

    /// Drops what has left the window; called by every other operation, harmless to repeat.
    pub fn forget(&mut self, now_us: i64) {
        let first = self.index(now_us) - self.keep;
        while let Some(oldest) = self.grains.front() {
            if oldest.index >= first {
                break;
            }
            self.charged -= oldest.charged;
            self.held -= oldest.held;
            self.grains.pop_front();
        }
    }

    /// Everything counted now, reservations included.
    pub fn charged(&self) -> u64 {
        self.charged
    }

    /// The part of [`SlidingWindow::charged`] that is reserved and not settled yet.
    pub fn held(&self) -> u64 {
        self.held
    }

    /// True when nothing is counted any more.
    pub fn is_empty(&self) -> bool {
        self.grains.is_empty()
    }

    /// Checks a charge without making it.
    ///
    /// # Errors
    /// [`Wait`] tells when it would pass.
    pub fn check(&mut self, need: u64, amount: u64, now_us: i64) -> Result<(), Wait> {
        if need > amount {
            return Err(Wait::Never);
        }
        self.forget(now_us);
        if self.charged <= amount - need {
            return Ok(());
        }
        let mut left = self.charged;
        for grain in &self.grains {
            left -= grain.charged;
            if left <= amount - need {
                return Err(Wait::After(self.leaves_at(grain.index) - now_us));
            }
        }
        // Everything gone and still no room cannot be: `need <= amount`.
        Err(Wait::Never)
    }

    /// Counts `need` at `now_us` as held until settled or released by [`SlidingWindow::settle`].
    pub fn hold(&mut self, need: u64, now_us: i64) -> Ticket {
        self.add(need, need, now_us)
    }

    /// Counts `need` at `now_us` as used for good.
    pub fn charge(&mut self, need: u64, now_us: i64) -> Ticket {
        self.add(need, 0, now_us)
    }

    fn add(&mut self, charged: u64, held: u64, now_us: i64) -> Ticket {
        self.forget(now_us);
        self.charged += charged;
        self.held += held;
        // A clock that went back must not break the order; the charge then counts a little longer, never shorter.
        let index = self.index(now_us);
        match self.grains.back_mut() {
            Some(last) if last.index >= index => {
                last.charged += charged;
                last.held += held;
                last.index
            }
            _ => {
                self.grains.push_back(Grain { index, charged, held });
                index
            }
        }
    }

    /// Ends a hold: of `reserved`, `used` stays counted and the rest is given back, if it is still counted at all.
    pub fn settle(&mut self, ticket: Ticket, reserved: u64, used: u64) {
        let unused = reserved.saturating_sub(used);
        if let Ok(at) = self.grains.binary_search_by_key(&ticket, |grain| grain.index) {
            let grain = &mut self.grains[at];
            let (back, released) = (unused.min(grain.charged), reserved.min(grain.held));
            grain.charged -= back;
            grain.held -= released;
            self.charged -= back;
            self.held -= released;
        }
    }

    /// Puts back a charge made at `at_us`, in any order, when counters are rebuilt at start.
    pub fn restore(&mut self, used: u64, at_us: i64) {
        let index = self.index(at_us);
        self.charged += used;
        match self.grains.binary_search_by_key(&index, |grain| grain.index) {
            Ok(at) => self.grains[at].charged += used,
            Err(at) => self.grains.insert(at, Grain { index, charged: used, held: 0 }),
        }
    }

    /// When the newest charge leaves and the window is whole again; `None` when it is whole now.
    pub fn whole_again_us(&self) -> Option<i64> {
        // What was given back in full counts no more, although its sub-window is still kept.
        self.grains.iter().rev().find(|grain| grain.charged > 0).map(|grain| self.leaves_at(grain.index))
    }

    fn index(&self, now_us: i64) -> i64 {
        now_us.div_euclid(self.grain_us)
    }

    fn leaves_at(&self, index: i64) -> i64 {
        (index + self.keep + 1) * self.grain_us
    }
}

fn ceil_div(a: i64, b: i64) -> i64 {
    (a + b - 1) / b
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[derive(Debug, Clone)]
    enum Step {
        Charge { pause: i64, need: u64 },
        Settle { pause: i64, pick: usize, used_permille: u64 },
    }

    fn step(amount: u64, length_us: i64) -> impl Strategy<Value = Step> {
        let pause = prop_oneof![
            Just(0),
            Just(1),
            Just(length_us / 100),
            Just(length_us / 9),
            0..=length_us / 4 + 1,
            Just(length_us),
        ];
        let need = prop_oneof![3 => 1..=amount / 5 + 2, 1 => 1..=amount];
        prop_oneof![
            3 => (pause.clone(), need).prop_map(|(pause, need)| Step::Charge { pause, need }),
            2 => (pause, any::<usize>(), 0..=1000u64)
                .prop_map(|(pause, pick, used_permille)| Step::Settle { pause, pick, used_permille }),
        ]
    }

    fn history() -> impl Strategy<Value = (u64, i64, i64, Vec<Step>)> {
        prop_oneof![
            Just((100u64, 60_000_000i64)),
            Just((7, 1_000_000)),
            Just((1000, 59_999_983)),
            Just((3, 61)),
            (1..500u64, 1..200_000_000i64),
        ]
        .prop_flat_map(|(amount, length)| {
            (Just(amount), Just(length), 0..1_000_000_000_000i64, prop::collection::vec(step(amount, length), 1..200))
        })
    }

    /// Refused one microsecond before, admitted exactly at it.
    fn assert_retry_is_exact(window: &SlidingWindow, need: u64, amount: u64, now: i64, wait: i64) {
        assert!(wait > 0);
        assert!(window.clone().check(need, amount, now + wait - 1).is_err(), "admitted too early");
        assert!(window.clone().check(need, amount, now + wait).is_ok(), "refused at retry_after");
    }

    fn assert_no_interval_over(log: &[(i64, u64)], amount: u64, length: i64) {
        for (i, (start, _)) in log.iter().enumerate() {
            let sum: u64 = log[i..].iter().take_while(|(at, _)| *at < start + length).map(|(_, used)| used).sum();
            assert!(sum <= amount, "{sum} of {amount} within {length} us from {start}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(200))]
        #[test]
        fn no_interval_of_the_length_exceeds_the_amount_and_retry_after_is_exact((amount, length, start, steps) in history()) {
            let mut window = SlidingWindow::new(length);
            let mut now = start;
            let mut log: Vec<(i64, u64)> = Vec::new();
            let mut held: Vec<(Ticket, u64, usize)> = Vec::new();
            for step in steps {
                match step {
                    Step::Charge { pause, need } => {
                        now += pause;
                        match window.check(need, amount, now) {
                            Ok(()) => {
                                held.push((window.hold(need, now), need, log.len()));
                                log.push((now, need));
                            }
                            Err(Wait::After(wait)) => assert_retry_is_exact(&window, need, amount, now, wait),
                            Err(Wait::Never) => prop_assert!(need > amount),
                        }
                    }
                    Step::Settle { pause, pick, used_permille } => {
                        now += pause;
                        if held.is_empty() { continue; }
                        let (ticket, need, at) = held.swap_remove(pick % held.len());
                        let used = need * used_permille / 1000;
                        window.settle(ticket, need, used);
                        log[at].1 = used;
                    }
                }
            }
            assert_no_interval_over(&log, amount, length);
            // Refunds are exact: what is still counted is what the log says about the grains still kept.
            window.forget(now);
            let first = (now.div_euclid(window.grain_us) - window.keep) * window.grain_us;
            let counted: u64 = log.iter().filter(|(at, _)| *at >= first).map(|(_, used)| used).sum();
            prop_assert_eq!(window.charged(), counted);
            let open: u64 = held.iter().filter(|(_, _, i)| log[*i].0 >= first).map(|(_, need, _)| need).sum();
            prop_assert_eq!(window.held(), open);
        }
    }

    #[test]
    fn a_request_larger_than_the_amount_is_told_that_it_never_fits() {
        assert_eq!(SlidingWindow::new(60_000_000).check(101, 100, 0), Err(Wait::Never));
    }

    #[test]
    fn a_charge_given_back_in_full_delays_nothing() {
        let mut window = SlidingWindow::new(60_000_000);
        window.charge(1, 0);
        let ticket = window.hold(40, 30_000_000);
        window.settle(ticket, 40, 0);
        assert_eq!((window.charged(), window.whole_again_us()), (1, Some(61_000_000)));
        window.forget(61_000_000);
        assert_eq!((window.charged(), window.whole_again_us()), (0, None));
    }

    #[test]
    fn lowering_the_amount_below_what_is_used_refuses_until_enough_has_left() {
        let mut window = SlidingWindow::new(60_000_000);
        window.charge(80, 0);
        assert_eq!(window.check(10, 50, 30_000_000), Err(Wait::After(31_000_000)));
        assert!(window.check(10, 50, 61_000_000).is_ok());
    }

    #[test]
    fn a_clock_that_goes_back_never_frees_anything() {
        let mut window = SlidingWindow::new(60_000_000);
        window.charge(60, 100_000_000);
        window.charge(40, 50_000_000);
        assert!(window.check(1, 100, 50_000_000).is_err());
        assert!(window.check(1, 100, 159_999_999).is_err());
        assert!(window.check(100, 100, 161_000_000).is_ok());
    }

    #[test]
    fn restored_rows_count_as_if_the_process_had_never_stopped() {
        let (mut lived, mut restored) = (SlidingWindow::new(7_000_003), SlidingWindow::new(7_000_003));
        let charges = [(10, 0), (5, 1_000_000), (7, 3_500_000), (2, 6_999_999)];
        for (used, at) in charges {
            lived.charge(used, at);
        }
        for (used, at) in charges.iter().rev() {
            restored.restore(*used, *at);
        }
        for now in (7_000_000..16_000_000).step_by(99_991) {
            assert_eq!(lived.check(20, 24, now), restored.check(20, 24, now));
        }
    }
}
