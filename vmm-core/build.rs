//! Builds the freestanding `workload` guest (`workload/`) into `OUT_DIR/workload.bin`, a flat
//! binary.
//!
//! It takes the compiler of the crate itself and the target on which that runs, whose `core` is
//! there, so a plain stable toolchain with its linker is enough: no extra target, no nightly,
//! nothing downloaded. The C library that the crate is built for makes no difference to a guest
//! without one.

use std::env;
use std::ffi::OsString;
use std::path::PathBuf;
use std::process::Command;

fn main() {
    let folder = PathBuf::from(variable("CARGO_MANIFEST_DIR")).join("workload");
    let image = PathBuf::from(variable("OUT_DIR")).join("workload.bin");
    for input in ["workload", "src/workload/abi.rs", "src/workload/stamp.rs", "build.rs"] {
        println!("cargo::rerun-if-changed={input}");
    }

    let mut link_script = OsString::from("link-arg=-Wl,-T,");
    link_script.push(folder.join("link.ld"));
    let mut rustc = Command::new(variable("RUSTC"));
    rustc
        .args(["--edition", "2024", "--crate-name", "workload", "--crate-type", "bin"])
        .args(["--cfg", "freestanding", "--target"])
        .arg(variable("HOST"))
        .args(["-C", "opt-level=3", "-C", "panic=abort", "-C", "relocation-model=static"])
        .args(["-C", "target-cpu=x86-64", "-C", "strip=none", "-C", "overflow-checks=off"])
        .args(["-C", "link-arg=-nostdlib", "-C", "link-arg=-nostartfiles"])
        .args(["-C", "link-arg=-static", "-C", "link-arg=-Wl,--build-id=none"])
        .args(["-C", "link-arg=-Wl,--oformat=binary", "-C"])
        .arg(link_script)
        .arg("-o")
        .arg(&image)
        .arg(folder.join("main.rs"));
    if variable("HOST").to_string_lossy().contains("musl") {
        // Otherwise the start code of the C library, which comes with the compiler, is linked.
        rustc.args(["-C", "link-self-contained=no"]);
    }
    // Flags for the host program (sanitizers, other CPUs) are not for a guest without a library.
    rustc.env_remove("RUSTFLAGS").env_remove("CARGO_ENCODED_RUSTFLAGS");
    match rustc.status() {
        Ok(status) if status.success() => {}
        Ok(status) => panic!("the workload guest did not build: {rustc:?} ended with {status}"),
        Err(error) => panic!("the workload guest did not build: {rustc:?} did not start: {error}"),
    }
}

fn variable(name: &str) -> OsString {
    env::var_os(name).unwrap_or_else(|| panic!("cargo did not set {name}"))
}
