//! Builds a plugin as a component. Part of the build script, which makes the built-in plugin so, of the tests, which make
//! plugins that the executable does not know, and of `callgatectl plugin build`.

use std::env;
use std::error::Error;
use std::path::{Path, PathBuf};
use std::process::Command;

const TARGET: &str = "wasm32-unknown-unknown";

/// Compiles `package` for wasm32 and encodes it as a component. `target_dir` has to be another than that of a cargo which
/// is running, for that one holds its lock.
#[allow(dead_code)] // callgatectl encodes what other languages make, too
pub(crate) fn build(root: &Path, package: &str, target_dir: &Path) -> Result<Vec<u8>, Box<dyn Error>> {
    let module = std::fs::read(compile(root, package, package, target_dir)?)?;
    Ok(wit_component::ComponentEncoder::default().module(&module)?.validate(true).encode()?)
}

/// Compiles the library of `package`, which is called `library`, for wasm32: a core module.
pub(crate) fn compile(root: &Path, package: &str, library: &str, target_dir: &Path) -> Result<PathBuf, Box<dyn Error>> {
    let rustc = env::var("RUSTC").unwrap_or_else(|_| "rustc".to_owned());
    let mut cargo = Command::new(env::var("CARGO").unwrap_or_else(|_| "cargo".to_owned()));
    // What this build was given is for the machine it is for, not for wasm.
    for key in env::vars_os().filter_map(|(key, _)| key.into_string().ok()) {
        let ours =
            ["RUSTFLAGS", "CARGO_ENCODED_RUSTFLAGS", "RUSTC", "RUSTC_WRAPPER", "RUSTC_WORKSPACE_WRAPPER", "RUSTDOC"];
        if ours.contains(&key.as_str()) || key.starts_with("CARGO_PROFILE_") || key.starts_with("CARGO_CFG_") {
            cargo.env_remove(key);
        }
    }
    cargo.current_dir(root).args(["rustc", "--package", package, "--lib", "--crate-type", "cdylib", "--release"]);
    cargo.args(["--target", TARGET, "--target-dir"]).arg(target_dir);
    cargo.env("CARGO_PROFILE_RELEASE_OPT_LEVEL", "3").env("CARGO_PROFILE_RELEASE_LTO", "fat");
    cargo.env("CARGO_PROFILE_RELEASE_CODEGEN_UNITS", "1").env("CARGO_PROFILE_RELEASE_PANIC", "abort");
    if !has_std(&rustc, root) {
        with_debian_std(&mut cargo, &rustc)?;
    }
    let status = cargo.status()?;
    if !status.success() {
        return Err(format!("the plugin {package} could not be built for {TARGET} ({status})").into());
    }
    Ok(target_dir.join(TARGET).join("release").join(library.replace('-', "_") + ".wasm"))
}

fn has_std(rustc: &str, root: &Path) -> bool {
    // A toolchain may be chosen there.
    let output = Command::new(rustc).current_dir(root).args(["--print", "target-libdir", "--target", TARGET]).output();
    output.is_ok_and(|output| Path::new(String::from_utf8_lossy(&output.stdout).trim()).exists())
}

/// Where rustup has no such target: Debian's rustc with its sources of the standard library, which cargo then builds too.
fn with_debian_std(cargo: &mut Command, linking_rustc: &str) -> Result<(), Box<dyn Error>> {
    let rustc = "/usr/bin/rustc";
    let say = |rustc: &str, arguments: &[&str]| -> Result<String, Box<dyn Error>> {
        Ok(String::from_utf8(Command::new(rustc).args(arguments).output()?.stdout)?)
    };
    let sysroot = |rustc: &str| Ok::<_, Box<dyn Error>>(PathBuf::from(say(rustc, &["--print", "sysroot"])?.trim()));
    let sources = sysroot(rustc).map(|sysroot| sysroot.join("lib/rustlib/src/rust/library/Cargo.lock"));
    if !sources.is_ok_and(|lock| lock.exists()) {
        return Err(format!("there is no Rust standard library for {TARGET}; `.ci/setup build` installs one").into());
    }
    let version = say(linking_rustc, &["-vV"])?;
    let host = version.lines().find_map(|line| line.strip_prefix("host: ")).ok_or("rustc does not say its host")?;
    let linker = sysroot(linking_rustc)?.join("lib/rustlib").join(host).join("bin/rust-lld");
    cargo.env("RUSTC", rustc).env("RUSTC_BOOTSTRAP", "1");
    cargo.env("CARGO_TARGET_WASM32_UNKNOWN_UNKNOWN_LINKER", linker);
    cargo.args(["-Z", "build-std=std,panic_abort"]);
    Ok(())
}
