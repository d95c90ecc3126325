//! From a file to a [`Policy`]: what is wrong is said with its place.

use std::collections::HashSet;
use std::fs::{File, OpenOptions};
use std::io::Read;
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use callgate_json::Object;

use super::document::{Document, PluginDocument, SinkDocument};
use super::source::{PolicyError, Source};
use super::{AuditSettings, PluginSettings, PluginSource, Policy, Sink, SinkTarget};

/// The largest policy that is read, in bytes: room for some hundred thousand rules.
const SIZE: u64 = 64 << 20;
/// The name of the plugin that is part of the executable.
pub const BUILTIN: &str = "allowlist";

impl Policy {
    /// Reads and checks a policy. What it names (plugins, sinks) is not looked at yet.
    ///
    /// # Errors
    /// The file cannot be read, or the first mistake in it.
    pub fn load(path: &Path) -> Result<(Self, Source), PolicyError> {
        // A fifo would hold up the start.
        let file = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path).map_err(|error| {
            let hint = (error.kind() == std::io::ErrorKind::NotFound)
                .then(|| "name the policy with --policy FILE or CALLGATE_POLICY".to_owned());
            PolicyError::of_file(path, format!("cannot read the policy: {error}"), hint)
        })?;
        let source = Source::read(file, path)?;
        Ok((Self::parse(&source)?, source))
    }

    /// Checks a policy's text.
    ///
    /// # Errors
    /// The first mistake in it.
    pub fn parse(source: &Source) -> Result<Self, PolicyError> {
        let document = document(source)?;
        if document.version != 1 {
            let message = format!("version {} is not known", document.version);
            return Err(source.error_at("/version", message, Some("this build reads version 1".to_owned())));
        }
        let directory = source.path.parent().unwrap_or(Path::new(""));
        let plugins = match (&document.plugins, document.short_form().as_slice()) {
            (None, []) => {
                let hint = "add \"allow_executables\": [\"/bin/sh\", …], or a list of plugins";
                return Err(source.error_at(
                    "",
                    "the policy governs nothing: it names no plugin",
                    Some(hint.to_owned()),
                ));
            }
            (None, keys) => {
                let keys: Vec<String> = keys.iter().map(|(key, value)| format!("\"{key}\": {}", value.get())).collect();
                vec![PluginSettings::builtin(format!("{{{}}}", keys.join(", ")))]
            }
            (Some(plugins), []) if plugins.is_empty() => {
                return Err(source.error_at("/plugins", "the policy governs nothing: it names no plugin", None));
            }
            (Some(plugins), []) => {
                let mut names = HashSet::new();
                let plugins = plugins.iter().enumerate();
                plugins
                    .map(|(index, Object(plugin))| settings(source, directory, index, plugin, &mut names))
                    .collect::<Result<_, _>>()?
            }
            (Some(_), [(key, _), ..]) => {
                let hint = format!("move {key:?} into the configuration of the plugin {BUILTIN:?}");
                return Err(source.error_at_key(
                    &format!("/{key}"),
                    format!("{key:?} stands beside \"plugins\", so it is not clear which plugin it is for"),
                    Some(hint),
                ));
            }
        };
        let Object(audit) = &document.audit;
        if audit.queue == 0 || audit.queue > 1_000_000 {
            let message = format!("a queue of {} records; it takes 1 to 1000000", audit.queue);
            return Err(source.error_at("/audit/queue", message, None));
        }
        let sinks = audit.sinks.iter().enumerate();
        Ok(Self {
            mode: document.mode,
            lock_mode: document.lock_mode,
            default: document.default,
            plugins,
            audit: AuditSettings {
                sinks: sinks.map(|(index, sink)| target(source, index, sink)).collect::<Result<_, _>>()?,
                decisions: audit.decisions,
                when_full: audit.when_full,
                queue: audit.queue,
            },
            require: document.require,
            sighup: document.sighup,
        })
    }
}

impl PluginSettings {
    /// The built-in plugin with its defaults, configured at the top of the document.
    fn builtin(config: String) -> Self {
        let defaults: PluginDocument = PluginDocument::named(BUILTIN);
        Self {
            name: BUILTIN.to_owned(),
            source: PluginSource::Builtin,
            config,
            on_failure: defaults.on_failure,
            deadline: Duration::from_millis(defaults.deadline_ms),
            memory: (defaults.memory_mib as usize) << 20,
            mode: defaults.mode,
            place: String::new(),
            config_place: String::new(),
        }
    }
}

impl Source {
    /// Reads a policy's text. `path` is what its file is called.
    ///
    /// # Errors
    /// It cannot be read, or is no text.
    pub fn read(file: File, path: &Path) -> Result<Self, PolicyError> {
        // A pipe could neither be read again, when the policy is to change, nor be told from another one.
        let piped = file.metadata().is_ok_and(|metadata| metadata.file_type().is_fifo());
        let hint =
            piped.then(|| "a pipe can be read once, and a policy may be read again: write it to a file".to_owned());
        let failed = |error| PolicyError::of_file(path, format!("cannot read the policy: {error}"), hint);
        text(path, read(file).map_err(failed)?)
    }
}

fn read(file: File) -> std::io::Result<Vec<u8>> {
    let kind = file.metadata()?.file_type();
    if !kind.is_file() {
        let what = match () {
            () if kind.is_dir() => "it is a directory",
            () if kind.is_fifo() => "it is not a regular file but a pipe",
            () => "it is not a regular file",
        };
        return Err(std::io::Error::other(what));
    }
    let mut bytes = Vec::new();
    file.take(SIZE + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > SIZE {
        return Err(std::io::Error::other(format!("it is larger than {} MiB", SIZE >> 20)));
    }
    Ok(bytes)
}

/// The text of a policy, which is UTF-8 without a byte order mark (RFC 8259, 8.1).
fn text(path: &Path, bytes: Vec<u8>) -> Result<Source, PolicyError> {
    let source = |text| Source { path: path.to_owned(), text };
    let hint = || Some("save the policy as UTF-8 without a byte order mark".to_owned());
    match String::from_utf8(bytes) {
        Ok(text) if text.starts_with('\u{feff}') => {
            Err(source(text).error_at_byte(0, "the policy begins with a byte order mark", hint()))
        }
        Ok(text) if text.trim_ascii().is_empty() => {
            let hint = "the shortest policy is {\"allow_executables\": [\"/bin/sh\"]}";
            Err(PolicyError::of_file(path, "the policy is empty", Some(hint.to_owned())))
        }
        Ok(text) => Ok(source(text)),
        Err(error) => {
            let at = error.utf8_error().valid_up_to();
            let shown = String::from_utf8_lossy(error.as_bytes()).into_owned();
            Err(source(shown).error_at_byte(at, "the policy is not UTF-8", hint()))
        }
    }
}

fn document(source: &Source) -> Result<Document, PolicyError> {
    // Syntax first, all of it, so that later the document has places.
    if let Err(error) = serde_json::from_str::<serde_json::Value>(&source.text) {
        return Err(source.no_json(&error));
    }
    callgate_json::from_str(&source.text)
        .map(|Object(document)| document)
        .map_err(|mistake| source.mistake(&mistake.pointer, mistake.message, mistake.hint))
}

fn settings(
    source: &Source,
    directory: &Path,
    index: usize,
    plugin: &PluginDocument,
    names: &mut HashSet<String>,
) -> Result<PluginSettings, PolicyError> {
    let place = format!("/plugins/{index}");
    let wrong = |key: &str, message: String, hint: Option<String>| {
        Err(source.error_at(&format!("{place}/{key}"), message, hint))
    };
    if plugin.name.is_empty() || plugin.name == "callgate" {
        return wrong("name", format!("a plugin cannot be called {:?}", plugin.name), None);
    }
    if !names.insert(plugin.name.clone()) {
        return wrong("name", format!("two plugins are called {:?}", plugin.name), None);
    }
    let origin = match (&plugin.path, &plugin.builtin) {
        (Some(_), Some(_)) => return wrong("builtin", "a plugin is either built in or has a path".to_owned(), None),
        (Some(path), None) if path.contains('\0') => {
            return wrong("path", format!("{path:?} has a NUL, which no path has"), None);
        }
        (Some(path), None) => {
            PluginSource::File { path: directory.join(path), sha256: plugin.sha256.clone(), content: None }
        }
        (None, builtin) => {
            let name = builtin.as_ref().unwrap_or(&plugin.name);
            if name != BUILTIN {
                let key = if builtin.is_some() { "builtin" } else { "name" };
                let hint = format!("give it a \"path\", or use the built-in plugin {BUILTIN:?}");
                return wrong(key, format!("there is no built-in plugin {name:?}"), Some(hint));
            }
            if plugin.sha256.is_some() {
                return wrong("sha256", "a digest is for a plugin with a path".to_owned(), None);
            }
            PluginSource::Builtin
        }
    };
    if let Some(digest) = &plugin.sha256
        && (digest.len() != 64 || !digest.bytes().all(|byte| byte.is_ascii_hexdigit()))
    {
        let message = format!("{digest:?} is no SHA-256: it takes 64 hexadecimal digits");
        return wrong("sha256", message, Some("`sha256sum FILE` prints it".to_owned()));
    }
    if !(1..=60_000).contains(&plugin.deadline_ms) {
        return wrong("deadline_ms", format!("a deadline of {} ms; it takes 1 to 60000", plugin.deadline_ms), None);
    }
    if !(1..=4096).contains(&plugin.memory_mib) {
        return wrong("memory_mib", format!("a memory of {} MiB; it takes 1 to 4096", plugin.memory_mib), None);
    }
    Ok(PluginSettings {
        name: plugin.name.clone(),
        source: origin,
        config: plugin.config.as_ref().map_or("{}", |config| config.get()).to_owned(),
        on_failure: plugin.on_failure,
        deadline: Duration::from_millis(plugin.deadline_ms),
        memory: (plugin.memory_mib as usize) << 20,
        mode: plugin.mode,
        config_place: format!("{place}/config"),
        place,
    })
}

fn target(source: &Source, index: usize, sink: &SinkDocument) -> Result<Sink, PolicyError> {
    let wrong = |message: String, hint: &str| {
        // The long form has the place in a key of its own.
        source.error_at(&format!("/audit/sinks/{index}/to"), message, Some(hint.to_owned()))
    };
    let to = match sink.to.split_once(':') {
        _ if sink.to.contains('\0') => None,
        None if sink.to == "stderr" => Some(SinkTarget::Stderr),
        Some(("file", path)) if path.starts_with('/') => Some(SinkTarget::File(PathBuf::from(path))),
        Some(("unix", path)) if path.starts_with('/') => Some(SinkTarget::Unix(PathBuf::from(path))),
        Some(("fd", number)) => number.parse().ok().filter(|fd: &i32| *fd >= 0).map(SinkTarget::Fd),
        _ => None,
    };
    match to {
        // They would be taken from the command.
        Some(SinkTarget::Fd(fd @ 0..=2)) => {
            let (name, hint) = match fd {
                0 => ("input", "open another descriptor for records, and write \"fd:3\""),
                1 => ("output", "write \"stderr\", or open another descriptor for records, and write \"fd:3\""),
                _ => ("error", "write \"stderr\""),
            };
            Err(wrong(format!("{:?} is the command's standard {name}", sink.to), hint))
        }
        Some(to) => Ok(Sink { to, format: sink.format }),
        None => {
            let hint = "write \"stderr\", \"file:/var/log/callgate.json\", \"unix:/run/collector.sock\" or \"fd:3\"";
            Err(wrong(format!("{:?} is no place for records", sink.to), hint))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::{Format, Mode};

    fn parse(text: &str) -> Result<Policy, PolicyError> {
        Policy::parse(&Source { path: "/etc/callgate/policy.json".into(), text: text.to_owned() })
    }

    fn mistake(text: &str) -> (String, (usize, usize)) {
        let error = parse(text).expect_err(text);
        (error.message().to_owned(), error.line_and_column().unwrap())
    }

    #[test]
    fn the_short_form_is_the_allowlist_with_that_configuration() {
        let policy = parse(r#"{"allow_executables": ["/usr/bin/gotty", "/bin/bash", "/bin/ls"]}"#).unwrap();
        assert_eq!(policy.mode, Mode::Enforce);
        let [plugin] = policy.plugins.as_slice() else { panic!("{policy:?}") };
        assert_eq!(plugin.source, PluginSource::Builtin);
        let config: serde_json::Value = serde_json::from_str(&plugin.config).unwrap();
        assert_eq!(config, serde_json::json!({"allow_executables": ["/usr/bin/gotty", "/bin/bash", "/bin/ls"]}));
    }

    #[test]
    fn a_plugins_path_is_relative_to_the_policy_and_its_configuration_stays_as_written() {
        let policy = parse(r#"{"plugins": [{"name": "mine", "path": "mine.wasm", "config": {"n": 1.50}}]}"#).unwrap();
        let PluginSource::File { path, .. } = &policy.plugins[0].source else { panic!("{policy:?}") };
        assert_eq!(path, Path::new("/etc/callgate/mine.wasm"));
        assert_eq!(policy.plugins[0].config, r#"{"n": 1.50}"#);
    }

    #[test]
    fn sinks_are_words_or_objects() {
        let policy =
            parse(r#"{"allow_executables": [], "audit": {"sinks": ["fd:3", {"to": "file:/a", "format": "text"}]}}"#);
        let sinks = policy.unwrap().audit.sinks;
        assert_eq!(sinks[0].to, SinkTarget::Fd(3));
        assert_eq!((&sinks[1].to, sinks[1].format), (&SinkTarget::File("/a".into()), Format::Text));
    }

    #[test]
    fn every_mistake_has_its_place() {
        for (text, place, part) in [
            ("{", (1, 1), "the text ends within an object"),
            ("{\n  \"mode\": \"enforced\",\n  \"allow_executables\": []}", (2, 11), "not one of the words"),
            (r#"{"alow_executables": []}"#, (1, 2), "there is no key"),
            (r#"{"allow_executables": [], "allow_executables": []}"#, (1, 27), "there twice"),
            (r#"{"version": 2, "allow_executables": []}"#, (1, 13), "version 2"),
            (r#"{"plugins": []}"#, (1, 13), "governs nothing"),
            ("{}", (1, 1), "governs nothing"),
            (r#"{"plugins": [{"name": "allowlist"}], "network": {}}"#, (1, 38), "beside"),
            (r#"{"plugins": [{"name": "a", "path": "a"}, {"name": "a", "path": "b"}]}"#, (1, 51), "two plugins"),
            (r#"{"plugins": [{"name": "nosuch"}]}"#, (1, 23), "no built-in plugin"),
            (r#"{"plugins": [{"name": "a", "path": "a", "sha256": "12"}]}"#, (1, 51), "no SHA-256"),
            (r#"{"plugins": [{"name": "a", "path": "a", "deadline_ms": 0}]}"#, (1, 56), "deadline"),
            (
                r#"{"plugins": [{"name": "a", "path": "a", "deadline_ms": "1"}]}"#,
                (1, 56),
                "is expected here, not the text",
            ),
            (r#"{"plugins": [{"path": "a"}]}"#, (1, 14), "the key \"name\" is missing"),
            (r#"{"allow_executables": [], "audit": {"sinks": ["stdout"]}}"#, (1, 47), "no place"),
            (r#"{"allow_executables": [], "audit": {"sinks": ["stderr", "fd:0"]}}"#, (1, 57), "standard input"),
            (r#"{"allow_executables": [], "audit": {"sinks": ["fd:1"]}}"#, (1, 47), "standard output"),
            (r#"{"allow_executables": [], "audit": {"sinks": [{"to": "fd:2"}]}}"#, (1, 54), "standard error"),
            (
                r#"{"allow_executables": [], "audit": {"sinks": [{"to": "stderr", "fmt": 1}]}}"#,
                (1, 64),
                "there is no key",
            ),
            (r#"{"allow_executables": [], "require": ["speed"]}"#, (1, 39), "not one of the words"),
        ] {
            let (message, at) = mistake(text);
            assert!(message.contains(part), "{text}: {message}");
            assert_eq!(at, place, "{text}: {message}");
        }
    }

    #[test]
    fn a_misspelt_key_is_answered_with_the_one_that_was_meant() {
        let error = parse(r#"{"allow_executabels": []}"#).unwrap_err();
        assert!(error.to_string().contains("did you mean \"allow_executables\"?"), "{error}");
    }

    proptest::proptest! {
        #[test]
        fn any_text_is_a_policy_or_a_mistake_with_a_place(text in "[\\[\\]{}\",:a-z0-9_ \n]{0,60}") {
            if let Err(error) = parse(&text) {
                error.render(true);
                assert!(error.line_and_column().is_some());
            }
        }
    }
}
