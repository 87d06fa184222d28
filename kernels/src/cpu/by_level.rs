//! One body of plain Rust, compiled once for each instruction set.

/// Defines `fn name(level: Level, arguments…)` that runs the inline function `body` compiled for that level.
///
/// Element-wise loops over fixed-width lanes need no intrinsics: the compiler vectorises them once it may use the wide
/// registers. The bits are the same on every level, because lanes and their order are spelled out in the body.
macro_rules! by_level {
    ($(#[$doc:meta])* $vis:vis fn $name:ident($($arg:ident: $kind:ty),* $(,)?) = $body:path) => {
        $(#[$doc])*
        $vis fn $name(level: $crate::Level, $($arg: $kind),*) {
            #[cfg(target_arch = "x86_64")]
            {
                #[target_feature(enable = "avx2,fma,f16c")]
                fn on_avx2($($arg: $kind),*) {
                    $body($($arg),*)
                }
                #[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl")]
                fn on_avx512($($arg: $kind),*) {
                    $body($($arg),*)
                }
                match level {
                    $crate::Level::Scalar => {}
                    // SAFETY: a pool is only built with a level this machine has.
                    $crate::Level::Avx2 => return unsafe { on_avx2($($arg),*) },
                    // SAFETY: as above.
                    $crate::Level::Avx512 | $crate::Level::Avx512Bf16 | $crate::Level::Amx => return unsafe { on_avx512($($arg),*) },
                }
            }
            let _ = level;
            $body($($arg),*)
        }
    };
}
pub(crate) use by_level;
