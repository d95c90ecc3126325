//! Write plugins for callgate: one trait, one attribute.
//!
//! ```
//! use callgate_sdk::{ConfigError, Event, Exec, Plugin, Verdict};
//!
//! /// Denies one program by its name.
//! struct NoShell {
//!     name: String,
//! }
//!
//! #[derive(serde::Deserialize)]
//! #[serde(deny_unknown_fields)]
//! struct Config {
//!     name: String,
//! }
//!
//! #[callgate_sdk::plugin]
//! impl Plugin for NoShell {
//!     type Config = Config;
//!
//!     fn new(config: Config) -> Result<Self, ConfigError> {
//!         Ok(Self { name: config.name })
//!     }
//!
//!     fn exec(&mut self, _event: &Event, exec: &Exec) -> Verdict {
//!         if exec.file.path.ends_with(&format!("/{}", self.name)) {
//!             Verdict::deny("no-shell", format!("{} is a shell", exec.file.path))
//!         } else {
//!             Verdict::Abstain
//!         }
//!     }
//! }
//!
//! # #[cfg(not(target_arch = "wasm32"))]
//! # fn main() {
//! use callgate_sdk::testing::{Tester, exec};
//!
//! let mut plugin = Tester::<NoShell>::new(r#"{"name": "bash"}"#).unwrap();
//! assert_eq!(plugin.decide(exec("/bin/bash")).rule(), Some("no-shell"));
//! assert_eq!(plugin.decide(exec("/bin/ls")), Verdict::Abstain);
//! # }
//! ```
//!
//! A plugin is built for `wasm32-unknown-unknown` and encoded as a component. It imports nothing but what this crate does:
//! no files, no network, no clock. `README.md` beside this crate goes from nothing to a component, step by step.
//!
//! # Features
//!
//! `log`, `tracing`: what the plugin says by these crates goes to the host's log, under the plugin's name.
//! `proptest`: strategies for events, in [`testing`].

// The attribute writes the crate's name, also in this crate's own tests.
#[cfg(test)]
extern crate self as callgate_sdk;

mod export;
mod glob;
mod host;
#[cfg(any(feature = "log", feature = "tracing"))]
mod logging;
#[cfg(not(target_arch = "wasm32"))]
pub mod testing;

use serde::de::DeserializeOwned;

#[doc(hidden)]
#[allow(missing_docs, unsafe_code, unreachable_pub, clippy::undocumented_unsafe_blocks)]
pub mod bindings {
    wit_bindgen::generate!({
        path: "wit",
        world: "plugin",
        pub_export_macro: true,
        export_macro_name: "export_plugin",
        default_bindings_module: "callgate_sdk::bindings",
        additional_derives: [PartialEq, Eq],
    });
}

/// Makes a component of an implementation of [`Plugin`], and subscribes to the kinds of event whose methods it has.
///
/// The plugin's name and version are those of the crate, unless `NAME` and `VERSION` are written.
///
/// With `#[plugin(schema = "config.schema.json")]` the component carries the JSON Schema of its configuration, for people and
/// tools that write policies. The type of the configuration then derives `schemars::JsonSchema`, and the file, whose path is
/// relative to the crate's `Cargo.toml`, holds the schema that is made from it: a test that this attribute adds writes the file
/// and fails whenever it is not what the type says. (Making the schema inside of the component would take a hundred kilobytes
/// of code.)
pub use callgate_sdk_macros::plugin;

/// For configurations in which a mistake must not pass: see `callgate-json`.
pub use callgate_json::{Object, present};

pub use bindings::callgate::policy::host::{FileRole, Level};
pub use bindings::callgate::policy::types::{
    Accepted, Action, Address, ConfigError, Credentials, Denial, Endpoint, Event, EventKinds, Exec, File, Ipv4Address,
    Ipv6Address, NetlinkAddress, OtherAddress, Socket, Stream, StreamSocket, Subject, Verdict, VsockAddress,
};
#[doc(hidden)]
pub use export::start;
pub use export::{configure, decide};
pub use glob::Glob;
pub use host::{
    ancestors, by_action_alone, canonical_path, digest, environment, log, names, standard_stream, started_ms,
};

/// A plugin, with a method for each kind of event. It is asked about the kinds whose methods are written; the attribute
/// [`plugin`] on the implementation sees to that. The rest is not even intercepted for it.
///
/// There is one value of it from the start of the workload to its end, which gets one event at a time, in order: it may
/// remember.
pub trait Plugin: Sized + 'static {
    /// What the policy configures, written as a JSON object. Unknown keys are mistakes only if the type says so
    /// (`#[serde(deny_unknown_fields)]`). [`NoConfig`] for nothing.
    type Config: DeserializeOwned;
    /// The plugin's own name. The attribute takes the crate's, if it is not written.
    const NAME: &'static str;
    /// Its version (semver.org), likewise.
    const VERSION: &'static str;

    /// A JSON Schema of its configuration. The attribute writes it: see [`plugin`].
    fn config_schema() -> Option<String> {
        None
    }

    /// Takes its configuration. Called for the first instance, and again for each that replaces one that has failed.
    ///
    /// # Errors
    /// What is wrong with it, and where.
    fn new(config: Self::Config) -> Result<Self, ConfigError>;

    /// The kinds of event that it wants to be asked about, out of those whose methods are `written`. For plugins whose
    /// configuration makes some of them idle.
    fn subscriptions(&self, written: EventKinds) -> EventKinds {
        written
    }

    /// A program is about to be run.
    fn exec(&mut self, _event: &Event, _exec: &Exec) -> Verdict {
        Verdict::Abstain
    }
    /// A program is about to be run from a file without a path. Where a plugin has [`Plugin::exec`] and none has this
    /// method, the policy's default decides, which is to deny.
    fn exec_fileless(&mut self, _event: &Event, _exec: &Exec) -> Verdict {
        Verdict::Abstain
    }
    /// A socket is to be connected.
    fn connect(&mut self, _event: &Event, _to: &Endpoint) -> Verdict {
        Verdict::Abstain
    }
    /// A socket is to be given a local address.
    fn bind(&mut self, _event: &Event, _to: &Endpoint) -> Verdict {
        Verdict::Abstain
    }
    /// A socket is to accept connections.
    fn listen(&mut self, _event: &Event, _on: &Endpoint) -> Verdict {
        Verdict::Abstain
    }
    /// A peer has connected.
    fn accept(&mut self, _event: &Event, _accepted: &Accepted) -> Verdict {
        Verdict::Abstain
    }
    /// A datagram is to be sent.
    fn send(&mut self, _event: &Event, _to: &Endpoint) -> Verdict {
        Verdict::Abstain
    }
    /// A socket is to be created, or a pair of them.
    fn socket(&mut self, _event: &Event, _socket: &Socket) -> Verdict {
        Verdict::Abstain
    }
    /// A process is to change its user or groups.
    fn credentials(&mut self, _event: &Event, _change: &Credentials) -> Verdict {
        Verdict::Abstain
    }

    /// The kinds whose methods are written. The attribute [`plugin`] writes this one; where the compiler misses it, the
    /// attribute is missing.
    #[doc(hidden)]
    fn written_by_attribute() -> EventKinds;
}

/// The configuration of a plugin that has nothing to configure.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Deserialize)]
#[cfg_attr(not(target_arch = "wasm32"), derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct NoConfig {}

impl Verdict {
    /// Lets it happen, by this rule.
    pub fn allow(rule: impl Into<String>) -> Self {
        Self::Allow(Some(rule.into()))
    }

    /// Denies it, by this rule and for this reason; the host chooses the errno.
    pub fn deny(rule: impl Into<String>, reason: impl Into<String>) -> Self {
        Self::Deny(Denial { rule: rule.into(), reason: reason.into(), hint: None, errno: None })
    }

    /// The same, with what would allow it.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        if let Self::Deny(denial) = &mut self {
            denial.hint = Some(hint.into());
        }
        self
    }

    /// The same, with the errno(3) that the caller gets, 1 to 133.
    #[must_use]
    pub fn errno(mut self, errno: u16) -> Self {
        if let Self::Deny(denial) = &mut self {
            denial.errno = Some(errno);
        }
        self
    }

    /// The rule that allowed or denied, if one did.
    pub fn rule(&self) -> Option<&str> {
        match self {
            Self::Allow(rule) => rule.as_deref(),
            Self::Deny(denial) => Some(&denial.rule),
            Self::Abstain => None,
        }
    }

    /// The denial, if it is one.
    pub fn denial(&self) -> Option<&Denial> {
        match self {
            Self::Deny(denial) => Some(denial),
            _ => None,
        }
    }
}

impl ConfigError {
    /// A mistake at a place, which is a JSON Pointer (RFC 6901) into the configuration.
    pub fn at(pointer: impl Into<String>, message: impl Into<String>) -> Self {
        Self { pointer: pointer.into(), message: message.into(), hint: None }
    }

    /// The same, with what to write instead.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }
}

impl Exec {
    /// The files that say what is done: the one that is asked for, and what interprets it. Not the dynamic loader.
    pub fn files(&self) -> impl Iterator<Item = (FileRole, &File)> {
        let interpreters = (0..).map(FileRole::Interpreter).zip(&self.interpreters);
        [(FileRole::File, &self.file)].into_iter().chain(interpreters)
    }
}

impl File {
    /// The last part of the path.
    pub fn name(&self) -> &str {
        self.path.rsplit('/').next().unwrap_or_default()
    }
}

impl Address {
    /// The IP address and the port, of those families that have them.
    pub fn ip(&self) -> Option<(std::net::IpAddr, u16)> {
        match self {
            Self::Ipv4(Ipv4Address { ip, port }) => Some((std::net::Ipv4Addr::from_bits(*ip).into(), *port)),
            Self::Ipv6(Ipv6Address { high, low, port, .. }) => {
                let bits = u128::from(*high) << 64 | u128::from(*low);
                Some((std::net::Ipv6Addr::from_bits(bits).into(), *port))
            }
            _ => None,
        }
    }
}

/// An IP address and a port as an address of an event: an IPv4 address mapped into IPv6 is one of IPv4.
impl From<std::net::SocketAddr> for Address {
    fn from(address: std::net::SocketAddr) -> Self {
        match (address.ip().to_canonical(), address) {
            (std::net::IpAddr::V4(ip), _) => Self::Ipv4(Ipv4Address { ip: ip.to_bits(), port: address.port() }),
            (std::net::IpAddr::V6(ip), address) => Self::Ipv6(Ipv6Address {
                high: (ip.to_bits() >> 64) as u64,
                low: ip.to_bits() as u64,
                port: address.port(),
                scope: match address {
                    std::net::SocketAddr::V6(address) => address.scope_id(),
                    std::net::SocketAddr::V4(_) => 0,
                },
            }),
        }
    }
}
