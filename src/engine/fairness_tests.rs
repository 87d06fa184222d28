//! The accounts of flows by themselves: what a flow pays, what it is lifted to, and when it is forgotten.

use super::*;

fn lane(band: u8, flow: u64) -> Lane {
    Lane { band, flow: FlowId(flow) }
}

fn id(request: u64) -> SequenceId {
    SequenceId { request, choice: 0 }
}

fn first(fairness: &Fairness) -> Option<u64> {
    fairness.head(|_| true).map(|rank| rank.id.request)
}

#[test]
fn the_flow_that_used_least_for_its_weight_goes_first_and_in_it_who_came_first() {
    let mut fairness = Fairness::default();
    for (request, flow, weight) in [(0, 7, 1), (1, 8, 4), (2, 7, 1), (3, 8, 4)] {
        fairness.arrive(lane(0, flow), weight, id(request));
    }
    assert_eq!(first(&fairness), Some(0));
    fairness.charge(lane(0, 7), 1, 10);
    assert_eq!(first(&fairness), Some(1));
    fairness.charge(lane(0, 8), 4, 36);
    assert_eq!(first(&fairness), Some(1), "36 for a weight of 4 is less than 10 for 1");
    fairness.charge(lane(0, 8), 4, 8);
    assert_eq!(first(&fairness), Some(0));
    assert_eq!(fairness.head(|id| id.request != 0).map(|rank| rank.id.request), Some(2));
}

#[test]
fn idling_banks_no_credit_and_an_advance_is_not_forgotten_while_others_work() {
    let mut fairness = Fairness::default();
    let (busy, idler, greedy) = (lane(0, 1), lane(0, 2), lane(0, 3));
    fairness.arrive(busy, 1, id(0));
    fairness.charge(busy, 1, 1000);
    fairness.arrive(idler, 1, id(1));
    assert_eq!(fairness.rank(idler, id(1)).counter(), fairness.rank(busy, id(0)).counter());
    fairness.arrive(greedy, 1, id(2));
    fairness.charge(greedy, 1, 500);
    fairness.leave(greedy, id(2));
    fairness.arrive(greedy, 1, id(3));
    let ahead = fairness.rank(greedy, id(3)).counter() - fairness.rank(busy, id(0)).counter();
    assert_eq!(ahead, 500 * UNIT);
    // One that only runs, and then asks for more, is lifted too.
    fairness.start(idler, id(1));
    fairness.charge(busy, 1, 300);
    fairness.arrive(idler, 1, id(4));
    assert_eq!(fairness.rank(idler, id(4)).counter(), fairness.rank(busy, id(0)).counter());
}

#[test]
fn flows_that_come_and_go_leave_nothing_behind() {
    let mut fairness = Fairness::default();
    fairness.arrive(lane(0, 0), 1000, id(0));
    for request in 1..5000 {
        let (lane, id) = (lane(0, request), id(request));
        fairness.arrive(lane, 1, id);
        fairness.start(lane, id);
        fairness.charge(lane, 1, request);
        fairness.leave(lane, id);
        assert!(fairness.len() <= MAX_DEBTORS + 1, "{} flows are remembered", fairness.len());
    }
    assert_eq!(fairness.len(), MAX_DEBTORS + 1);
    fairness.charge(lane(0, 0), 1, 10_000);
    fairness.arrive(lane(0, 1), 1, id(5000));
    fairness.leave(lane(0, 1), id(5000));
    assert_eq!(fairness.len(), 1, "debts below the level of those that work are forgotten");
    fairness.leave(lane(0, 0), id(0));
    assert_eq!(fairness.len(), 0);
}

#[test]
fn a_band_without_a_turn_ages_and_the_one_that_waited_longest_goes_first() {
    let mut fairness = Fairness::default();
    for (request, band) in [(0, 9), (1, 4), (2, 2)] {
        fairness.arrive(lane(band, 1), 1, id(request));
    }
    let mut has_work = [false; 256];
    for band in [9, 4, 2] {
        has_work[band] = true;
    }
    assert_eq!(fairness.overdue(10, &has_work), None);
    fairness.had_turn(9, 10 + AGE_STEPS - 1);
    fairness.had_turn(4, 11);
    assert_eq!(fairness.overdue(10 + AGE_STEPS - 1, &has_work), None);
    assert_eq!(fairness.overdue(10 + AGE_STEPS, &has_work), Some(2));
    fairness.send_ahead(lane(2, 1), id(2));
    assert_eq!(first(&fairness), Some(2));
    assert_eq!(fairness.overdue(10 + 2 * AGE_STEPS, &has_work), None, "one at a time");
    (0..AGED_TOKENS).for_each(|_| fairness.sampled(id(2)));
    assert_eq!(first(&fairness), Some(0), "its advance is used up");
    fairness.had_turn(2, 10 + 2 * AGE_STEPS);
    assert_eq!(fairness.overdue(10 + 2 * AGE_STEPS, &has_work), Some(4));
    assert_eq!(
        fairness.overdue(9999, &has_work).filter(|&band| band == 9),
        None,
        "the highest band has nobody above it"
    );
}
