//! Says what it is given and told: every kind of event, every field, every function of the host.

use callgate_sdk::{
    Accepted, Action, ConfigError, Credentials, Endpoint, Event, Exec, FileRole, Level, Plugin, Socket, Verdict, ancestors,
    canonical_path, digest, environment, log, names, standard_stream, started_ms,
};

/// The plugin.
pub struct Witness {
    allow: Vec<String>,
    home: Option<String>,
    seen: u32,
}

/// Its configuration.
#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Programs that are allowed.
    #[serde(default)]
    allow: Vec<String>,
}

#[callgate_sdk::plugin]
impl Plugin for Witness {
    type Config = Config;
    const NAME: &'static str = "witness";
    const VERSION: &'static str = "0.1.0";

    fn config_schema() -> Option<String> {
        Some(r#"{"type": "object", "properties": {"allow": {"type": "array"}}}"#.to_owned())
    }

    fn new(config: Config) -> Result<Self, ConfigError> {
        if let Some(index) = config.allow.iter().position(String::is_empty) {
            return Err(ConfigError::at(format!("/allow/{index}"), "an empty path").hint("\"/bin/ls\""));
        }
        Ok(Self { allow: config.allow, home: canonical_path("/"), seen: 0 })
    }

    fn exec(&mut self, event: &Event, exec: &Exec) -> Verdict {
        if self.allow.contains(&exec.file.path) {
            return Verdict::allow("witness.listed");
        }
        if exec.arguments.iter().any(|argument| argument == "panic") {
            panic!("as it was told");
        }
        if exec.arguments.iter().any(|argument| argument == "abstain") {
            return Verdict::Abstain;
        }
        self.say(event)
    }
    fn exec_fileless(&mut self, event: &Event, _: &Exec) -> Verdict {
        self.say(event)
    }
    fn connect(&mut self, event: &Event, _: &Endpoint) -> Verdict {
        self.say(event)
    }
    fn bind(&mut self, event: &Event, _: &Endpoint) -> Verdict {
        self.say(event)
    }
    fn listen(&mut self, event: &Event, _: &Endpoint) -> Verdict {
        self.say(event)
    }
    fn accept(&mut self, event: &Event, _: &Accepted) -> Verdict {
        self.say(event)
    }
    fn send(&mut self, event: &Event, _: &Endpoint) -> Verdict {
        self.say(event)
    }
    fn socket(&mut self, event: &Event, _: &Socket) -> Verdict {
        self.say(event)
    }
    fn credentials(&mut self, event: &Event, _: &Credentials) -> Verdict {
        self.say(event)
    }
}

impl Witness {
    fn say(&mut self, event: &Event) -> Verdict {
        self.seen += 1;
        let (kind, given) = match &event.action {
            Action::Exec(it) => ("exec", format!("{it:?}")),
            Action::ExecFileless(it) => ("exec-fileless", format!("{it:?}")),
            Action::Connect(it) => ("connect", format!("{it:?}")),
            Action::Bind(it) => ("bind", format!("{it:?}")),
            Action::Listen(it) => ("listen", format!("{it:?}")),
            Action::Accept(it) => ("accept", format!("{it:?}")),
            Action::Send(it) => ("send", format!("{it:?}")),
            Action::Socket(it) => ("socket", format!("{it:?}")),
            Action::Credentials(it) => ("credentials", format!("{it:?}")),
        };
        for level in [Level::Error, Level::Warn, Level::Info, Level::Debug, Level::Trace] {
            log(level, &format!("witness of {kind}"));
        }
        let told = format!(
            "{:?} {:?} {:?} {:?} {:?} {:?} {:?} {} {}",
            ancestors().iter().map(|it| (it.pid, it.executable.as_str())).collect::<Vec<_>>(),
            [FileRole::File, FileRole::Interpreter(0), FileRole::Loader].map(digest),
            environment("WITNESS"),
            [0, 1, 2].map(standard_stream),
            names(),
            self.home,
            event.subject,
            started_ms(),
            self.seen,
        );
        // Sentences are cut at a kilobyte.
        Verdict::deny(format!("witness.{kind}"), format!("{given} {}", event.time_ms)).hint(told).errno(71)
    }
}
