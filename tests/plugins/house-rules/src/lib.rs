//! A plugin for the tests: uses everything that the interface offers, and fails when it is told to.

use callgate_sdk::{
    ConfigError, Endpoint, Event, EventKinds, Exec, FileRole, Level, Plugin, Stream, Verdict, ancestors,
    canonical_path, digest, environment, standard_stream,
};
use schemars::JsonSchema;
use serde::Deserialize;

/// The plugin.
#[derive(Debug)]
pub struct HouseRules {
    config: Config,
    seen: u32,
}

/// Each key is a rule of its own.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Allows everything that no rule denies, instead of abstaining.
    allow: bool,
    /// Is asked about connections instead of programs.
    connections: bool,
    /// Denies this file, wherever the path leads.
    file: Option<String>,
    /// Denies programs with this argument.
    argument: Option<String>,
    /// Denies the content with this digest.
    sha256: Option<String>,
    /// Denies programs started, at any distance, by one of this path.
    below: Option<String>,
    /// Denies programs that get this variable.
    variable: Option<String>,
    /// Denies programs whose standard stream of this number is a terminal.
    terminal: Option<u32>,
    /// Denies what is done by a process that runs this.
    by: Option<String>,
    /// Denies every program after so many.
    most: Option<u32>,
    /// The errno of denials.
    errno: Option<u16>,
    /// Fails when a program has this argument.
    panic_at: Option<String>,
    /// Says so when it has seen this argument.
    log_at: Option<String>,
}

#[callgate_sdk::plugin(schema = "config.schema.json")]
impl Plugin for HouseRules {
    type Config = Config;
    const NAME: &'static str = "house-rules";
    const VERSION: &'static str = "1.2.3";

    fn new(mut config: Config) -> Result<Self, ConfigError> {
        if config.argument.as_deref() == Some("") {
            return Err(ConfigError::at("/argument", "an empty argument").hint("name one"));
        }
        if let Some(file) = &mut config.file {
            let Some(path) = canonical_path(file) else {
                return Err(ConfigError::at("/file", format!("there is no {file:?}")));
            };
            *file = path;
        }
        Ok(Self { config, seen: 0 })
    }

    fn subscriptions(&self, written: EventKinds) -> EventKinds {
        written & if self.config.connections { EventKinds::CONNECT } else { EventKinds::EXEC }
    }

    fn exec(&mut self, event: &Event, exec: &Exec) -> Verdict {
        self.seen += 1;
        let config = &self.config;
        let has = |argument: &Option<String>| argument.as_ref().is_some_and(|it| exec.arguments.contains(it));
        assert!(!has(&config.panic_at), "the house is on fire");
        if has(&config.log_at) {
            callgate_sdk::log(Level::Warn, &format!("number {} is {}", self.seen, exec.file.path));
            log::warn!("log: {}", self.seen);
            tracing::warn!(number = self.seen, "tracing");
        }
        let broken = [
            ("file", config.file.as_ref() == Some(&exec.file.path)),
            ("argument", has(&config.argument)),
            ("sha256", config.sha256.is_some() && digest(FileRole::File).ok() == config.sha256),
            ("below", config.below.as_ref().is_some_and(|it| ancestors().iter().any(|up| up.executable == *it))),
            ("variable", config.variable.as_ref().is_some_and(|it| environment(it).is_some())),
            ("terminal", config.terminal.is_some_and(|it| matches!(standard_stream(it), Stream::Terminal(_)))),
            ("by", config.by.as_ref().is_some_and(|it| event.subject.executable == *it)),
            ("most", config.most.is_some_and(|most| self.seen > most)),
        ];
        match broken.iter().find(|(_, broken)| *broken) {
            Some((rule, _)) => self.deny(rule, format!("number {} breaks the house rules", self.seen)),
            None if config.allow => Verdict::allow("guest"),
            None => Verdict::Abstain,
        }
    }

    fn connect(&mut self, _: &Event, _: &Endpoint) -> Verdict {
        match &self.config.variable {
            Some(variable) if environment(variable).is_none() => Verdict::allow("guest"),
            _ => self.deny("connections", "nobody calls from here".to_owned()),
        }
    }
}

impl HouseRules {
    fn deny(&self, rule: &str, reason: String) -> Verdict {
        let denied = Verdict::deny(rule, reason).hint("ask the landlord");
        match self.config.errno {
            Some(errno) => denied.errno(errno),
            None => denied,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use callgate_sdk::testing::{Tester, exec};

    #[test]
    fn a_rule_that_is_not_configured_denies_nothing() {
        let mut plugin = Tester::<HouseRules>::new("{}").unwrap();
        assert_eq!(plugin.decide(exec("/bin/ls")), Verdict::Abstain);
        let mut plugin = Tester::<HouseRules>::new(r#"{"file": "/bin/ls"}"#).unwrap();
        assert_eq!(plugin.decide(exec("/bin/ls")).rule(), Some("file"));
    }
}
