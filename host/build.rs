//! Builds the built-in plugin: compiles it for wasm32, encodes it as a component, and compiles that ahead of time, so that
//! `callgate` starts without a compiler's delay.

use std::env;
use std::error::Error;
use std::path::{Path, PathBuf};
use std::process::Command;

#[allow(unreachable_pub)] // it is, in the library
#[path = "src/plugin/engine_config.rs"]
mod engine_config;

const TARGET: &str = "wasm32-unknown-unknown";

fn main() -> Result<(), Box<dyn Error>> {
    let host = PathBuf::from(env::var("CARGO_MANIFEST_DIR")?);
    let root = host.parent().ok_or("the crate has no workspace around it")?;
    let out = PathBuf::from(env::var("OUT_DIR")?);
    for watched in
        ["plugins/allowlist", "json/src", "sdk/src", "sdk/wit", "host/src/plugin/engine_config.rs", "host/build.rs"]
    {
        println!("cargo:rerun-if-changed={}", root.join(watched).display());
    }

    let module = compile(root, &out)?;
    let component =
        wit_component::ComponentEncoder::default().module(&std::fs::read(module)?)?.validate(true).encode()?;
    let mut config = engine_config::config();
    config.target(&env::var("TARGET")?)?;
    let native = wasmtime::Engine::new(&config)?.precompile_component(&component)?;
    std::fs::write(out.join("allowlist.wasm"), component)?;
    std::fs::write(out.join("allowlist.cwasm"), native)?;
    Ok(())
}

/// Runs cargo for the plugin, in a target directory of its own, for this cargo holds the lock of the usual one.
fn compile(root: &Path, out: &Path) -> Result<PathBuf, Box<dyn Error>> {
    let target_dir = out.join("wasm");
    let mut cargo = Command::new(env::var("CARGO")?);
    // What this build was given is for the machine it is for, not for wasm.
    for (key, _) in env::vars() {
        let ours =
            ["RUSTFLAGS", "CARGO_ENCODED_RUSTFLAGS", "RUSTC", "RUSTC_WRAPPER", "RUSTC_WORKSPACE_WRAPPER", "RUSTDOC"];
        if ours.contains(&key.as_str()) || key.starts_with("CARGO_PROFILE_") || key.starts_with("CARGO_CFG_") {
            cargo.env_remove(key);
        }
    }
    cargo.current_dir(root).args([
        "rustc",
        "--package",
        "callgate-allowlist",
        "--lib",
        "--crate-type",
        "cdylib",
        "--release",
    ]);
    cargo.args(["--target", TARGET, "--target-dir"]).arg(&target_dir);
    cargo.env("CARGO_PROFILE_RELEASE_OPT_LEVEL", "3").env("CARGO_PROFILE_RELEASE_LTO", "fat");
    cargo.env("CARGO_PROFILE_RELEASE_CODEGEN_UNITS", "1").env("CARGO_PROFILE_RELEASE_PANIC", "abort");
    if !has_std(&env::var("RUSTC")?) {
        with_debian_std(&mut cargo)?;
    }
    let status = cargo.status()?;
    if !status.success() {
        return Err(format!("the built-in plugin could not be built for {TARGET} ({status})").into());
    }
    Ok(target_dir.join(TARGET).join("release/callgate_allowlist.wasm"))
}

fn has_std(rustc: &str) -> bool {
    let output = Command::new(rustc).args(["--print", "target-libdir", "--target", TARGET]).output();
    output.is_ok_and(|output| Path::new(String::from_utf8_lossy(&output.stdout).trim()).exists())
}

/// Where rustup has no such target: Debian's rustc with its sources of the standard library, which cargo then builds too.
fn with_debian_std(cargo: &mut Command) -> Result<(), Box<dyn Error>> {
    let rustc = "/usr/bin/rustc";
    let sysroot = |rustc: &str| -> Result<PathBuf, Box<dyn Error>> {
        let output = Command::new(rustc).args(["--print", "sysroot"]).output()?;
        Ok(PathBuf::from(String::from_utf8(output.stdout)?.trim()))
    };
    let sources = sysroot(rustc).map(|sysroot| sysroot.join("lib/rustlib/src/rust/library/Cargo.lock"));
    if !sources.is_ok_and(|lock| lock.exists()) {
        return Err(format!("there is no Rust standard library for {TARGET}; `.ci/setup-wasm` installs one").into());
    }
    let linker = sysroot(&env::var("RUSTC")?)?.join("lib/rustlib").join(env::var("HOST")?).join("bin/rust-lld");
    cargo.env("RUSTC", rustc).env("RUSTC_BOOTSTRAP", "1");
    cargo.env("CARGO_TARGET_WASM32_UNKNOWN_UNKNOWN_LINKER", linker);
    cargo.args(["-Z", "build-std=std,panic_abort"]);
    Ok(())
}
