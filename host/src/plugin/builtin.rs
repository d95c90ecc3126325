//! The plugin that is part of the executable, made by the build script.

use std::path::Path;

use serde_json::{Map, Value};

/// The allowlist, as a component.
pub const ALLOWLIST_COMPONENT: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/allowlist.wasm"));
/// The same, compiled for this machine.
pub const ALLOWLIST_PRECOMPILED: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/allowlist.cwasm"));

/// Adds to the allowlist's configuration where its paths lead: it compares files by the path without links, and cannot
/// follow them itself.
pub fn with_resolved_paths(config: &str) -> String {
    let Ok(Value::Object(mut config)) = serde_json::from_str(config) else { return config.to_owned() };
    let mut resolved = Map::new();
    for key in ["allow_executables", "deny_executables"] {
        for entry in config.get(key).and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str) {
            if let Some(path) = resolve(entry)
                && path != entry
            {
                resolved.insert(entry.to_owned(), path.into());
            }
        }
    }
    if !resolved.is_empty() {
        config.insert("resolved".to_owned(), resolved.into());
    }
    Value::Object(config).to_string()
}

/// The entry with its longest literal directory resolved: all of it, unless it is a glob.
fn resolve(entry: &str) -> Option<String> {
    let literal = match entry.find(['*', '?', '[', '{']) {
        Some(special) => &entry[..entry[..special].rfind('/')?],
        None => entry,
    };
    let real = Path::new(if literal.is_empty() { "/" } else { literal }).canonicalize().ok()?;
    let real = real.to_str()?.trim_end_matches('/');
    Some(format!("{real}{}", if literal.len() < entry.len() { &entry[literal.len()..] } else { "" }))
}
