//! What a plugin may ask the host. Natively, a [`crate::testing::Tester`] answers, or nobody.

use crate::{FileRole, Level, Stream, Subject};

#[cfg(target_arch = "wasm32")]
use crate::bindings::callgate::policy::host;

/// Writes a message to the host's log. Natively without a tester: to standard error.
pub fn log(level: Level, message: &str) {
    #[cfg(target_arch = "wasm32")]
    host::log(level, message);
    #[cfg(not(target_arch = "wasm32"))]
    crate::testing::log(level, message);
}

/// SHA-256 of a file of the event at hand, in lower-case hexadecimal. What then runs has this content.
///
/// # Errors
/// Why it cannot be had.
pub fn digest(role: FileRole) -> Result<String, String> {
    #[cfg(target_arch = "wasm32")]
    return host::digest(role);
    #[cfg(not(target_arch = "wasm32"))]
    crate::testing::answer(|host| host.digest(role), Err("there is no host to ask".to_owned()))
}

/// The ancestors of the event's process, parent first, as far as they belong to the workload; at most 64.
pub fn ancestors() -> Vec<Subject> {
    #[cfg(target_arch = "wasm32")]
    return host::ancestors();
    #[cfg(not(target_arch = "wasm32"))]
    crate::testing::answer(|host| host.ancestors(), Vec::new())
}

/// The path of a file or directory without symbolic links, as events name it. To be asked for while the configuration is
/// taken; later there is no answer that was not given then. Natively without a tester: the path itself.
pub fn canonical_path(path: &str) -> Option<String> {
    #[cfg(target_arch = "wasm32")]
    return host::canonical_path(path);
    #[cfg(not(target_arch = "wasm32"))]
    crate::testing::answer(|host| host.canonical_path(path), Some(path.to_owned()))
}

/// A variable of the environment that the new program gets (exec), or that the process was started with. Where it cannot be
/// told whether there is one, there is none, but an allowing or abstaining verdict then counts as a failure of the plugin.
pub fn environment(name: &str) -> Option<String> {
    #[cfg(target_arch = "wasm32")]
    return host::environment(name);
    #[cfg(not(target_arch = "wasm32"))]
    crate::testing::answer(|host| host.environment(name), None)
}

/// The standard stream of this number (0, 1, 2) of the event's process. For a hint, not for a guarantee: other threads of
/// the process may exchange it in the next moment.
pub fn standard_stream(number: u32) -> Stream {
    #[cfg(target_arch = "wasm32")]
    return host::standard_stream(number);
    #[cfg(not(target_arch = "wasm32"))]
    crate::testing::answer(|host| host.standard_stream(number), Stream::Unknown)
}

/// The names that `/etc/hosts` has for the event's IP address.
pub fn names() -> Vec<String> {
    #[cfg(target_arch = "wasm32")]
    return host::names();
    #[cfg(not(target_arch = "wasm32"))]
    crate::testing::answer(|host| host.names(), Vec::new())
}

/// When the workload was started, in milliseconds since the Unix epoch; 0 while the configuration is taken.
pub fn started_ms() -> u64 {
    #[cfg(target_arch = "wasm32")]
    return host::started_ms();
    #[cfg(not(target_arch = "wasm32"))]
    crate::testing::answer(|host| host.started_ms(), 0)
}

/// Says that the verdict which is about to be returned rests on nothing but the event's [`Action`](crate::Action) and the
/// configuration: not on the subject, the time or the sequence, nor on anything that the plugin remembers. Then the host may
/// give it again on an equal action without asking, which makes such an event almost as cheap as one that nobody governs.
///
/// To be said in a method that decides, each time. Whoever has asked for ancestors, a digest, the environment or a standard
/// stream has said it in vain.
pub fn by_action_alone() {
    #[cfg(target_arch = "wasm32")]
    host::by_action_alone();
    #[cfg(not(target_arch = "wasm32"))]
    crate::testing::answer(|host| host.by_action_alone(), ());
}
