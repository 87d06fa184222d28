//! Steps that outgrow their buffers, and launches that fail halfway.

use super::super::load::load_as;
use super::*;
use crate::{
    Adjustment, Checkpoint, Device, DeviceChoice, GpuReserve, KvDtypeChoice, LoadOptions, PendingToken, Silent,
};

type Loaded = CudaModel<f32, f32>;

/// A model on the first GPU. `None`, said aloud, where there is none and `MILLGATE_TEST_GPU=require` does not ask for one.
fn open() -> Option<Loaded> {
    if let Err(error) = DeviceChoice::Cuda(0).choose() {
        let is_required = std::env::var_os("MILLGATE_TEST_GPU").is_some_and(|value| value == "require");
        assert!(!is_required, "a GPU is required: {error}");
        #[expect(clippy::print_stderr, reason = "a test that cannot run says so")]
        {
            eprintln!("not run: {error} (`make check-cuda` runs it on an emulated one)");
        }
        return None;
    }
    let package = std::env::var_os("CARGO_MANIFEST_DIR").unwrap_or_else(|| env!("CARGO_MANIFEST_DIR").into());
    let folder = std::path::PathBuf::from(package).join("testdata/tiny-llama");
    let options = LoadOptions {
        device: Device::Cuda(0),
        kv_bytes: None,
        reserve: GpuReserve::default(),
        deterministic: true,
        pool: std::sync::Arc::new(millgate_kernels::Pool::new(1)),
        num_blocks: 8,
        max_step_tokens: 32,
        max_output_rows: 4,
        kv_dtype: KvDtypeChoice::Auto,
        context_window: None,
    };
    let checkpoint = Checkpoint::open_local(&folder.display().to_string().parse().unwrap()).unwrap();
    // Its weights are in f32.
    Some(checkpoint.read_for_gpu(0, &options, &Silent, load_as).unwrap())
}

/// One greedy sequence in the first block: its prompt, or its newest token, which `pending` says to be on the device still.
fn step(tokens: &[u32], from: usize, pending: bool) -> Step {
    let (start, count) = (from as u32, (tokens.len() - from) as u32);
    let mut step = idle_step(1);
    step.batch.tokens = tokens[from..].to_vec();
    step.batch.positions = (start..start + count).collect();
    step.batch.slots = step.batch.positions.clone();
    (step.batch.sequences[0].query_len, step.batch.sequences[0].context_len) = (count, start + count);
    step.batch.output_rows = vec![count - 1];
    if pending {
        step.pending = vec![PendingToken { row: count - 1, draw: 0 }];
    }
    step
}

fn next(model: &mut Loaded) -> u32 {
    model.collect().unwrap().draws[0].clone().unwrap().token
}

/// Ten tokens after a prompt, each known before the next step is launched; `change` may change a step.
fn generate(model: &mut Loaded, mut change: impl FnMut(&mut Loaded, usize, &mut Step)) -> Vec<u32> {
    let mut tokens = vec![5, 9, 42, 7];
    for index in 0..10 {
        let from = if index == 0 { 0 } else { tokens.len() - 1 };
        let mut step = step(&tokens, from, false);
        change(model, index, &mut step);
        model.launch(&step).unwrap();
        tokens.push(next(model));
    }
    tokens
}

#[test]
fn a_step_that_outgrows_its_buffers_is_right_and_those_after_it_are_replayed_again() {
    let (Some(mut model), Some(mut other)) = (open(), open()) else { return };
    let wanted = generate(&mut other, |_, _, _| {});
    // As little room as the recorded steps need.
    let gpu = model.decoder.gpu.clone();
    let most = Layout::new(&model.decoder.decode_room(4)).tail.start + 16;
    model.device_words = gpu.zeroed(most).unwrap();
    model.stages.iter_mut().for_each(|stage| stage.words = gpu.pinned(most).unwrap());
    model.record().unwrap();
    let got = generate(&mut model, |model, index, step| {
        if index != 4 {
            return;
        }
        // Penalties that change nothing, on every token there is.
        let vocab = model.spec.vocab_size as u32;
        step.adjustments = (0..vocab).map(Adjustment::none).collect();
        let Output::Draw(draw) = &mut step.outputs[0] else { unreachable!() };
        draw.adjustments_len = vocab;
    });
    assert_eq!(got, wanted);
    assert!(model.device_words.len() > most && !model.is_stale);
    let (size, layout) = model.recorded.as_ref().unwrap().find(1).expect("decode steps are recorded");
    assert_eq!((size, layout.tail.end), (1, model.device_words.len()));
}

#[test]
fn partial_results_that_move_have_the_steps_recorded_again() {
    let Some(mut model) = open() else { return };
    let wanted = generate(&mut model, |_, _, _| {});
    let got = generate(&mut model, |model, index, _| {
        // As if a step had taken other memory for them.
        model.is_stale |= index == 3;
    });
    assert_eq!(got, wanted);
    assert!(!model.is_stale && model.recorded.as_ref().unwrap().find(4).is_some());
}

#[test]
fn a_launch_that_fails_halfway_leaves_the_step_in_flight_alone_and_nothing_of_its_own() {
    let Some(mut model) = open() else { return };
    let tokens = generate(&mut model, |_, _, _| {});
    let mut ahead = tokens[..5].to_vec();
    model.launch(&step(&ahead[..4], 0, false)).unwrap();
    // The next step is queued, and then what it draws cannot be copied.
    let broken = (model.turn + 1) % model.stages.len();
    let gpu = model.decoder.gpu.clone();
    let outcomes = std::mem::replace(&mut model.stages[broken].outcomes, gpu.pinned(0).unwrap());
    ahead[4] = 0;
    model.copy_block(0, 1);
    assert!(model.launch(&step(&ahead, 4, true)).is_err());
    model.stages[broken].outcomes = outcomes;
    assert!(model.copies.is_empty(), "its copies would write to blocks that somebody else has by now");
    // Its draws are gone: nobody may compute with them.
    let error = model.launch(&step(&ahead, 4, true)).unwrap_err().to_string();
    assert!(error.contains("draw of a pending token"), "{error}");
    assert_eq!(next(&mut model), tokens[4], "what was in flight lands");
    assert!(model.collect().is_err(), "and nothing else");
    assert_eq!(generate(&mut model, |_, _, _| {}), tokens);
}

#[test]
fn a_step_that_is_refused_takes_its_copies_with_it() {
    let Some(mut model) = open() else { return };
    model.copy_block(0, 1);
    assert!(model.launch(&step(&[5, 9], 1, true)).is_err(), "nothing was drawn before");
    assert!(model.copies.is_empty());
    model.copy_block(0, 1);
    let far = Batch { slots: vec![u32::MAX - 1], ..idle_step(1).batch };
    assert!(model.forward(&far).is_err() && model.copies.is_empty());
}
