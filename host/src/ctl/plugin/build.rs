//! `callgatectl plugin build`: from a crate, or a core module of any language, to a component.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, anyhow, bail};
use serde_json::Value;
use wit_component::{ComponentEncoder, StringEncoding};
use wit_parser::Resolve;

use super::sandbox::{Limits, Sandbox};
use super::wasi;

#[path = "../../../../plugins/component.rs"]
mod cargo;

/// The interface between callgate and its plugins, as WIT.
pub const WIT: &str = include_str!("../../../../sdk/wit/policy.wit");

/// Builds the crate in `directory` as a component, and says where it is: `output`, else the crate's name beside its manifest.
///
/// # Errors
/// There is no crate, it does not compile, or what comes out is no plugin.
pub fn build(directory: &Path, output: Option<&Path>) -> Result<PathBuf> {
    let Crate { name, library, target } = Crate::of(directory)?;
    let module = cargo::compile(directory, &name, &library, &target).map_err(|error| anyhow!("{error}"))?;
    let module = fs::read(&module).with_context(|| format!("cannot read {}", module.display()))?;
    let output = output.map_or_else(|| directory.join(format!("{name}.wasm")), Path::to_owned);
    write(&module, &output).with_context(|| {
        format!("{name} is no plugin; is #[callgate_sdk::plugin] in {}?", directory.join("src/lib.rs").display())
    })?;
    Ok(output)
}

/// Makes a component of a core module that exports a plugin's functions under their names in the component model. What
/// they take and return is known from the interface, so that a module needs no custom section that says it. A module that
/// was made for WASI gets stubs that grant nothing.
///
/// # Errors
/// The module cannot be read, or is no plugin.
pub fn componentize(module: &Path, output: &Path) -> Result<()> {
    let bytes = fs::read(module).with_context(|| format!("cannot read {}", module.display()))?;
    if bytes.get(..8) != Some(b"\0asm\x01\0\0\0") {
        bail!("{} is no core module of webassembly", module.display());
    }
    write(&bytes, output).with_context(|| format!("{} cannot become a plugin", module.display()))
}

/// Writes bindings for C into a directory: `plugin.h`, `plugin.c` and an object that is to be linked too.
///
/// # Errors
/// A file cannot be written.
pub fn c_bindings(directory: &Path) -> Result<()> {
    // With the parser that the generator was built with.
    let mut resolve = wit_bindgen_core::wit_parser::Resolve::default();
    let package = resolve.push_str("policy.wit", WIT)?;
    let world = resolve.select_world(&[package], Some("plugin"))?;
    let mut files = wit_bindgen_core::Files::default();
    wit_bindgen_c::Opts::default().build().generate(&mut resolve, world, &mut files)?;
    fs::create_dir_all(directory).with_context(|| format!("cannot make {}", directory.display()))?;
    for (name, content) in files.iter() {
        let file = directory.join(name);
        fs::write(&file, content).with_context(|| format!("cannot write {}", file.display()))?;
    }
    Ok(())
}

/// Nothing is written that this host would not load.
fn write(module: &[u8], output: &Path) -> Result<()> {
    let component = encode(module)?;
    let parent = output.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let file = tempfile::NamedTempFile::with_prefix_in(".plugin-", parent)
        .with_context(|| format!("cannot write to {}", parent.display()))?;
    fs::write(file.path(), component).with_context(|| format!("cannot write {}", output.display()))?;
    Sandbox::open(file.path())?.describe(Limits::default())?;
    // A file for everybody to read, as a compiler makes it.
    fs::set_permissions(file.path(), std::os::unix::fs::PermissionsExt::from_mode(0o644))?;
    file.persist(output).with_context(|| format!("cannot write {}", output.display()))?;
    Ok(())
}

fn encode(module: &[u8]) -> Result<Vec<u8>> {
    let mut module = module.to_owned();
    if !has_types(&module) {
        let mut resolve = Resolve::default();
        let package = resolve.push_str("policy.wit", WIT)?;
        let world = resolve.select_world(&[package], Some("plugin"))?;
        wit_component::embed_component_metadata(&mut module, &resolve, world, StringEncoding::UTF8)?;
    }
    let mut encoder = ComponentEncoder::default().module(&module)?.validate(true);
    if let Some(stubs) = wasi::stubs(&module)? {
        encoder = encoder.adapter(wasi::NAME, &stubs)?;
    }
    encoder.encode()
}

/// Whether wit-bindgen has been here: it writes its types into custom sections of this name.
fn has_types(module: &[u8]) -> bool {
    let name = b"component-type:";
    module.windows(name.len()).any(|window| window == name)
}

/// What cargo says about a crate.
struct Crate {
    name: String,
    library: String,
    target: PathBuf,
}

impl Crate {
    fn of(directory: &Path) -> Result<Self> {
        let manifest = directory.join("Cargo.toml");
        if !manifest.is_file() {
            bail!("there is no crate in {}: it has no Cargo.toml", directory.display());
        }
        let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
        let output = Command::new(cargo)
            .args(["metadata", "--no-deps", "--format-version", "1", "--manifest-path"])
            .arg(&manifest)
            .output()
            .context("cannot run cargo; https://rustup.rs has it")?;
        if !output.status.success() {
            bail!("{}: {}", manifest.display(), String::from_utf8_lossy(&output.stderr).trim());
        }
        let metadata: Value = serde_json::from_slice(&output.stdout).context("cannot read what cargo says")?;
        let manifest = fs::canonicalize(&manifest)?;
        let mut packages = metadata["packages"].as_array().into_iter().flatten();
        let package = packages
            .find(|package| package["manifest_path"].as_str().is_some_and(|path| Path::new(path) == manifest))
            .with_context(|| format!("{} has no package; name the directory of one", manifest.display()))?;
        let library = ["lib", "cdylib", "rlib"];
        let mut targets = package["targets"].as_array().into_iter().flatten();
        let target = targets
            .find(|target| {
                let mut kinds = target["kind"].as_array().into_iter().flatten();
                kinds.any(|kind| library.iter().any(|it| kind == it))
            })
            .with_context(|| format!("{} has no library; a plugin is one", manifest.display()))?;
        let text = |value: &Value| value.as_str().map(str::to_owned).context("cannot read what cargo says");
        Ok(Self {
            name: text(&package["name"])?,
            library: text(&target["name"])?,
            target: text(&metadata["target_directory"])?.into(),
        })
    }
}
