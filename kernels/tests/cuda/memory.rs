//! Buffers, pinned memory, events and graphs.

use half::bf16;
use millgate_kernels::cuda::{self, CudaError, Event, Gpu};

use super::gpu;

#[test]
fn what_is_written_comes_back_whole_and_in_parts() {
    let Some(gpu) = gpu() else { return };
    let values: Vec<u32> = (0..1000).collect();
    let mut buffer = gpu.upload(&values).unwrap();
    assert_eq!(buffer.read().unwrap(), values);
    assert_eq!(buffer.slice(10..13).read().unwrap(), [10, 11, 12]);
    buffer.slice_mut(1..=2).write(&[7, 8]).unwrap();
    let other = gpu.upload(&[1u32, 2, 3]).unwrap();
    buffer.slice_mut(997..).copy_from(other.view()).unwrap();
    buffer.slice_mut(3..6).write_bytes(&[1, 0, 0, 0, 2, 0, 0, 0, 3, 1, 0, 0]).unwrap();
    let read = buffer.read().unwrap();
    assert_eq!((&read[..7], &read[996..]), (&[0, 7, 8, 1, 2, 259, 6][..], &[996, 1, 2, 3][..]));
    assert_eq!(gpu.zeroed::<i8>(3).unwrap().read().unwrap(), [0, 0, 0]);
    assert_eq!(gpu.alloc::<f32>(0).unwrap().read().unwrap(), []);
}

#[test]
fn lengths_that_do_not_fit_are_refused() {
    let Some(gpu) = gpu() else { return };
    let mut buffer = gpu.zeroed::<u32>(4).unwrap();
    let text = buffer.view_mut().write(&[1]).unwrap_err().to_string();
    assert_eq!(text, "copy to the GPU: length is 1, wanted 4");
    let pinned = gpu.pinned::<u32>(3).unwrap();
    let text = buffer.view_mut().copy_from_pinned(&pinned).unwrap_err().to_string();
    assert_eq!(text, "copy from pinned memory: length 4 is out of range, the limit is 4");
    assert_eq!(buffer.read().unwrap(), [0; 4]);
}

#[test]
fn more_memory_than_there_is_is_an_error_that_says_what_is_free() {
    let Some(gpu) = gpu() else { return };
    let free = gpu.memory().unwrap();
    match gpu.alloc::<u8>(free.total_bytes * 2) {
        Err(CudaError::OutOfMemory { bytes, free: told }) => {
            assert_eq!(bytes, free.total_bytes * 2);
            assert!(told <= free.total_bytes);
        }
        other => panic!("{:?}", other.map(|buffer| buffer.len())),
    }
}

#[test]
fn a_device_that_is_not_there_is_named() {
    if gpu().is_some() {
        let count = cuda::devices().unwrap().len();
        let wanted = format!("there is no device `cuda:99`, this machine has {count}");
        assert_eq!(Gpu::open(99).unwrap_err().to_string(), wanted);
    }
}

#[test]
fn pinned_memory_waits_for_its_copies() {
    let Some(gpu) = gpu() else { return };
    let mut pinned = gpu.pinned::<u32>(8).unwrap();
    assert_eq!(pinned.read().unwrap(), [0; 8]);
    let mut buffer = gpu.zeroed::<u32>(8).unwrap();
    for round in 1..5 {
        pinned.write().unwrap().fill(round);
        buffer.view_mut().copy_from_pinned(&pinned).unwrap();
        // Must wait for the copy above, or the old value would be lost.
        pinned.write().unwrap().fill(100);
        assert_eq!(buffer.read().unwrap(), [round; 8]);
        buffer.view().copy_to_pinned(&mut pinned).unwrap();
        assert_eq!(pinned.read().unwrap(), [round; 8]);
    }
}

#[test]
fn an_event_passes_when_the_work_before_it_is_done() {
    let Some(gpu) = gpu() else { return };
    let (before, after) = (Event::new(gpu).unwrap(), Event::new(gpu).unwrap());
    assert!(before.is_done().unwrap());
    before.record().unwrap();
    let buffer = gpu.zeroed::<u32>(1 << 16).unwrap();
    after.record().unwrap();
    after.wait().unwrap();
    assert!(before.is_done().unwrap() && after.is_done().unwrap());
    assert!(after.ms_since(&before).unwrap() >= 0.0);
    drop(buffer);
}

#[test]
fn a_recorded_step_does_what_the_step_does_again_and_again() {
    let Some(gpu) = gpu() else { return };
    // A stream of its own: what other tests queue meanwhile must not be recorded.
    let gpu = &Gpu::open(gpu.info().ordinal).unwrap();
    let width = 64;
    let mut input = gpu.pinned::<bf16>(width).unwrap();
    let mut output = gpu.pinned::<bf16>(width).unwrap();
    let mut x = gpu.zeroed::<bf16>(width).unwrap();
    let mut y = gpu.zeroed::<bf16>(width).unwrap();
    let mut graph = {
        let weight = gpu.upload(&vec![bf16::from_f32(2.0); width]).unwrap();
        let mut step = || {
            x.view_mut().copy_from_pinned(&input)?;
            cuda::rms_norm(gpu, x.view(), weight.view(), 1e-5, y.view_mut())?;
            y.view().copy_to_pinned(&mut output)
        };
        step().unwrap();
        gpu.capture(step).unwrap()
        // The weight's last owner but the graph goes here.
    };
    for scale in [1.0f32, 3.0, 0.5] {
        let values: Vec<bf16> = (0..width).map(|i| bf16::from_f32(scale * (i as f32 - 20.0))).collect();
        input.write().unwrap().copy_from_slice(&values);
        graph.launch().unwrap();
        let got = output.read().unwrap().to_vec();
        x.view_mut().write(&values).unwrap();
        let weight = gpu.upload(&vec![bf16::from_f32(2.0); width]).unwrap();
        cuda::rms_norm(gpu, x.view(), weight.view(), 1e-5, y.view_mut()).unwrap();
        assert_eq!(got, y.read().unwrap());
    }
}

#[test]
fn a_step_that_waits_cannot_be_recorded_and_leaves_the_stream_usable() {
    let Some(gpu) = gpu() else { return };
    // A device of its own: other tests queue on the shared one meanwhile.
    let gpu = Gpu::open(gpu.info().ordinal).unwrap();
    let buffer = gpu.upload(&[1u32, 2]).unwrap();
    assert!(gpu.capture(|| buffer.read().map(drop)).is_err());
    assert_eq!(buffer.read().unwrap(), [1, 2]);
    assert!(gpu.capture(|| gpu.alloc::<u8>(8).map(drop)).is_err());
    assert_eq!(buffer.read().unwrap(), [1, 2]);
}
