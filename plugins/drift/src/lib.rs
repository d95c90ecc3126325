//! Drift prevention: nothing runs that was not there, as it is, when the workload was started.
//!
//! By the time at which a file's inode was last changed, which no program can set (it is not the modification time): writing,
//! making, renaming, linking a file and changing its mode or owner all move it to now. What the image holds is older than the
//! start; what was downloaded, compiled or replaced since is not. A digest list says what may run all the same.

use std::collections::BTreeSet;

use callgate_sdk::{
    ConfigError, Event, Exec, File, FileRole, Plugin, Verdict, by_action_alone, canonical_path, digest, started_ms,
};
use schemars::JsonSchema;
use serde::Deserialize;

/// The plugin, configured.
#[derive(Debug)]
pub struct Drift {
    margin_ns: i64,
    directories: Vec<String>,
    digests: BTreeSet<String>,
}

/// What may run although it is new.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// What was changed less than so long before the start counts as changed after it: the clock by which the kernel dates
    /// files is up to a hundredth of a second behind.
    #[schemars(range(max = 3_600_000))]
    margin_ms: u32,
    /// Directories, with everything below them, whose new files may run: where the workload compiles, for example.
    #[schemars(extend("items" = { "type": "string", "pattern": "^/" }))]
    except_below: Vec<String>,
    /// SHA-256 of content that may run wherever it is, in hexadecimal.
    #[schemars(extend("items" = { "type": "string", "pattern": "^[0-9A-Fa-f]{64}$" }))]
    except_sha256: Vec<String>,
}

impl Default for Config {
    fn default() -> Self {
        Self { margin_ms: 20, except_below: Vec::new(), except_sha256: Vec::new() }
    }
}

#[callgate_sdk::plugin(schema = "config.schema.json")]
impl Plugin for Drift {
    type Config = Config;
    const NAME: &'static str = "drift";

    fn new(config: Config) -> Result<Self, ConfigError> {
        if config.margin_ms > 3_600_000 {
            return Err(ConfigError::at("/margin_ms", format!("{} ms are more than an hour", config.margin_ms)));
        }
        let directory = |(index, written): (usize, &String)| {
            let at = format!("/except_below/{index}");
            if !written.starts_with('/') {
                return Err(ConfigError::at(at, format!("{written:?} is no absolute path")));
            }
            let path = canonical_path(written).ok_or_else(|| {
                ConfigError::at(at, format!("there is no {written:?}; whoever makes it could put programs there"))
            })?;
            Ok(path.trim_end_matches('/').to_owned() + "/")
        };
        let sha256 = |(index, written): (usize, &String)| {
            if written.len() == 64 && written.bytes().all(|byte| byte.is_ascii_hexdigit()) {
                return Ok(written.to_ascii_lowercase());
            }
            let message = format!("{written:?} is no SHA-256: it takes 64 hexadecimal digits");
            Err(ConfigError::at(format!("/except_sha256/{index}"), message))
        };
        Ok(Self {
            margin_ns: i64::from(config.margin_ms) * 1_000_000,
            directories: config.except_below.iter().enumerate().map(directory).collect::<Result<_, _>>()?,
            digests: config.except_sha256.iter().enumerate().map(sha256).collect::<Result<_, _>>()?,
        })
    }

    fn exec(&mut self, _: &Event, exec: &Exec) -> Verdict {
        by_action_alone(); // unless a digest is asked for
        let start_ns = i64::try_from(started_ms()).unwrap_or(i64::MAX).saturating_mul(1_000_000);
        let since_ns = start_ns.saturating_sub(self.margin_ns);
        let loader = exec.loader.as_ref().map(|file| (FileRole::Loader, file));
        for (role, file) in exec.files().chain(loader) {
            let Some((rule, why)) = self.drifted(file, since_ns) else { continue };
            if !self.may_run(role) {
                return self.deny(rule, role, format!("{} {why}", file.path));
            }
        }
        Verdict::Abstain
    }

    fn exec_fileless(&mut self, _: &Event, exec: &Exec) -> Verdict {
        if self.may_run(FileRole::File) {
            return Verdict::Abstain;
        }
        self.deny("drift.fileless", FileRole::File, format!("{} has no place in the image", exec.file.path))
    }
}

impl Drift {
    fn drifted(&self, file: &File, since_ns: i64) -> Option<(&'static str, &'static str)> {
        if !file.canonical {
            return Some(("drift.mount", "is on a mount that was made after the start"));
        }
        if file.changed_ns < since_ns || self.directories.iter().any(|directory| file.path.starts_with(directory)) {
            return None;
        }
        Some(("drift.changed", "was changed after the start"))
    }

    fn may_run(&self, role: FileRole) -> bool {
        !self.digests.is_empty() && digest(role).is_ok_and(|digest| self.digests.contains(&digest))
    }

    fn deny(&self, rule: &str, role: FileRole, reason: String) -> Verdict {
        let denied = Verdict::deny(rule, reason);
        match digest(role) {
            Ok(digest) => denied.hint(format!("add {digest:?} to except_sha256")),
            Err(_) => denied,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use callgate_sdk::testing::{Host, Tester, exec, exec_fileless, strategies};

    const START_MS: u64 = 1_000_000;
    const START_NS: i64 = 1_000_000_000_000;
    const A: &str = "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";

    fn drift(config: &str) -> Tester<Drift> {
        Tester::with_host(Host::new().missing("/none").link("/cache", "/var/cache"), config).unwrap()
    }

    #[test]
    fn what_is_older_than_the_start_is_left_to_others() {
        let mut drift = drift("{}");
        let at = |ns| exec("/bin/ls").started_ms(START_MS).changed_ns(ns);
        assert_eq!(drift.decide(at(START_NS - 1_000_000_000)), Verdict::Abstain);
        assert!(drift.said_by_action_alone());
        assert_eq!(drift.decide(at(START_NS + 1)).rule(), Some("drift.changed"));
        assert!(!drift.said_by_action_alone(), "its digest was asked for");
        assert_eq!(drift.decide(at(START_NS - 10_000_000)).rule(), Some("drift.changed"), "the clock is coarse");
    }

    #[test]
    fn interpreters_and_loaders_are_looked_at_too() {
        let old = || exec("/app/run").started_ms(START_MS).changed_ns(1).interpreter("/bin/sh").loader("/lib/ld.so");
        let new = |exec: &mut Exec| exec.interpreters[0].changed_ns = START_NS;
        let old_interpreter = |exec: &mut Exec| exec.interpreters[0].changed_ns = 1;
        let loader = |ns: i64| move |exec: &mut Exec| exec.loader.as_mut().unwrap().changed_ns = ns;
        let mut drift = drift("{}");
        assert_eq!(drift.decide(old().with(old_interpreter).with(loader(1))), Verdict::Abstain);
        assert_eq!(drift.decide(old().with(new).with(loader(1))).rule(), Some("drift.changed"));
        assert_eq!(drift.decide(old().with(old_interpreter).with(loader(START_NS))).rule(), Some("drift.changed"));
    }

    #[test]
    fn files_without_a_place_in_the_image_do_not_run() {
        let mut drift = drift("{}");
        assert_eq!(drift.decide(exec_fileless("/memfd:x (deleted)")).rule(), Some("drift.fileless"));
        assert_eq!(drift.decide(exec("/mnt/x").file(|file| file.canonical = false)).rule(), Some("drift.mount"));
    }

    #[test]
    fn exceptions_are_by_place_or_by_content() {
        let mut drift = drift(&format!(r#"{{"except_below": ["/cache"], "except_sha256": ["{A}"]}}"#));
        let new = |path| exec(path).started_ms(START_MS).changed_ns(START_NS);
        assert_eq!(drift.decide(new("/var/cache/a.out")), Verdict::Abstain);
        assert_eq!(drift.decide(new("/var/cached")).rule(), Some("drift.changed"));
        assert_eq!(drift.decide(new("/tmp/x").digest("/tmp/x", A)), Verdict::Abstain);
        assert_eq!(drift.decide(exec_fileless("/memfd:x").digest("/memfd:x", A)), Verdict::Abstain);
        let other = drift.decide(new("/tmp/x").digest("/tmp/x", "bb"));
        assert_eq!(other.denial().unwrap().hint.as_deref(), Some("add \"bb\" to except_sha256"));
    }

    #[test]
    fn a_mistake_has_its_place() {
        for (config, pointer) in [
            (r#"{"except_below": ["/", "tmp"]}"#, "/except_below/1"),
            (r#"{"except_below": ["/none"]}"#, "/except_below/0"),
            (r#"{"except_sha256": ["12"]}"#, "/except_sha256/0"),
            (r#"{"margin_ms": 4000000}"#, "/margin_ms"),
        ] {
            let host = Host::new().missing("/none");
            assert_eq!(Tester::<Drift>::with_host(host, config).unwrap_err().pointer, pointer);
        }
    }

    proptest::proptest! {
        #[test]
        fn what_changed_after_the_start_runs_nowhere_else(event in strategies::event()) {
            let (mut drift, mut facts) = (drift(r#"{"except_below": ["/cache"]}"#), callgate_sdk::testing::Facts::default());
            facts.started_ms = START_MS;
            let new = match &event.action {
                callgate_sdk::Action::Exec(exec) => !exec.file.path.starts_with("/var/cache/") && exec.file.changed_ns >= START_NS,
                _ => false,
            };
            let verdict = drift.decide(callgate_sdk::testing::Given { event, facts });
            assert!(!new || verdict.denial().is_some());
        }
    }
}
