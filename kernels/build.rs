//! Compiles the kernels for NVIDIA GPUs when the feature `cuda` is on: one fat binary a file of `cuda/`.
//!
//! `MILLGATE_CUDA_ARCHS` lists the architectures (default `80,86,89,90a`); PTX of compute capability 8.0 goes along for
//! cards that are newer. `MILLGATE_CUDA_STUB=1` makes empty images: for type checks and for the emulator, without nvcc.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::{env, fs};

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    if env::var_os("CARGO_FEATURE_CUDA").is_none() {
        return;
    }
    for variable in ["MILLGATE_CUDA_ARCHS", "MILLGATE_CUDA_STUB", "CUDA_HOME", "XDG_CACHE_HOME"] {
        println!("cargo:rerun-if-env-changed={variable}");
    }
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
    let sources = files("cuda", "cu");
    let headers = files("cuda", "cuh");
    for path in sources.iter().chain(&headers) {
        println!("cargo:rerun-if-changed={}", path.display());
    }
    println!("cargo:rerun-if-changed=cuda");
    let is_stub = env::var_os("MILLGATE_CUDA_STUB").is_some_and(|value| value != "0" && !value.is_empty());
    let archs = variable("MILLGATE_CUDA_ARCHS").unwrap_or_else(|| "80,86,89,90a".into());
    if is_stub {
        for source in &sources {
            fs::write(image(&out, source), []).expect("OUT_DIR can be written");
        }
    } else {
        compile(&sources, &headers, &archs, &out);
    }
    let entries: String =
        sources.iter().map(|s| format!("({:?}, include_bytes!({:?})),\n", stem(s), image(&out, s))).collect();
    fs::write(out.join("images.rs"), format!("[\n{entries}]\n")).expect("OUT_DIR can be written");
}

/// Compiles what is older than its sources, as many at a time as cargo runs jobs.
fn compile(sources: &[PathBuf], headers: &[PathBuf], archs: &str, out: &Path) {
    let nvcc = find_nvcc();
    let stamp = out.join("archs");
    let same_archs = fs::read_to_string(&stamp).is_ok_and(|old| old == archs);
    let age = |path: &Path| fs::metadata(path).and_then(|m| m.modified()).ok();
    let newest_header = headers.iter().filter_map(|h| age(h)).max();
    let is_fresh = |source: &&PathBuf| {
        let (made, from) = (age(&image(out, source)), age(source));
        let is_full = fs::metadata(image(out, source)).is_ok_and(|m| m.len() > 0);
        same_archs && is_full && made > from && made > newest_header
    };
    let _ = fs::remove_file(&stamp);
    let todo: Vec<&PathBuf> = sources.iter().filter(|s| !is_fresh(s)).collect();
    let jobs = variable("NUM_JOBS").and_then(|n| n.parse().ok()).unwrap_or(2);
    let next = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..jobs {
            scope.spawn(|| {
                while let Some(source) = todo.get(next.fetch_add(1, Ordering::Relaxed)) {
                    compile_one(&nvcc, source, archs, out);
                }
            });
        }
    });
    fs::write(stamp, archs).expect("OUT_DIR can be written");
}

/// Leaves what the assembler says about registers and spills beside the image, for `scripts/cuda-resources.py`.
fn compile_one(nvcc: &Path, source: &Path, archs: &str, out: &Path) {
    let mut command = Command::new(nvcc);
    command.args(["-fatbin", "-O3", "-std=c++17", "-lineinfo", "-Xptxas", "-v"]);
    for arch in archs.split(',').map(str::trim).filter(|arch| !arch.is_empty()) {
        command.arg(format!("-gencode=arch=compute_{arch},code=sm_{arch}"));
    }
    command.arg("-gencode=arch=compute_80,code=compute_80");
    command.arg("-o").arg(image(out, source)).arg(source);
    let output = command.output().unwrap_or_else(|error| panic!("cannot run {}: {error}", nvcc.display()));
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "nvcc failed on {}: {}\n{said}", source.display(), output.status);
    for line in said.lines().filter(|line| line.contains("warning")) {
        println!("cargo:warning={line}");
    }
    fs::write(image(out, source).with_extension("ptxas"), said.as_bytes()).expect("OUT_DIR can be written");
}

/// nvcc of `CUDA_HOME`, of the cache that `make cuda-toolkit` fills, or of the search path.
fn find_nvcc() -> PathBuf {
    let home = env::var_os("CUDA_HOME").map(|home| Path::new(&home).join("bin/nvcc"));
    let cache = env::var_os("XDG_CACHE_HOME")
        .map(PathBuf::from)
        .or_else(|| env::var_os("HOME").map(|home| Path::new(&home).join(".cache")))
        .map(|cache| cache.join("millgate/cuda-13.0/lib"));
    let pythons = cache.and_then(|lib| fs::read_dir(lib).ok()).into_iter().flatten().flatten();
    let wheels = pythons.map(|python| python.path().join("site-packages/nvidia/cu13/bin/nvcc"));
    let paths = env::var_os("PATH").map(|paths| env::split_paths(&paths).collect::<Vec<_>>()).unwrap_or_default();
    let on_path = paths.into_iter().map(|dir| dir.join("nvcc")).chain(["/usr/local/cuda/bin/nvcc".into()]);
    home.into_iter().chain(wheels).chain(on_path).find(|nvcc| nvcc.is_file()).unwrap_or_else(|| {
        panic!("the feature `cuda` needs nvcc: run `make cuda-toolkit` (no GPU needed), or set CUDA_HOME");
    })
}

fn variable(name: &str) -> Option<String> {
    env::var_os(name)?.into_string().ok()
}

fn files(folder: &str, extension: &str) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).expect("the folder of the kernels");
    let mut files: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
    files.retain(|path| path.extension().is_some_and(|found| found == extension));
    files.sort();
    files
}

fn stem(source: &Path) -> &str {
    source.file_stem().and_then(|stem| stem.to_str()).expect("kernels have plain names")
}

fn image(out: &Path, source: &Path) -> PathBuf {
    out.join(stem(source)).with_extension("fatbin")
}
