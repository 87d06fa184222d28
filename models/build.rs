//! Tells the code whether the demo model's files are there to be bundled.
//!
//! They are part of the repository, except while their training is under way or in a checkout without large files.

use std::path::Path;

fn main() {
    let demo = Path::new("demo");
    println!("cargo::rustc-check-cfg=cfg(bundled_demo)");
    println!("cargo::rerun-if-changed=demo");
    if demo.join("model.safetensors").exists() {
        println!("cargo::rustc-cfg=bundled_demo");
    }
}
