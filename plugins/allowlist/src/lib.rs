//! The default plugin: what is not listed is denied.
//!
//! An ordinary plugin, written with `callgate-sdk`. Executables, the network and users are its business if its configuration
//! has a section for them; what is not is not even intercepted.

mod addresses;
mod executables;
mod forms;
mod globs;
mod network;
mod users;

use callgate_sdk::{
    Accepted, ConfigError, Credentials, Endpoint, Event, EventKinds, Exec, Object, Plugin, Socket, Subject, Verdict,
    by_action_alone, present,
};
use schemars::JsonSchema;
use serde::Deserialize;

use executables::Executables;
use network::Network;
use users::Users;

/// The plugin, configured.
#[derive(Debug)]
pub struct Allowlist {
    executables: Option<Executables>,
    network: Option<Network>,
    users: Option<Users>,
}

/// What the allowlist allows.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[schemars(rename = "Allowlist")]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// What may run; nothing else does. Absolute paths; globs, in which `*` does not cross `/` and `**` does, and nothing else
    /// is special; directories with everything below them, with a `/` at the end; or `sha256:` and the digest of the content,
    /// also for a file whose name has a `*`. A script needs its
    /// interpreter to be allowed too. Absent: whatever `deny_executables` does not name.
    #[serde(deserialize_with = "present")]
    #[schemars(with = "Vec<executables::Entry>")]
    #[schemars(extend("examples" = [["/usr/bin/gotty", "/bin/bash", "/opt/app/", "/srv/*/run"]]))]
    pub allow_executables: Option<Vec<String>>,
    /// What may not run, even if `allow_executables` has it. Written like that one.
    #[schemars(with = "Vec<executables::Entry>")]
    pub deny_executables: Vec<String>,
    /// Which addresses may be reached, and served. Absent: the network is not governed, and costs nothing.
    #[serde(deserialize_with = "present")]
    #[schemars(with = "network::Config")]
    pub network: Option<Object<network::Config>>,
    /// Which users and groups processes may run as and switch to. Absent: users are not governed.
    #[serde(deserialize_with = "present")]
    #[schemars(with = "users::Config")]
    pub users: Option<Object<users::Config>>,
}

#[callgate_sdk::plugin(schema = "config.schema.json")]
impl Plugin for Allowlist {
    type Config = Config;
    const NAME: &'static str = "allowlist";

    fn new(config: Config) -> Result<Self, ConfigError> {
        let executables = config.allow_executables.is_some() || !config.deny_executables.is_empty();
        if !executables && config.network.is_none() && config.users.is_none() {
            return Err(ConfigError::at("", "the allowlist governs nothing: whatever happens would be allowed")
                .hint("add \"allow_executables\": [\"/bin/sh\", …]"));
        }
        Ok(Self {
            executables: executables
                .then(|| Executables::new(config.allow_executables, &config.deny_executables))
                .transpose()?,
            network: config.network.map(|Object(config)| Network::new(config)).transpose()?,
            users: config.users.map(|Object(config)| Users::new(config)),
        })
    }

    fn subscriptions(&self, mut kinds: EventKinds) -> EventKinds {
        let network = self.network.is_some();
        kinds.set(EventKinds::EXEC | EventKinds::EXEC_FILELESS, self.executables.is_some() || self.users.is_some());
        kinds.set(EventKinds::CONNECT | EventKinds::SEND, network);
        kinds.set(EventKinds::BIND | EventKinds::LISTEN | EventKinds::SOCKET, network);
        kinds.set(EventKinds::ACCEPT, self.network.as_ref().is_some_and(Network::restricts_peers));
        kinds.set(EventKinds::CREDENTIALS, self.users.is_some());
        kinds
    }

    fn exec(&mut self, event: &Event, exec: &Exec) -> Verdict {
        self.run(&event.subject, exec)
    }

    fn exec_fileless(&mut self, event: &Event, exec: &Exec) -> Verdict {
        self.run(&event.subject, exec)
    }

    fn connect(&mut self, _: &Event, to: &Endpoint) -> Verdict {
        self.network(|network| network.outbound("connect", to))
    }

    fn send(&mut self, _: &Event, to: &Endpoint) -> Verdict {
        self.network(|network| network.outbound("send", to))
    }

    fn bind(&mut self, _: &Event, to: &Endpoint) -> Verdict {
        self.network(|network| network.bind(to))
    }

    fn listen(&mut self, _: &Event, on: &Endpoint) -> Verdict {
        self.network(|network| network.listen(on))
    }

    fn accept(&mut self, _: &Event, accepted: &Accepted) -> Verdict {
        self.network(|network| network.accept(accepted))
    }

    fn socket(&mut self, _: &Event, socket: &Socket) -> Verdict {
        self.network(|network| network.socket(socket))
    }

    fn credentials(&mut self, _: &Event, change: &Credentials) -> Verdict {
        by_action_alone();
        self.users.as_ref().map_or(Verdict::Abstain, |users| users.change(change))
    }
}

impl Allowlist {
    /// What the section on the network says, which is about no subject.
    fn network(&self, judge: impl FnOnce(&Network) -> Verdict) -> Verdict {
        by_action_alone();
        self.network.as_ref().map_or(Verdict::Abstain, judge)
    }

    fn run(&self, subject: &Subject, exec: &Exec) -> Verdict {
        if self.users.is_none() {
            by_action_alone();
        }
        if let Some(denied) = self.users.as_ref().and_then(|users| users.running_as(subject)) {
            return denied;
        }
        match &self.executables {
            Some(executables) => executables.judge(exec),
            None => Verdict::allow("executables.not-governed"),
        }
    }
}
