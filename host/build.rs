//! Builds the built-in plugin: compiles it for wasm32, encodes it as a component, and compiles that ahead of time, so that
//! `callgate` starts without a compiler's delay.

use std::env;
use std::error::Error;
use std::path::PathBuf;

#[path = "../plugins/component.rs"]
mod component;
#[allow(unreachable_pub)]
#[path = "src/plugin/engine_config.rs"]
mod engine_config;

fn main() -> Result<(), Box<dyn Error>> {
    let host = PathBuf::from(env::var("CARGO_MANIFEST_DIR")?);
    let root = host.parent().ok_or("the crate has no workspace around it")?;
    let out = PathBuf::from(env::var("OUT_DIR")?);
    for watched in [
        "plugins/allowlist",
        "plugins/component.rs",
        "json/src",
        "sdk/src",
        "sdk/wit",
        "host/src/plugin/engine_config.rs",
        "host/build.rs",
    ] {
        println!("cargo:rerun-if-changed={}", root.join(watched).display());
    }

    let component = component::build(root, "callgate-allowlist", &out.join("wasm"))?;
    let mut config = engine_config::config();
    config.target(&env::var("TARGET")?)?;
    let native = wasmtime::Engine::new(&config)?.precompile_component(&component)?;
    std::fs::write(out.join("allowlist.wasm"), component)?;
    std::fs::write(out.join("allowlist.cwasm"), native)?;
    Ok(())
}
