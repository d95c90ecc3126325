//! Write plugins for callgate: one trait, one macro.
//!
//! ```
//! use callgate_sdk::{ConfigError, Event, EventKinds, Exec, Plugin, Verdict};
//!
//! /// Denies one program by its name.
//! struct NoShell {
//!     name: String,
//! }
//!
//! #[derive(serde::Deserialize)]
//! struct Config {
//!     name: String,
//! }
//!
//! impl Plugin for NoShell {
//!     type Config = Config;
//!     const NAME: &'static str = "no-shell";
//!     const VERSION: &'static str = "0.1.0";
//!
//!     fn new(config: Config) -> Result<Self, ConfigError> {
//!         Ok(Self { name: config.name })
//!     }
//!
//!     fn subscriptions(&self) -> EventKinds {
//!         EventKinds::EXEC
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
//! # #[cfg(target_arch = "wasm32")]
//! callgate_sdk::plugin!(NoShell);
//! # fn main() {}
//! ```
//!
//! A plugin is built for `wasm32-unknown-unknown` and encoded as a component. It imports nothing but what this crate does:
//! no files, no network, no clock. `README.md` beside this crate goes from nothing to a component, step by step.

use serde::de::DeserializeOwned;

pub mod example;

#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Guide;

#[doc(hidden)]
#[allow(missing_docs, unsafe_code, unreachable_pub, clippy::undocumented_unsafe_blocks)]
pub mod bindings {
    wit_bindgen::generate!({
        path: "wit",
        world: "plugin",
        pub_export_macro: true,
        export_macro_name: "export_plugin",
        default_bindings_module: "callgate_sdk::bindings",
    });
}

/// For configurations in which a mistake must not pass: see `callgate-json`.
pub use callgate_json::{Object, present};

pub use bindings::callgate::policy::host::{FileRole, Level};
pub use bindings::callgate::policy::types::{
    Accepted, Action, Address, ConfigError, Credentials, Denial, Endpoint, Event, EventKinds, Exec, File, Ipv4Address,
    Ipv6Address, NetlinkAddress, OtherAddress, Socket, Stream, StreamSocket, Subject, Verdict, VsockAddress,
};

/// A plugin. Methods that are not written abstain.
pub trait Plugin: Sized + 'static {
    /// What the policy configures: unknown keys are mistakes only if it says so (`#[serde(deny_unknown_fields)]`).
    type Config: DeserializeOwned;
    /// The plugin's own name.
    const NAME: &'static str;
    /// Its version (semver.org).
    const VERSION: &'static str;

    /// A JSON Schema of its configuration, for people and tools that write policies.
    fn config_schema() -> Option<String> {
        None
    }

    /// Takes its configuration. Called for the first instance, and again for each that replaces one that has failed.
    ///
    /// # Errors
    /// What is wrong with it, and where.
    fn new(config: Self::Config) -> Result<Self, ConfigError>;

    /// The kinds of event that it wants to be asked about. The rest is not even intercepted for it.
    fn subscriptions(&self) -> EventKinds;

    /// A program is about to be run.
    fn exec(&mut self, _event: &Event, _exec: &Exec) -> Verdict {
        Verdict::Abstain
    }
    /// A program is about to be run from a file without a path.
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
    /// A socket is to be created.
    fn socket(&mut self, _event: &Event, _socket: &Socket) -> Verdict {
        Verdict::Abstain
    }
    /// A process is to change its user or groups.
    fn credentials(&mut self, _event: &Event, _change: &Credentials) -> Verdict {
        Verdict::Abstain
    }
}

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

    /// The same, with the errno(3) that the caller gets.
    #[must_use]
    pub fn errno(mut self, errno: u16) -> Self {
        if let Self::Deny(denial) = &mut self {
            denial.errno = Some(errno);
        }
        self
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

/// Asks a plugin about an event: calls the method of its kind.
pub fn decide<P: Plugin>(plugin: &mut P, event: &Event) -> Verdict {
    match &event.action {
        Action::Exec(exec) => plugin.exec(event, exec),
        Action::ExecFileless(exec) => plugin.exec_fileless(event, exec),
        Action::Connect(to) => plugin.connect(event, to),
        Action::Bind(to) => plugin.bind(event, to),
        Action::Listen(on) => plugin.listen(event, on),
        Action::Accept(accepted) => plugin.accept(event, accepted),
        Action::Send(to) => plugin.send(event, to),
        Action::Socket(socket) => plugin.socket(event, socket),
        Action::Credentials(change) => plugin.credentials(event, change),
    }
}

/// Makes a plugin of its configuration, as JSON text.
///
/// # Errors
/// What is wrong with it, and where.
pub fn configure<P: Plugin>(config: &str) -> Result<P, ConfigError> {
    let config = callgate_json::from_str(config).map_err(|mistake| ConfigError {
        pointer: mistake.pointer,
        message: mistake.message,
        hint: mistake.hint,
    })?;
    P::new(config)
}

/// Writes a message to the host's log.
pub fn log(level: Level, message: &str) {
    #[cfg(target_arch = "wasm32")]
    bindings::callgate::policy::host::log(level, message);
    #[cfg(not(target_arch = "wasm32"))]
    eprintln!("{level:?}: {message}");
}

/// SHA-256 of a file of the event at hand, in lower-case hexadecimal.
///
/// # Errors
/// Why it cannot be had; always, outside of a host.
pub fn digest(role: FileRole) -> Result<String, String> {
    #[cfg(target_arch = "wasm32")]
    return bindings::callgate::policy::host::digest(role);
    #[cfg(not(target_arch = "wasm32"))]
    Err(format!("there is no host to ask for {role:?}"))
}

/// The ancestors of the event's process, parent first; none outside of a host.
pub fn ancestors() -> Vec<Subject> {
    #[cfg(target_arch = "wasm32")]
    return bindings::callgate::policy::host::ancestors();
    #[cfg(not(target_arch = "wasm32"))]
    Vec::new()
}

/// The path of a file or directory without symbolic links, as events name it. To be asked for while the configuration is
/// taken; later there is no answer. Outside of a host: the path itself.
pub fn canonical_path(path: &str) -> Option<String> {
    #[cfg(target_arch = "wasm32")]
    return bindings::callgate::policy::host::canonical_path(path);
    #[cfg(not(target_arch = "wasm32"))]
    Some(path.to_owned())
}

/// A variable of the environment of the event at hand; none outside of a host.
pub fn environment(name: &str) -> Option<String> {
    #[cfg(target_arch = "wasm32")]
    return bindings::callgate::policy::host::environment(name);
    #[cfg(not(target_arch = "wasm32"))]
    {
        let _ = name;
        None
    }
}

/// The standard stream of this number (0, 1, 2) of the event's process; unknown outside of a host.
pub fn standard_stream(number: u32) -> Stream {
    #[cfg(target_arch = "wasm32")]
    return bindings::callgate::policy::host::standard_stream(number);
    #[cfg(not(target_arch = "wasm32"))]
    {
        let _ = number;
        Stream::Unknown
    }
}

/// The names that `/etc/hosts` has for the event's IP address; none outside of a host.
pub fn names() -> Vec<String> {
    #[cfg(target_arch = "wasm32")]
    return bindings::callgate::policy::host::names();
    #[cfg(not(target_arch = "wasm32"))]
    Vec::new()
}

/// When the workload was started, in milliseconds since the Unix epoch; 0 outside of a host.
pub fn started_ms() -> u64 {
    #[cfg(target_arch = "wasm32")]
    return bindings::callgate::policy::host::started_ms();
    #[cfg(not(target_arch = "wasm32"))]
    0
}

/// Says a panic's message and place before the trap that it ends in.
#[doc(hidden)]
pub fn report_panics() {
    std::panic::set_hook(Box::new(|panic| log(Level::Error, &panic.to_string())));
}

/// Exports a type that implements [`Plugin`] as a component's plugin.
#[macro_export]
macro_rules! plugin {
    ($plugin:ty) => {
        #[allow(unsafe_code, missing_docs, clippy::undocumented_unsafe_blocks)]
        mod callgate_plugin_export {
            use super::*;
            use std::cell::RefCell;
            use $crate::bindings::exports::callgate::policy::policy as interface;

            thread_local! {
                static PLUGIN: RefCell<Option<$plugin>> = const { RefCell::new(None) };
            }

            struct Exported;

            impl interface::Guest for Exported {
                fn describe() -> interface::Description {
                    interface::Description {
                        name: <$plugin as $crate::Plugin>::NAME.to_owned(),
                        version: <$plugin as $crate::Plugin>::VERSION.to_owned(),
                        config_schema: <$plugin as $crate::Plugin>::config_schema(),
                    }
                }

                fn configure(config: String) -> Result<$crate::EventKinds, $crate::ConfigError> {
                    $crate::report_panics();
                    let plugin = $crate::configure::<$plugin>(&config)?;
                    let wanted = $crate::Plugin::subscriptions(&plugin);
                    PLUGIN.with_borrow_mut(|slot| *slot = Some(plugin));
                    Ok(wanted)
                }

                fn decide(event: $crate::Event) -> $crate::Verdict {
                    PLUGIN.with_borrow_mut(|slot| match slot {
                        Some(plugin) => $crate::decide(plugin, &event),
                        None => $crate::Verdict::Abstain,
                    })
                }
            }

            $crate::bindings::export_plugin!(Exported with_types_in $crate::bindings);
        }
    };
}
