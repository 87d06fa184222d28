//! Drawing on the device: the same tokens as the plain sort in double precision, whatever the row looks like.

use millgate_kernels::cuda::{self, DrawOutcome, DrawRow, LogitAdjustment, SampleInput, SampleScratch};
use millgate_kernels::reference::{self, Drawing};

use super::gpu;
use crate::random::Random;

const PLAIN: DrawRow = DrawRow {
    row: 0,
    temperature: 1.0,
    top_k: 0,
    top_p: 1.0,
    min_p: 0.0,
    repetition: 1.0,
    presence: 0.0,
    frequency: 0.0,
    seed: 0,
    choice: 0,
    position: 0,
    logprobs: None,
    adjustments: (0, 0),
    pending: None,
};

fn drawing(row: &DrawRow) -> Drawing {
    let &DrawRow { temperature, top_k, top_p, min_p, seed, choice, position, .. } = row;
    Drawing { temperature, top_k, top_p, min_p, seed, choice, position }
}

/// Draws `rows`; memory past what counts holds nonsense.
fn draw(logits: &[f32], vocab: usize, rows: &[DrawRow], adjustments: &[u32], previous: &[u32]) -> Vec<DrawOutcome> {
    let gpu = gpu().unwrap();
    let room = rows.len() + 1;
    let mut words: Vec<u32> = rows.iter().flat_map(DrawRow::words).collect();
    words.resize(room * DrawRow::WORDS, 0xdead_beef);
    let (device_logits, rows_buffer) = (gpu.upload(logits).unwrap(), gpu.upload(&words).unwrap());
    let (adjustments, previous) = (gpu.upload(adjustments).unwrap(), gpu.upload(previous).unwrap());
    let count = gpu.upload(&[rows.len() as u32]).unwrap();
    let mut scratch = SampleScratch::new(gpu, room, vocab).unwrap();
    let mut tokens = gpu.upload(&vec![7_u32; room]).unwrap();
    let mut results = gpu.upload(&vec![u32::MAX; room * DrawOutcome::WORDS]).unwrap();
    let input = SampleInput {
        logits: device_logits.view(),
        rows: rows_buffer.view(),
        count: count.view(),
        adjustments: adjustments.view(),
        previous: previous.view(),
    };
    cuda::sample(gpu, &input, &mut scratch, tokens.view_mut(), results.view_mut()).unwrap();
    let (tokens, results) = (tokens.read().unwrap(), results.read().unwrap());
    let outcomes: Vec<DrawOutcome> =
        results.chunks(DrawOutcome::WORDS).take(rows.len()).map(DrawOutcome::from_words).collect();
    for (outcome, &token) in outcomes.iter().zip(&tokens) {
        let wanted = if let DrawOutcome::Drawn { token, .. } = outcome { *token } else { u32::MAX };
        assert_eq!(token, wanted, "the next step's token");
    }
    assert_eq!(tokens[rows.len()], 7, "a draw that does not count is left alone");
    outcomes
}

fn token(outcome: &DrawOutcome) -> u32 {
    match outcome {
        DrawOutcome::Drawn { token, .. } => *token,
        other => panic!("{other:?}"),
    }
}

/// Rows as models make them, rows full of equal values, rows that are nearly ruled out.
fn logits(random: &mut Random, vocab: usize, kind: usize) -> Vec<f32> {
    let spread = [3.0, 8.0, 0.01, 1e4][random.below(4)];
    let mut row: Vec<f32> = (0..vocab).map(|_| random.float() * spread + 5.0).collect();
    match kind {
        1 => row.iter_mut().for_each(|v| *v = (*v / 2.0).round() * 0.5),
        2 => row.fill(-1.5),
        3 => row.iter_mut().for_each(|v| *v = if *v < 7.0 { f32::NEG_INFINITY } else { *v }),
        _ => {}
    }
    row[random.below(vocab)] = 6.0;
    row
}

fn row(random: &mut Random) -> DrawRow {
    DrawRow {
        temperature: [0.0, 0.3, 1.0, 1.7, 1e-3][random.below(5)],
        top_k: [0, 0, 1, 3, 40, 500, 1_000_000][random.below(7)],
        top_p: [1.0, 1.0, 0.0, 0.1, 0.5, 0.95, 0.9999][random.below(7)],
        min_p: [0.0, 0.0, 0.05, 0.5, 1.0][random.below(5)],
        seed: random.bits(),
        choice: random.below(4) as u32,
        position: random.below(100_000) as u32,
        ..PLAIN
    }
}

#[test]
fn tokens_equal_those_of_the_plain_sort() {
    if gpu().is_none() {
        return;
    }
    let mut random = Random(1);
    for vocab in [1, 2, 37, 1000, 4096, 4099, 20_000, 151_936] {
        for kind in 0..4 {
            let all = logits(&mut random, vocab, kind);
            let rows: Vec<DrawRow> = (0..if vocab > 10_000 { 12 } else { 60 }).map(|_| row(&mut random)).collect();
            for (row, outcome) in rows.iter().zip(draw(&all, vocab, &rows, &[], &[])) {
                let wanted = reference::draw(&all, &drawing(row)).unwrap();
                assert_eq!(token(&outcome), wanted, "vocabulary {vocab}, kind {kind}, {row:?}");
            }
        }
    }
}

#[test]
fn a_row_draws_the_same_alone_and_in_company() {
    if gpu().is_none() {
        return;
    }
    let mut random = Random(9);
    let vocab = 5001;
    let all: Vec<f32> = (0..64).flat_map(|i| logits(&mut random, vocab, i % 4)).collect();
    let rows: Vec<DrawRow> = (0..64).map(|i| DrawRow { row: i, logprobs: Some(3), ..row(&mut random) }).collect();
    let together = draw(&all, vocab, &rows, &[], &[]);
    for (index, row) in rows.iter().enumerate().step_by(5) {
        let alone = DrawRow { row: 0, ..*row };
        let own = &all[index * vocab..(index + 1) * vocab];
        assert_eq!(draw(own, vocab, &[alone], &[], &[])[0], together[index]);
    }
}

/// The adjusted logit, as the engine computes it.
fn adjusted(logit: f32, what: &LogitAdjustment, row: &DrawRow) -> f32 {
    if what.is_forbidden {
        return f32::NEG_INFINITY;
    }
    let mut logit = logit;
    if what.is_seen && row.repetition != 1.0 {
        logit = if logit > 0.0 { logit / row.repetition } else { logit * row.repetition };
    }
    if what.count > 0 {
        logit -= row.presence + row.frequency * what.count as f32;
    }
    logit + what.bias
}

#[test]
fn penalties_biases_and_bans_change_what_is_drawn_and_not_what_is_scored() {
    if gpu().is_none() {
        return;
    }
    let mut random = Random(4);
    let vocab = 9000;
    let previous = [8999, 17, u32::MAX];
    for round in 0..12 {
        let all = logits(&mut random, vocab, round % 2);
        let list: Vec<LogitAdjustment> = (0..vocab as u32)
            .step_by(8)
            .map(|first| LogitAdjustment {
                token: first + random.below(8) as u32,
                count: random.below(3) as u32,
                bias: [0.0, 2.0, -3.5][random.below(3)],
                is_seen: random.below(2) == 0,
                is_forbidden: random.below(20) == 0,
            })
            .collect();
        let mut words = vec![1, 1, 1, 3, 2, 1, 1, 3]; // another row's
        LogitAdjustment::pack(list.iter().rev().copied(), &mut words);
        let row = DrawRow {
            temperature: [0.0, 1.0][round % 2],
            repetition: 1.3,
            presence: 0.4,
            frequency: 0.25,
            adjustments: (2, list.len() as u32),
            pending: Some(round as u32 % 4),
            logprobs: Some(0),
            top_k: 200,
            ..row(&mut random)
        };
        let mut wanted = all.clone();
        let pending = previous.get(round % 4).copied();
        for what in &list {
            let is_pending = pending == Some(what.token);
            let what = LogitAdjustment {
                count: what.count + u32::from(is_pending),
                is_seen: what.is_seen || is_pending,
                ..*what
            };
            wanted[what.token as usize] = adjusted(all[what.token as usize], &what, &row);
        }
        if let Some(token) = pending.filter(|&t| (t as usize) < vocab && list.iter().all(|what| what.token != t)) {
            let what = LogitAdjustment { token, count: 1, bias: 0.0, is_seen: true, is_forbidden: false };
            wanted[token as usize] = adjusted(all[token as usize], &what, &row);
        }
        let outcome = &draw(&all, vocab, &[row], &words, &previous)[0];
        let DrawOutcome::Drawn { token, logprob, .. } = *outcome else { panic!("{outcome:?}") };
        assert_eq!(Some(token), reference::draw(&wanted, &drawing(&row)), "round {round}");
        let raw = reference::log_softmax(&all)[token as usize];
        assert!((logprob - raw).abs() <= 1e-5 * raw.abs().max(1.0), "{logprob}, wanted {raw}");
    }
}

#[test]
fn the_newest_token_counts_though_nobody_has_read_it() {
    if gpu().is_none() {
        return;
    }
    let mut all = vec![0.0; 5000];
    (all[4100], all[7]) = (5.0, 4.7);
    let previous = [4100, u32::MAX];
    let mut words = Vec::new();
    let known = LogitAdjustment { token: 4100, count: 1, bias: 0.6, is_seen: false, is_forbidden: false };
    LogitAdjustment::pack([known], &mut words);
    let greedy = DrawRow { temperature: 0.0, ..PLAIN };
    let often = DrawRow { frequency: 0.5, ..greedy };
    let again = DrawRow { repetition: 1.2, ..greedy };
    let listed = |row| DrawRow { adjustments: (0, 1), ..row };
    let pending = |row, draw| DrawRow { pending: Some(draw), ..row };
    let rows = [
        (often, 4100),
        (pending(often, 0), 7),
        (listed(often), 4100),
        (pending(listed(often), 0), 7),
        (pending(again, 0), 7),
        (listed(again), 4100),
        (pending(listed(again), 0), 4100), // 5 / 1.2 + 0.6
        (pending(DrawRow { repetition: 1.3, ..listed(again) }, 0), 7),
        (pending(often, 1), 4100),
        (pending(often, 9), 4100),
    ];
    let drawn = draw(&all, 5000, &rows.map(|(row, _)| row), &words, &previous);
    assert_eq!(drawn.iter().map(token).collect::<Vec<_>>(), rows.map(|(_, wanted)| wanted));
}

#[test]
fn log_probabilities_are_of_the_raw_row_and_the_top_is_in_order() {
    if gpu().is_none() {
        return;
    }
    let mut random = Random(6);
    for (vocab, kind) in [(3, 0), (700, 1), (5000, 2), (40_000, 0), (1500, 3)] {
        let all = logits(&mut random, vocab, kind);
        for top in [0, 1, 5, 20] {
            let row = DrawRow { logprobs: Some(top), temperature: 0.8, ..PLAIN };
            let outcome = &draw(&all, vocab, &[row], &[], &[])[0];
            let DrawOutcome::Drawn { token, logprob, top: found } = outcome else { panic!("{outcome:?}") };
            let wanted = reference::log_softmax(&all);
            let ranked = reference::ranked(&all);
            let tokens: Vec<u32> = found.iter().map(|&(token, _)| token).collect();
            assert_eq!(tokens, ranked[..ranked.len().min(usize::from(top))]);
            for &(token, logprob) in found.iter().chain([&(*token, *logprob)]) {
                let wanted = wanted[token as usize];
                assert!((logprob - wanted).abs() <= 1e-5 * wanted.abs().max(1.0), "{logprob}, wanted {wanted}");
            }
        }
    }
}

#[test]
fn broken_rows_are_reported_and_the_others_are_drawn() {
    if gpu().is_none() {
        return;
    }
    let vocab = 4500;
    let mut all = vec![0.25; 6 * vocab];
    all[4400] = f32::NAN;
    all[vocab + 3] = f32::INFINITY;
    all[2 * vocab..3 * vocab].fill(f32::NEG_INFINITY);
    all[3 * vocab..4 * vocab].fill(f32::NEG_INFINITY);
    all[3 * vocab + 4321] = -2.0;
    all[5 * vocab + 1] = 3.0e38;
    let mut words = Vec::new();
    let ban = |token| LogitAdjustment { token, count: 0, bias: 0.0, is_seen: false, is_forbidden: true };
    LogitAdjustment::pack([ban(4321)], &mut words);
    LogitAdjustment::pack([LogitAdjustment { bias: 3.0e38, is_forbidden: false, ..ban(1) }], &mut words);
    let rows: Vec<DrawRow> = (0..6).map(|row| DrawRow { row, logprobs: Some(2), ..PLAIN }).collect();
    let mut adjusted = rows.clone();
    adjusted[3].adjustments = (0, 1);
    adjusted[5].adjustments = (1, 1);
    let outcomes = draw(&all, vocab, &rows, &words, &[]);
    let broken = DrawOutcome::NotANumber;
    assert_eq!(outcomes[..3], [broken.clone(), broken.clone(), broken.clone()]);
    assert_eq!((token(&outcomes[3]), token(&outcomes[5])), (4321, 1));
    assert!(token(&outcomes[4]) < 4500);
    let outcomes = draw(&all, vocab, &adjusted, &words, &[]);
    assert_eq!((&outcomes[3], &outcomes[5]), (&DrawOutcome::NothingLeft, &broken));
}
