//! `callgatectl plugin new`: a crate that builds, passes its tests and denies something at once.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

/// What is to be made.
#[derive(Debug)]
pub struct New {
    /// The crate's name, and the plugin's.
    pub name: String,
    /// Where; absent: a directory of that name.
    pub directory: Option<PathBuf>,
    /// The SDK: a directory, a git repository or a version. Absent: the version that fits this callgatectl.
    pub sdk: Option<String>,
}

/// The files, in which `{{name}}` and the like stand for what differs.
const FILES: [(&str, &str); 7] = [
    ("Cargo.toml", include_str!("template/Cargo.toml.in")),
    ("src/lib.rs", include_str!("template/lib.rs.in")),
    ("config.schema.json", include_str!("template/config.schema.json.in")),
    ("cases.json", include_str!("template/cases.json.in")),
    ("policy.json", include_str!("template/policy.json.in")),
    ("README.md", include_str!("template/README.md.in")),
    (".gitignore", include_str!("template/gitignore.in")),
];

/// Writes the crate, and returns its directory.
///
/// # Errors
/// The name is none for a crate, or there is something already.
pub fn new(new: &New) -> Result<PathBuf> {
    let New { name, .. } = new;
    if let Some(why) = no_name(name) {
        bail!("{name:?} cannot be a plugin's name: {why}");
    }
    let directory = new.directory.clone().unwrap_or_else(|| PathBuf::from(name));
    match fs::read_dir(&directory).map(|mut entries| entries.next().is_some()) {
        Ok(true) => bail!("{} is not empty", directory.display()),
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            return Err(error).with_context(|| format!("cannot look into {}", directory.display()));
        }
        Ok(false) | Err(_) => {}
    }
    let workspace = if within_a_workspace(&directory) { WORKSPACE } else { "" };
    let replacements = [
        ("{{name}}", name.clone()),
        ("{{type}}", camel_case(name)),
        ("{{sdk}}", dependency(new.sdk.as_deref())?),
        ("{{workspace}}", workspace.to_owned()),
    ];
    for (file, template) in FILES {
        let path = directory.join(file);
        let text = replacements.iter().fold(template.to_owned(), |text, (from, to)| text.replace(from, to));
        let parent = path.parent().unwrap_or(&directory);
        fs::create_dir_all(parent).with_context(|| format!("cannot make {}", parent.display()))?;
        fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(directory)
}

/// cargo would take the crate for a member of the workspace around it.
const WORKSPACE: &str =
    "\n# A workspace of its own; remove this if it is to be a member of the one around it.\n[workspace]\n";

fn within_a_workspace(directory: &Path) -> bool {
    let absolute = std::path::absolute(directory).unwrap_or_else(|_| directory.to_owned());
    absolute.ancestors().skip(1).any(|above| above.join("Cargo.toml").exists())
}

/// Names that rustc keeps to itself, or that stand for its own crates.
const TAKEN: [&str; 50] = [
    "abstract", "alloc", "as", "async", "await", "become", "box", "break", "const", "continue", "core", "crate", "do",
    "dyn", "else", "enum", "extern", "false", "final", "fn", "for", "gen", "if", "impl", "in", "let", "loop", "macro",
    "match", "mod", "move", "mut", "override", "priv", "pub", "ref", "return", "self", "static", "std", "struct",
    "super", "test", "trait", "true", "try", "type", "unsafe", "use", "while",
];

fn no_name(name: &str) -> Option<&'static str> {
    if !name.starts_with(|c: char| c.is_ascii_lowercase()) {
        Some("it takes a name that begins with a small letter")
    } else if !name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '-' | '_')) {
        Some("it takes small letters, digits, - and _")
    } else if TAKEN.contains(&name) || name == "callgate" || name == "callgate-sdk" {
        Some("the name is taken")
    } else {
        None
    }
}

fn camel_case(name: &str) -> String {
    let words = name.split(['-', '_']).filter(|word| !word.is_empty());
    words.map(|word| word[..1].to_ascii_uppercase() + &word[1..]).collect()
}

/// What stands behind `callgate-sdk = ` in the manifest.
fn dependency(sdk: Option<&str>) -> Result<String> {
    let quoted = |text: &str| serde_json::Value::from(text).to_string();
    Ok(match sdk {
        None => quoted(concat!(env!("CARGO_PKG_VERSION_MAJOR"), ".", env!("CARGO_PKG_VERSION_MINOR"))),
        Some(git) if git.contains("://") || git.starts_with("git@") => format!("{{ git = {} }}", quoted(git)),
        Some(version) if version.starts_with(|c: char| c.is_ascii_digit() || matches!(c, '=' | '^' | '~')) => {
            quoted(version)
        }
        Some(path) => {
            let absolute = fs::canonicalize(path).with_context(|| format!("cannot find the SDK at {path:?}"))?;
            if !absolute.join("Cargo.toml").is_file() {
                bail!("{path:?} is no crate: it has no Cargo.toml; name the directory of callgate-sdk");
            }
            let text = absolute.to_str().with_context(|| format!("{} is not UTF-8", absolute.display()))?;
            format!("{{ path = {} }}", quoted(text))
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_one_that_cargo_and_rustc_take() {
        for name in ["no-miners", "a", "x2", "under_score"] {
            assert_eq!(no_name(name), None, "{name}");
        }
        for name in ["", "No", "2x", "-x", "a b", "a/b", "../x", "ä", "fn", "test", "callgate-sdk"] {
            assert!(no_name(name).is_some(), "{name}");
        }
        assert_eq!(camel_case("no-miners_2x"), "NoMiners2x");
    }

    #[test]
    fn the_sdk_is_a_version_a_repository_or_a_directory() {
        assert_eq!(dependency(None).unwrap(), "\"0.1\"");
        assert_eq!(dependency(Some("=0.1.3")).unwrap(), "\"=0.1.3\"");
        assert_eq!(dependency(Some("https://x/y")).unwrap(), "{ git = \"https://x/y\" }");
        assert!(dependency(Some("/nowhere")).unwrap_err().to_string().contains("/nowhere"));
    }
}
